"""Many probes, beside a baseline: what a datapath costs, as figures with intervals."""

"""eBPF: which hooks this kernel offers, loading and attaching the probes, decoding what they write."""

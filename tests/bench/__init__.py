"""Benchmarks: ratios of paired, interleaved runs against a named reference, with an A/A control. Run by ``make bench``."""

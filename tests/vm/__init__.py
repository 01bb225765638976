"""The suite on other kernels: Debian's stock ones, booted in throw-away guests."""

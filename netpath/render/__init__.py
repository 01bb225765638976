"""The only code that prints. Data goes to stdout, everything else to stderr."""

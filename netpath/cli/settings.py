"""What the switches that may stand anywhere said, for this one run."""

debug = False
no_colour = False
interrupted = False

"""netpath: where a container's packet goes, what every hop costs, and why it does not arrive."""

__version__ = "0.1.0"

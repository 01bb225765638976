"""The command line: one file per verb. Each parses, calls the pipeline, picks a renderer and sets the exit code."""

from netpath.cli.main import main

__all__ = ["main"]

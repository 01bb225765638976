"""``python -m netpath``: the command line."""

from netpath.cli import main

main()

"""Starting a lab's echo server (see echo.py)."""

from __future__ import annotations

from netpath.lab import helpers, netns, state
from netpath.lab.options import ECHO_TCP, ECHO_UDP


def start(store: state.Store) -> None:
    """Start the server for all pods; they answer when this returns."""
    # A pod's namespace may be an absolute path, which stays what it is.
    places = [{"netns": str(netns.path_of(pod.netns)), "udp": ECHO_UDP, "tcp": ECHO_TCP} for pod in store.state.pods]
    helpers.start(store, "echo.py", "echo", places)

"""The kinds of lab there are, one file per family."""

from __future__ import annotations

from netpath.lab.build import Mode
from netpath.lab.modes.bridge import BRIDGE
from netpath.lab.modes.docker import DOCKER
from netpath.lab.modes.flannel import HOSTGW, VXLAN

MODES: tuple[Mode, ...] = (VXLAN, HOSTGW, BRIDGE, DOCKER)
"""In the order in which a list shows them; the first is the default."""

"""The kinds of lab there are, one file per family."""

from __future__ import annotations

from netpath.lab.build import Mode
from netpath.lab.modes.bridge import BRIDGE
from netpath.lab.modes.calico import BGP
from netpath.lab.modes.calico import VXLAN as CALICO_VXLAN
from netpath.lab.modes.docker import DOCKER
from netpath.lab.modes.flannel import HOSTGW, VXLAN
from netpath.lab.modes.flannel_docker import FLANNEL_DOCKER
from netpath.lab.modes.flannel_udp import UDP
from netpath.lab.modes.ptp import PTP

MODES: tuple[Mode, ...] = (VXLAN, HOSTGW, UDP, BRIDGE, PTP, BGP, CALICO_VXLAN, DOCKER, FLANNEL_DOCKER)
"""In the order in which a list shows them; the first is the default."""

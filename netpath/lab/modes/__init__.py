"""The kinds of lab there are, one file per family."""

from __future__ import annotations

from netpath.lab.build import Mode
from netpath.lab.modes.bridge import BRIDGE, CNI_BRIDGE
from netpath.lab.modes.calico import BGP, CROSS_SUBNET, REFLECTED
from netpath.lab.modes.calico import VXLAN as CALICO_VXLAN
from netpath.lab.modes.calico_ipip import ALWAYS as CALICO_IPIP
from netpath.lab.modes.calico_ipip import CROSS_SUBNET as CALICO_IPIP_CROSS_SUBNET
from netpath.lab.modes.canal import CANAL
from netpath.lab.modes.docker import DOCKER
from netpath.lab.modes.flannel import DIRECT, HOSTGW, VXLAN
from netpath.lab.modes.flannel_docker import FLANNEL_DOCKER
from netpath.lab.modes.flannel_ipip import IPIP
from netpath.lab.modes.flannel_udp import UDP
from netpath.lab.modes.kube_ipvs import KUBE_IPVS
from netpath.lab.modes.kubenet import GKE, KUBENET
from netpath.lab.modes.ptp import PTP
from netpath.lab.modes.weave import SLEEVE

MODES: tuple[Mode, ...] = (
    VXLAN,
    HOSTGW,
    DIRECT,
    UDP,
    IPIP,
    KUBE_IPVS,
    BRIDGE,
    CNI_BRIDGE,
    PTP,
    KUBENET,
    GKE,
    BGP,
    REFLECTED,
    CALICO_VXLAN,
    CROSS_SUBNET,
    CALICO_IPIP,
    CALICO_IPIP_CROSS_SUBNET,
    CANAL,
    SLEEVE,
    DOCKER,
    FLANNEL_DOCKER,
)
"""In the order in which a list shows them; the first is the default."""

"""Canal: Flannel's overlay between nodes, Calico's veths and policy on the node, pods' addresses out of Flannel's subnet."""

from __future__ import annotations

from netpath.cni import calico, flannel
from netpath.cni.view import Datapath, NodeView

NAME = "canal"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    pods = flannel.routed_in_subnet(view)
    if not pods:
        return ()
    overlay, signs = flannel.overlay_of(view)
    if overlay is None:
        return ()
    signs.add(
        0.4,
        f"{len(pods)} pods of Flannel's subnet are routed over veths of their own, and no bridge holds that subnet",
    )
    calico.attached(view, pods, signs)
    calico.policy(view, signs)
    signs.add_if("calico" in view.cni_types, 0.5, f"{view.cni_types.get('calico')} names the calico plugin")
    return signs.datapath(NAME, overlay.mode)

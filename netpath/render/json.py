"""Results as the contract's JSON: the model's dataclasses, field by field. Reference: docs/reference/json.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from netpath import __version__
from netpath.model.packet import Ethernet, Icmp, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan, VxlanHeader

API_VERSION = "netpath/v1alpha1"
_HEADERS = (Ethernet, Vlan, Ipv4, Ipv6, Udp, Tcp, Icmp, VxlanHeader, Opaque)


def jsonable(value: Any) -> Any:
    """Plain dictionaries, lists and scalars. A field marked `absent_if_none` is left out when it is None; others become null."""
    if is_dataclass(value) and not isinstance(value, type):
        document: dict[str, Any] = {"proto": value.proto} if isinstance(value, _HEADERS) else {}
        for field in fields(value):
            content = getattr(value, field.name)
            # Of a header only a port can be there and not known (a tunnel's source port is a hash); the rest does not apply.
            unknown_port = field.name in ("sport", "dport")
            if content is None and (field.metadata.get("absent_if_none") or (isinstance(value, _HEADERS) and not unknown_port)):
                continue
            document[field.name] = jsonable(content)
        return document
    if isinstance(value, Mapping):
        return {str(key): jsonable(content) for key, content in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value


def document(
    kind: str, started_at: str, nodes: Sequence[Mapping[str, Any]], request: Mapping[str, Any], content: Mapping[str, Any]
) -> str:
    """One document of the contract, with a newline at its end. All of it is ASCII: a name in it can't act on a terminal."""
    whole = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "startedAt": started_at,
        "tool": __version__,
        "nodes": jsonable(nodes),
        "request": jsonable(request),
        **jsonable(content),
    }
    return json.dumps(whole, indent=2) + "\n"


def ascii_json(text: str) -> str:
    """A JSON document with everything beyond printable ASCII escaped: in JSON such characters stand in strings only."""
    return re.sub(r"[^\x00-\x7e]", lambda found: json.dumps(found[0])[1:-1], text)

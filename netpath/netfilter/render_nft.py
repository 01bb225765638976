"""A rule of ``nft -j`` in nft's own syntax, for people. Anything unknown is shown as it is in the document."""

from __future__ import annotations

import json
from typing import Any


def rule(body: Any) -> str:
    """The statements of a rule, counters left out."""
    if not isinstance(body, list):
        return str(body)
    parts = [statement(part) for part in body if not (isinstance(part, dict) and "counter" in part)]
    return " ".join(part for part in parts if part)


def statement(body: Any) -> str:
    try:
        return _statement(body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        return _plain(body)


def expression(body: Any) -> str:
    try:
        return _expression(body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        return _plain(body)


def _plain(body: Any) -> str:
    try:
        return json.dumps(body)[:200]
    except (ValueError, TypeError, RecursionError):
        return str(type(body).__name__)


def _statement(body: Any) -> str:
    ((kind, inner),) = body.items()
    if kind == "match":
        right = inner["right"]
        if isinstance(right, bool):
            return f"{_expression(inner['left'])} {'exists' if right else 'missing'}"
        implied = inner.get("op", "==") == "in" or (inner.get("op", "==") == "==" and not _calculated(inner["left"]))
        op = "" if implied else f"{inner['op']} "
        return f"{_expression(inner['left'])} {op}{_expression(right)}"
    if kind in ("accept", "drop", "return", "continue", "notrack"):
        return str(kind)
    if kind in ("jump", "goto"):
        return f"{kind} {inner['target']}"
    if kind == "vmap":
        return f"{_expression(inner['key'])} vmap {_expression(inner['data'])}"
    if kind == "mangle":
        return f"{_expression(inner['key'])} set {_expression(inner['value'])}"
    if kind == "reject":
        if not inner:
            return "reject"
        return f"reject with {inner['type']}" + (f" type {inner['expr']}" if "expr" in inner else "")
    if kind in ("dnat", "snat", "masquerade", "redirect"):
        inner = inner or {}
        text = kind if "family" not in inner else f"{kind} {inner['family']}"
        if "addr" in inner or "port" in inner:
            text += " to "
        if "addr" in inner:
            address = _expression(inner["addr"])
            text += f"[{address}]" if ":" in address and "port" in inner else address
        if "port" in inner:
            text += f":{_expression(inner['port'])}"
        flags = inner.get("flags")
        return text if not flags else f"{text} {flags if isinstance(flags, str) else ','.join(flags)}"
    if kind == "set":
        return f"{inner['op']} {inner['set']} {{ {_expression(inner['elem'])} }}"
    if kind == "limit":
        return f"limit rate {'over ' if inner.get('inv') else ''}{inner['rate']}/{inner['per']}"
    if kind == "log":
        return f"log prefix {json.dumps(inner['prefix'])}" if inner and "prefix" in inner else "log"
    if kind == "ct count":
        return f"ct count {'over ' if inner.get('inv') else ''}{inner['val']}"
    if kind == "queue":
        return f"queue to {inner['num']}" if inner and "num" in inner else "queue"
    if kind == "xt":
        return f"xt {inner.get('type')} {inner.get('name')}"
    return _plain(body)


def _expression(body: Any) -> str:
    if isinstance(body, str):
        return body
    if isinstance(body, bool):
        return str(int(body))
    if isinstance(body, int):
        return str(body)
    if isinstance(body, list):
        return ",".join(_expression(part) for part in body)
    ((kind, inner),) = body.items()
    if kind == "payload" and "field" in inner:
        return f"{inner['protocol']} {inner['field']}"
    if kind == "meta":
        bare = ("iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup")
        return str(inner["key"]) if inner["key"] in bare else f"meta {inner['key']}"
    if kind == "ct":
        return " ".join(["ct", *([inner["dir"]] if "dir" in inner else []), inner["key"]])
    if kind == "fib":
        flags = inner["flags"] if isinstance(inner["flags"], str) else " . ".join(inner["flags"])
        return f"fib {flags} {inner['result']}"
    if kind == "numgen":
        return f"numgen {inner['mode']} mod {inner['mod']}" + (f" offset {inner['offset']}" if inner.get("offset") else "")
    if kind == "jhash":
        return f"jhash {_expression(inner['expr'])} mod {inner['mod']}"
    if kind == "symhash":
        return f"symhash mod {inner['mod']}"
    if kind == "concat":
        return " . ".join(_expression(part) for part in inner)
    if kind == "prefix":
        return f"{_expression(inner['addr'])}/{inner['len']}"
    if kind == "range":
        return f"{_expression(inner[0])}-{_expression(inner[1])}"
    if kind == "elem":
        return _expression(inner["val"])
    if kind == "set":
        parts = inner if isinstance(inner, list) else [inner]
        return "{ " + ", ".join(_element(part) for part in parts) + " }"
    if kind == "map":
        return f"{_expression(inner['key'])} map {_expression(inner['data'])}"
    if kind in ("&", "|", "^", "<<", ">>"):
        return f" {kind} ".join(_expression(part) for part in inner)
    if kind in ("accept", "drop", "return", "continue", "jump", "goto"):
        return _statement(body)
    return _plain(body)


def _element(body: Any) -> str:
    if isinstance(body, list) and len(body) == 2:
        return f"{_expression(body[0])} : {_expression(body[1])}"
    return _expression(body)


def _calculated(body: Any) -> bool:
    return isinstance(body, dict) and any(kind in body for kind in ("&", "|", "^", "<<", ">>"))

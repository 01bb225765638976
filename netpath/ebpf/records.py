"""Decodes what the probes write. The layout is read out of probes/event.h, so that it is declared once.

The header's structs hold fixed-width members in an order that needs no padding; `layout` refuses anything else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TYPES = {"u8": ("B", 1), "u16": ("H", 2), "s16": ("h", 2), "u32": ("I", 4), "s32": ("i", 4), "u64": ("Q", 8)}
_MEMBER = re.compile(r"^\s*(u8|u16|s16|u32|s32|u64)\s+(\w+)(?:\[(\w+)\])?;")


@dataclass(frozen=True, slots=True)
class Layout:
    """A C struct: member names in order, and how to unpack it."""

    names: tuple[str, ...]
    offsets: tuple[int, ...]
    struct: struct.Struct

    def unpack(self, data: bytes | memoryview) -> dict[str, Any]:
        return dict(zip(self.names, self.struct.unpack_from(data), strict=True))

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """The struct's bytes; a number that `values` leaves out is 0."""
        return self.struct.pack(*(values.get(name, 0) for name in self.names))


def layout(header: str, name: str) -> Layout:
    """The layout of ``struct NAME`` in a header's text. Raises ValueError for a member that would need padding."""
    constants = {key: int(value) for key, value in re.findall(r"^#define\s+(\w+)\s+(\d+)\s*$", header, re.M)}
    body = re.search(rf"^struct {name} \{{$(.*?)^\}};$", header, re.M | re.S)
    if body is None:
        raise ValueError(f"struct {name} is not in the header")
    names, offsets, code, position = [], [], "<", 0
    for line in body[1].splitlines():
        member = _MEMBER.match(line)
        if member is None:
            if line.strip():
                raise ValueError(f"struct {name}: not understood: {line.strip()}")
            continue
        kind, label, count = member.groups()
        letter, size = _TYPES[kind]
        if position % size:
            raise ValueError(f"struct {name}.{label} would need padding")
        repeat = (constants[count] if count in constants else int(count)) if count else 1
        names.append(label)
        offsets.append(position)
        code += f"{repeat}s" if count else letter
        if count and size != 1:
            raise ValueError(f"struct {name}.{label}: only arrays of bytes are supported")
        position += size * repeat
    if position % 8:
        raise ValueError(f"struct {name} is {position} bytes: the compiler would pad it to a multiple of 8")
    return Layout(tuple(names), tuple(offsets), struct.Struct(code))


def constant(header: str, name: str) -> int:
    """The number of a ``#define NAME NUMBER`` in a header's text."""
    found = re.search(rf"^#define\s+{name}\s+(\d+)\b", header, re.M)
    if found is None:
        raise ValueError(f"{name} is not in the header")
    return int(found[1])


def enum(header: str, name: str) -> dict[str, int]:
    """Name -> value of ``enum NAME { A = 1, ... }`` in a header's text."""
    body = re.search(rf"^enum {name} \{{(.*?)\}};", header, re.M | re.S)
    if body is None:
        raise ValueError(f"enum {name} is not in the header")
    return {key: int(value) for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", body[1])}

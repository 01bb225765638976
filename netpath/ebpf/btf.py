"""Reads the kernel's own description of its types (BTF): member offsets, enum names, typedef ids.

Format: Documentation/bpf/btf.rst. One pass indexes the types by name; members are decoded only of the structs that are asked for.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from netpath.ebpf import cache
from netpath.errors import MissingError

FORMAT = 1
"""Of what is kept in the cache; another number makes old files meaningless."""
VMLINUX = Path("/sys/kernel/btf/vmlinux")

KIND_INT, KIND_PTR, KIND_ARRAY, KIND_STRUCT, KIND_UNION, KIND_ENUM = 1, 2, 3, 4, 5, 6
KIND_FWD, KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_FUNC = 7, 8, 9, 10, 11, 12
KIND_FUNC_PROTO, KIND_VAR, KIND_DATASEC, KIND_FLOAT, KIND_DECL_TAG, KIND_TYPE_TAG, KIND_ENUM64 = 13, 14, 15, 16, 17, 18, 19

_SIZES = {
    KIND_INT: (4, 0),
    KIND_ARRAY: (12, 0),
    KIND_STRUCT: (0, 12),
    KIND_UNION: (0, 12),
    KIND_ENUM: (0, 8),
    KIND_FUNC_PROTO: (0, 8),
    KIND_VAR: (4, 0),
    KIND_DATASEC: (0, 12),
    KIND_DECL_TAG: (4, 0),
    KIND_ENUM64: (0, 12),
}
"""Kind -> (bytes that follow the record, bytes for each of its members)."""
_TRANSPARENT = (KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_TYPE_TAG)


class Btf:
    """The types of one BTF blob. Raises MissingError when it is not BTF."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 24 or data[:2] != b"\x9f\xeb":
            raise MissingError("the kernel's BTF is unreadable (wrong magic); netpath cannot learn this kernel's structures")
        _, _, _, header, type_offset, type_length, string_offset, string_length = struct.unpack_from("<HBBIIIII", data)
        self._data = data
        self._strings = data[header + string_offset : header + string_offset + string_length]
        self._starts: list[int] = [0]
        self._named: dict[tuple[int, int], int] = {}
        self._scan(header + type_offset, header + type_offset + type_length)

    def _scan(self, position: int, end: int) -> None:
        unpack = struct.Struct("<III").unpack_from
        starts, named, data = self._starts, self._named, self._data
        wanted = {KIND_STRUCT, KIND_ENUM, KIND_TYPEDEF, KIND_FUNC}
        while position < end:
            name, info, _ = unpack(data, position)
            kind = info >> 24 & 0x1F
            if kind in wanted and name:
                named.setdefault((kind, name), len(starts))
            starts.append(position)
            fixed, each = _SIZES.get(kind, (0, 0))
            position += 12 + fixed + each * (info & 0xFFFF)

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def find(self, kind: int, name: str) -> int | None:
        """The id of the first type of that kind and name."""
        needle = b"\0" + name.encode() + b"\0"
        offset = self._strings.find(needle)
        return self._named.get((kind, offset + 1)) if offset >= 0 else None

    def function_after(self, types: int, strings: int, name: str) -> int | None:
        """The id of a function, of types that go on after so many of another's. Its name must not be one of that other's strings."""
        for index, position in enumerate(self._starts[1:]):
            offset, info, _ = struct.unpack_from("<III", self._data, position)
            if info >> 24 & 0x1F == KIND_FUNC and offset >= strings and self._name(offset - strings) == name:
                return types + index
        return None

    def _record(self, type_id: int) -> tuple[int, int, int, int, int]:
        """(position, kind, vlen, kind_flag, size or type) of a type, with typedefs and qualifiers seen through."""
        while True:
            position = self._starts[type_id]
            _, info, value = struct.unpack_from("<III", self._data, position)
            kind = info >> 24 & 0x1F
            if kind not in _TRANSPARENT:
                return position, kind, info & 0xFFFF, info >> 31, value
            type_id = value

    def bits(self, struct_name: str, member: str) -> int | None:
        """The offset of a member in bits, anonymous structs and unions seen through; None when there is none."""
        type_id = self.find(KIND_STRUCT, struct_name)
        return self._member(type_id, member, 0) if type_id is not None else None

    def _member(self, type_id: int, wanted: str, base: int) -> int | None:
        position, kind, count, flag, _ = self._record(type_id)
        if kind not in (KIND_STRUCT, KIND_UNION):
            return None
        for index in range(count):
            name, member_type, encoded = struct.unpack_from("<III", self._data, position + 12 + 12 * index)
            offset: int = base + (encoded & 0xFFFFFF if flag else encoded)
            if name:
                if self._name(name) == wanted:
                    return offset
            elif (found := self._member(member_type, wanted, offset)) is not None:
                return found
        return None

    def offset(self, struct_name: str, member: str) -> int:
        """The offset of a member in bytes. Raises MissingError: without it the probes would read the wrong memory."""
        bits = self.bits(struct_name, member)
        if bits is None:
            raise MissingError(f"this kernel's struct {struct_name} has no member {member}; netpath cannot read packets on it")
        return bits // 8

    def enum(self, name: str) -> dict[int, str]:
        """Value -> name of an enum's members; empty when there is no such enum."""
        type_id = self.find(KIND_ENUM, name)
        if type_id is None:
            return {}
        position, _, count, _, _ = self._record(type_id)
        pairs = (struct.unpack_from("<Ii", self._data, position + 12 + 8 * index) for index in range(count))
        return {value: self._name(text) for text, value in pairs}

    def extent(self) -> tuple[int, int]:
        """(types, bytes of strings): where those of a module begin."""
        return len(self._starts), len(self._strings)

    def keep(self) -> None:
        """Keep the answers given so far for the next run, where there is a place for that."""


class Remembered(Btf):
    """A kernel's types by answers given before; the types themselves are read when there is a question without one.

    Raises MissingError, from the question, when they must be read and can't be.
    """

    def __init__(self, path: Path) -> None:  # the base's fields stay unset: every question goes to the answers or to `_whole`
        self._path = path
        self._types: Btf | None = None
        self._key = cache.key(FORMAT, *_identity(path))
        kept = cache.load("btf", self._key)
        known = kept if isinstance(kept, dict) else {}
        self._known: dict[str, Any] = dict(known)
        self._asked: dict[str, Any] = dict(known)

    @property
    def _whole(self) -> Btf:
        if self._types is None:
            self._types = load(self._path)
        return self._types

    def find(self, kind: int, name: str) -> int | None:
        question = f"find {kind} {name}"
        if question not in self._asked:
            self._asked[question] = self._whole.find(kind, name)
        answer: int | None = self._asked[question]
        return answer

    def bits(self, struct_name: str, member: str) -> int | None:
        question = f"bits {struct_name} {member}"
        if question not in self._asked:
            self._asked[question] = self._whole.bits(struct_name, member)
        answer: int | None = self._asked[question]
        return answer

    def enum(self, name: str) -> dict[int, str]:
        question = f"enum {name}"
        if question not in self._asked:
            self._asked[question] = [[value, text] for value, text in self._whole.enum(name).items()]
        return {int(value): str(text) for value, text in self._asked[question]}

    def extent(self) -> tuple[int, int]:
        if "extent" not in self._asked:
            self._asked["extent"] = list(self._whole.extent())
        types, strings = self._asked["extent"]
        return int(types), int(strings)

    def keep(self) -> None:
        if self._asked != self._known:
            cache.store("btf", self._key, self._asked)
            self._known = dict(self._asked)


def module_function(base: Btf, module: str, function: str) -> int | None:
    """The id of a function of a loaded module; its types' ids and strings go on where the kernel's end. None: there is none."""
    try:
        data = VMLINUX.with_name(module).read_bytes()
        own = Btf(data)
    except (OSError, MissingError):
        return None
    types, strings = base.extent()
    return own.function_after(types, strings, function)


def _identity(path: Path) -> tuple[str, ...]:
    """What tells one kernel build from another: its name and its build id (and the size of its types)."""
    name = os.uname()
    try:
        notes = Path("/sys/kernel/notes").read_bytes().hex()
        size = path.stat().st_size
    except OSError:
        notes, size = "", -1
    return str(path), name.release, name.version, name.machine, notes, str(size)


def load(path: Path = VMLINUX) -> Btf:
    """A kernel's types, read now. Raises MissingError when there are none."""
    try:
        return Btf(path.read_bytes())
    except OSError as error:
        raise MissingError(
            f"{path}: {error.strerror}; netpath needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF), as all current distributions build"
        ) from error


def read(path: Path = VMLINUX) -> Btf:
    """The running kernel's types, from the cache as far as they were asked for before. Raises MissingError when there are none."""
    if not path.exists():
        return load(path)
    return Remembered(path)

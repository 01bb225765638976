"""The probe programs, compiled for this kernel: source and type offsets in, relocatable bytecode out, kept in a cache.

bcc is only the compiler. It runs in a process of its own, so that LLVM's memory goes with it, and only when the cache has
nothing: bytecode depends on the C source and on this kernel's offsets, both part of the cache's key.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netpath import __version__
from netpath.ebpf.btf import Btf
from netpath.errors import MissingError, NetpathError

SOURCE = "probes.c"
HEADERS = ("event.h", "kernel.h", "walk.h")
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1

OFFSETS: tuple[tuple[str, str], ...] = (
    ("sk_buff", "len"),
    ("sk_buff", "data_len"),
    ("sk_buff", "head"),
    ("sk_buff", "data"),
    ("sk_buff", "dev"),
    ("sk_buff", "sk"),
    ("sk_buff", "prev"),
    ("sk_buff", "protocol"),
    ("sk_buff", "mac_header"),
    ("sk_buff", "network_header"),
    ("sk_buff", "vlan_tci"),
    ("net_device", "ifindex"),
    ("net_device", "type"),
    ("net_device", "name"),
    ("net_device", "nd_net"),
    ("net", "ns"),
    ("ns_common", "inum"),
    ("sock_common", "skc_net"),
    ("sock", "sk_receive_queue"),
    ("nf_hook_state", "in"),
    ("nf_hook_state", "out"),
    ("nf_hook_state", "net"),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """Bytecode by program name. `maps` says which map each instruction pair refers to: (program, index of the first) -> name."""

    code: Mapping[str, bytes]
    references: Mapping[str, tuple[tuple[int, str], ...]]
    compiled: bool
    """False: they came from the cache."""

    def linked(self, program: str, descriptors: Mapping[str, int]) -> bytes:
        """The program's bytecode with the descriptors of real maps in place."""
        code = bytearray(self.code[program])
        for index, name in self.references[program]:
            struct.pack_into("<i", code, index * 8 + 4, descriptors[name])
        return bytes(code)


def source_folder() -> Path:
    """Where the probes' C source is: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "probes", package.parent / "probes"
    return installed if installed.is_dir() else checkout


def source_text(name: str) -> str:
    """A file of the probes' C source."""
    return (source_folder() / name).read_text()


def defines(btf: Btf) -> dict[str, int]:
    """The -D constants that describe this kernel's structures. Raises MissingError for one that netpath can't do without."""
    values = {f"OFF_{struct_name}_{member}": btf.offset(struct_name, member) for struct_name, member in OFFSETS}
    whole = btf.bits("sk_buff", "vlan_all")
    if whole is not None:
        # Since 6.2 (354259fa73e2) a tag is present when protocol and tag together are not zero.
        values["OFF_sk_buff_vlan_present"], values["MASK_sk_buff_vlan_present"] = whole // 8, 0xFFFFFFFF
    else:
        bit = btf.bits("sk_buff", "vlan_present")
        if bit is None:
            raise MissingError(
                "this kernel's struct sk_buff says nowhere whether a VLAN tag is present; netpath cannot read packets on it"
            )
        values["OFF_sk_buff_vlan_present"], values["MASK_sk_buff_vlan_present"] = bit // 8, 1 << bit % 8
    return values


def prepare(btf: Btf) -> Programs:
    """Compiled programs for this kernel. Raises MissingError when they must be compiled and bcc is not there."""
    flags = [f"-D{name}={value}" for name, value in sorted(defines(btf).items())]
    texts = {name: source_text(name) for name in (*HEADERS, SOURCE)}
    texts["compile.py"] = (Path(__file__).parent / "compile.py").read_text()
    key = hashlib.sha256(json.dumps([__version__, os.uname().machine, flags, texts]).encode()).hexdigest()
    kept = _cached(key)
    if kept is not None:
        return _programs(kept, compiled=False)
    document = _compile(flags)
    _keep(key, document)
    return _programs(document, compiled=True)


def _programs(document: Mapping[str, Mapping[str, object]], *, compiled: bool) -> Programs:
    code = {name: bytes.fromhex(str(entry["code"])) for name, entry in document.items()}
    references = {
        name: tuple((int(index), str(target)) for index, target in entry["maps"])  # type: ignore[attr-defined]
        for name, entry in document.items()
    }
    return Programs(code, references, compiled)


def _compile(flags: list[str]) -> dict[str, dict[str, object]]:
    command = [sys.executable, "-m", "netpath.ebpf.compile", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode == 3:
        raise MissingError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise NetpathError(f"the probe programs did not compile: {errors[0].strip() if errors else 'no message'}")
    document: dict[str, dict[str, object]] = json.loads(done.stdout)
    return document


def cache_folder() -> Path | None:
    """Where compiled programs are kept: ours alone to write, or nowhere (None)."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (
        Path(base) / "netpath" if base else (Path("/var/cache/netpath") if os.geteuid() == 0 else Path.home() / ".cache/netpath")
    )
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return folder


def _cached(key: str) -> dict[str, dict[str, object]] | None:
    folder = cache_folder()
    if folder is None:
        return None
    try:
        path = folder / f"programs-{key[:32]}.json"
        if path.stat().st_uid != os.geteuid():
            return None
        document = json.loads(path.read_text())
        if document["key"] != key or document["digest"] != _digest(document["programs"]):
            return None
        programs: dict[str, dict[str, object]] = document["programs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return programs


def _digest(programs: object) -> str:
    return hashlib.sha256(json.dumps(programs, sort_keys=True).encode()).hexdigest()


def _keep(key: str, programs: Mapping[str, Mapping[str, object]]) -> None:
    folder = cache_folder()
    if folder is None:
        return
    try:
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as scratch:
            json.dump({"key": key, "digest": _digest(programs), "programs": programs}, scratch)
        Path(scratch.name).replace(folder / f"programs-{key[:32]}.json")
    except OSError:
        return

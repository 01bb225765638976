"""The probe programs, compiled for this kernel: source and type offsets in, relocatable bytecode out, kept in a cache.

bcc is only the compiler. It runs in a process of its own, so that LLVM's memory goes with it, and only when the cache has
nothing: bytecode depends on the C source and on this kernel's offsets, both part of the cache's key.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netpath import __version__
from netpath.ebpf import cache
from netpath.ebpf.btf import KIND_FUNC, KIND_STRUCT, Btf
from netpath.ebpf.ring import Buffer
from netpath.errors import MissingError, NetpathError

SOURCE = "probes.c"
HEADERS = ("event.h", "kernel.h", "walk.h", "functions.h")
VARIANTS = {"typed": ("-DNP_DIRECT",), "plain": (), "registers": ("-DNP_KPROBE",)}
"""Ways to compile the source: for programs whose arguments the verifier knows by type, for others, for kprobes."""
LD_IMM64, PSEUDO_MAP_FD, MOV64_IMM, CALL, PSEUDO_KFUNC_CALL = 0x18, 1, 0xB7, 0x85, 2
PRIORITY = 0x4E505052
"""What stands in the code of np_stamp for the priority it runs at (NP_PRIORITY)."""

MASK, LIMIT = 0x4E504D53, 0x4E504C49
"""What stands in the code for the size of the buffer less one (NP_MASK), and for how much of it may be unread (NP_LIMIT)."""
STORE64, ATOMIC64 = 0x7B, 0xDB
ATOMICS = {0x4E41: 0x01, 0x4E58: 0xE1}
"""Offset of a store that stands for an atomic instruction -> which one: BPF_ADD | BPF_FETCH, BPF_XCHG."""
CAST_CALL = 0x4E5043
"""What stands in the code for the kernel function bpf_rdonly_cast (NP_CAST_CALL)."""
CAST_FUNCTION, CAST_TYPE = "bpf_rdonly_cast", "timespec64"
"""That function (kernel 6.2), and a type of two words, through which a packet's bytes are read."""

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
    ("sk_buff", "vlan_proto"),
    ("net_device", "ifindex"),
    ("net_device", "type"),
    ("net_device", "nd_net"),
    ("net", "ns"),
    ("ns_common", "inum"),
    ("sock_common", "skc_net"),
    ("sock_common", "skc_family"),
    ("sock", "sk_receive_queue"),
    ("sk_buff_head", "qlen"),
    ("nf_hook_state", "in"),
    ("nf_hook_state", "out"),
    ("nf_hook_state", "net"),
    ("nf_hook_state", "hook"),
    ("nf_hook_state", "pf"),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """Bytecode by program name. `maps` says which map each instruction pair refers to: (program, index of the first) -> name."""

    code: Mapping[str, bytes]
    references: Mapping[str, tuple[tuple[int, str], ...]]
    compiled: bool
    """False: they came from the cache."""
    own_buffer: bool = False
    """They write into a buffer of netpath's (`netpath.ebpf.ring.Buffer`), not the kernel's ring buffer."""
    cast: int = 0
    """BTF id of bpf_rdonly_cast, which some of them call; 0: none does."""

    def linked(self, program: str, descriptors: Mapping[str, int], buffer: Buffer | None = None) -> bytes:
        """The program's bytecode with the descriptors of real maps, and what is known of the buffer, in place."""
        code = bytearray(self.code[program])
        for index, name in self.references[program]:
            struct.pack_into("<i", code, index * 8 + 4, descriptors[name])
        sizes = {MASK: buffer.bytes - 1, LIMIT: buffer.limit} if buffer is not None else {}
        wide = False
        for at in range(0, len(code), 8):
            if wide:  # the second half of a constant of 64 bits
                wide = False
                continue
            operation, _, offset, value = struct.unpack_from("<BBhi", code, at)
            wide = operation == LD_IMM64
            if operation == MOV64_IMM and value in sizes:
                struct.pack_into("<i", code, at + 4, sizes[value])
            elif operation == CALL and value == CAST_CALL:
                code[at + 1] = PSEUDO_KFUNC_CALL << 4
                struct.pack_into("<i", code, at + 4, self.cast)
            elif operation == STORE64 and offset in ATOMICS:
                code[at] = ATOMIC64
                struct.pack_into("<hi", code, at + 2, 0, ATOMICS[offset])
        return bytes(code)

    def at_priority(self, program: str, descriptors: Mapping[str, int], priority: int, buffer: Buffer | None = None) -> bytes:
        """`linked`, with a netfilter priority in the place that the program keeps for it."""
        code = bytearray(self.linked(program, descriptors, buffer))
        places = [
            at for at in range(0, len(code), 8) if code[at] == MOV64_IMM and struct.unpack_from("<i", code, at + 4)[0] == PRIORITY
        ]
        (place,) = places
        struct.pack_into("<i", code, place + 4, priority)
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
        values["OFF_sk_buff_vlan_present"], values["NP_VLAN_WORD"] = whole // 8, 1
    else:
        bit = btf.bits("sk_buff", "vlan_present")
        if bit is None:
            raise MissingError(
                "this kernel's struct sk_buff says nowhere whether a VLAN tag is present; netpath cannot read packets on it"
            )
        values["OFF_sk_buff_vlan_present"], values["MASK_sk_buff_vlan_present"] = bit // 8, 1 << bit % 8
    if btf.enum("skb_drop_reason"):
        values["NP_REASONS"] = 1
    modern(btf)
    # All is asked for at once: the kernel's types are then read at most once, and all answers kept together.
    btf.keep()
    return values


def modern(btf: Btf) -> tuple[int, int] | None:
    """BTF ids of bpf_rdonly_cast and of the type to cast to; None before 6.2, which has not the one.

    Its presence also stands for the atomic instructions of 5.12, by which the programs keep a buffer of netpath's own.
    """
    function, kind = btf.find(KIND_FUNC, CAST_FUNCTION), btf.find(KIND_STRUCT, CAST_TYPE)
    return (function, kind) if function is not None and kind is not None else None


def prepare(btf: Btf, variant: str) -> Programs:
    """Compiled programs for this kernel, one of `VARIANTS`.

    Raises MissingError when they must be compiled and bcc is not there.
    """
    flags = [f"-D{name}={value}" for name, value in sorted(defines(btf).items())] + [*VARIANTS[variant]]
    ids = modern(btf)
    if ids is not None:
        flags.append("-DNP_OWN_BUFFER")
        flags += [f"-DNP_CAST={ids[1]}"] * (variant == "typed") + ["-DNP_ORDERED"] * (os.uname().machine == "x86_64")
    texts = {name: source_text(name) for name in (*HEADERS, SOURCE)}
    texts["compile.py"] = (Path(__file__).parent / "compile.py").read_text()
    key = cache.key(__version__, os.uname().machine, flags, texts)
    kept = cache.load("programs", key)
    if kept is not None:
        return _programs(kept, ids, compiled=False)
    document = _compile(flags)
    cache.store("programs", key, document)
    return _programs(document, ids, compiled=True)


def _programs(document: Mapping[str, Mapping[str, object]], ids: tuple[int, int] | None, *, compiled: bool) -> Programs:
    code = {name: bytes.fromhex(str(entry["code"])) for name, entry in document.items()}
    references = {
        name: tuple((int(index), str(target)) for index, target in entry["maps"])  # type: ignore[attr-defined]
        for name, entry in document.items()
    }
    return Programs(code, references, compiled, own_buffer=ids is not None, cast=ids[0] if ids else 0)


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

"""The decoder against the C compiler: both read probes/event.h and must agree on every byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netpath.ebpf import records, ring, tracer
from netpath.ebpf.programs import source_folder, source_text
from netpath.model.packet import Icmp, Icmpv6, Ipv4, Ipv6, Udp

HEADER = source_text("event.h")
COMPILER = shutil.which("cc") or shutil.which("clang")
TYPES = "".join(
    f"typedef {kind} {name};\n"
    for name, kind in (
        ("u8", "unsigned char"),
        ("u16", "unsigned short"),
        ("s16", "short"),
        ("u32", "unsigned int"),
        ("s32", "int"),
        ("u64", "unsigned long long"),
    )
)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["np_event", "np_stamp", "np_settings", "np_buffer"])
def test_the_compiler_lays_it_out_the_same(name: str, tmp_path: Path) -> None:
    layout = records.layout(HEADER, name)
    prints = "".join(f'printf("{member} %zu\\n", __builtin_offsetof(struct {name}, {member}));\n' for member in layout.names)
    source = f'#include <stdio.h>\n{TYPES}#include "event.h"\nint main(void) {{ {prints} printf("size %zu\\n", sizeof(struct {name})); }}\n'
    (tmp_path / "offsets.c").write_text(source)
    assert COMPILER is not None
    subprocess.run([COMPILER, "-I", source_folder(), "-o", tmp_path / "offsets", tmp_path / "offsets.c"], check=True)
    lines = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout.split("\n")
    compiled = {word: int(number) for word, number in (line.split() for line in lines if line)}
    assert compiled.pop("size") == layout.struct.size
    assert compiled == dict(zip(layout.names, layout.offsets, strict=True))


def test_every_member_unpacks_what_was_packed() -> None:
    layout = records.layout(HEADER, "np_event")
    values: dict[str, object] = {name: index + 1 for index, name in enumerate(layout.names)}
    values |= {"data": bytes(range(records.constant(HEADER, "NP_CAPTURE"))), "l3": -1}
    assert layout.unpack(layout.pack(values)) == values


def test_records_are_whole_lines_and_a_stamp_is_one() -> None:
    assert records.constant(HEADER, "NP_LINE") == ring.LINE
    event, stamp = records.layout(HEADER, "np_event").struct.size, records.layout(HEADER, "np_stamp").struct.size
    assert (event, stamp) == (ring.BACK_BYTES, ring.LINE)
    header = event - records.constant(HEADER, "NP_CAPTURE")
    assert [header + records.constant(HEADER, name) for name in ("NP_SHORT", "NP_MIDDLE")] == [2 * ring.LINE, 3 * ring.LINE]
    assert records.layout(HEADER, "np_buffer").struct.size == ring.FRONT_BYTES


def test_names_of_hooks_and_roles_are_the_headers() -> None:
    hooks = {value: name.removeprefix("NP_").lower() for name, value in records.enum(HEADER, "np_hook").items()}
    roles = {value: name.removeprefix("NP_").lower() for name, value in records.enum(HEADER, "np_role").items()}
    assert hooks == tracer.HOOK_NAMES
    assert roles == tracer.ROLES


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ("u8 a;\n\tu32 b;\n\tu8 c[3];", "padding"),
        ("u8 a;", "multiple of 8"),
        ("int a;", "not understood"),
        ("u16 a[4];", "arrays of bytes"),
    ],
)
def test_a_struct_that_the_compiler_would_lay_out_otherwise_is_refused(member: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        records.layout(f"struct np_x {{\n\t{member}\n}};\n", "np_x")


def test_a_missing_struct_or_enum_is_named() -> None:
    with pytest.raises(ValueError, match="np_nothing"):
        records.layout(HEADER, "np_nothing")
    with pytest.raises(ValueError, match="np_nothing"):
        records.enum(HEADER, "np_nothing")


def test_a_record_that_is_known_by_its_end_says_what_it_is_by_its_headers() -> None:
    ip, udp = Ipv4("10.0.0.1", "10.0.0.2"), Udp(1, 2)
    v6 = Ipv6("fd00::1", "fd00::2")
    assert tracer.role_of((ip, udp)) == "probe"
    assert tracer.role_of((ip, Icmp(8))) == tracer.role_of((v6, Icmpv6(128))) == "probe"
    assert tracer.role_of((ip, Icmp(0))) == tracer.role_of((v6, Icmpv6(129))) == "answer"
    assert tracer.role_of((ip, Icmp(3, 3), ip, udp)) == tracer.role_of((v6, Icmpv6(1), v6, udp)) == "error"
    assert tracer.role_of((ip, Icmp(3, 3), ip, Icmp(0))) == "error"

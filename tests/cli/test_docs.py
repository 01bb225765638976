"""The reference says what the code does: every flag, every key, every default."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import typer

from netpath.cli.main import application
from netpath.model import packet
from netpath.model import path as model
from tests.cli.command import ROOT

CLI = (ROOT / "docs/reference/cli.md").read_text()
JSON = (ROOT / "docs/reference/json.md").read_text()


def _flags() -> list[tuple[str, str]]:
    found = []
    top = typer.main.get_command(application())
    pending = [("netpath", top)]
    while pending:
        name, command = pending.pop()
        pending += [(f"{name} {each}", inner) for each, inner in getattr(command, "commands", {}).items()]
        for parameter in command.params:
            found += [(name, flag) for flag in parameter.opts if flag.startswith("--") and flag not in ("--help", "--version")]
    return found


def test_every_flag_is_in_the_reference() -> None:
    missing = [each for each in _flags() if f"`{each[1]}" not in CLI and f"[{each[1]}" not in CLI]
    assert not missing
    assert len(_flags()) > 25


def test_every_flag_of_the_reference_exists() -> None:
    known = {flag for _, flag in _flags()} | {"--debug", "--no-color", "--help"}
    assert set(re.findall(r"`\[?(--[a-z0-9-]+)", CLI)) <= known


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            field.name
            for kind in (
                model.Stats, model.Hop, model.Stage, model.RuleRef, model.Translation, model.Drop, model.Delivery, model.Path,
                model.PathMtu, model.Prediction, model.Completeness, model.ProbeCost, model.Trace,
                packet.Ethernet, packet.Vlan, packet.Ipv4, packet.Ipv6, packet.Udp, packet.Tcp, packet.Icmp, packet.VxlanHeader,
                packet.Opaque,
            )
            for field in fields(kind)
        }
    ),
)  # fmt: skip
def test_every_key_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in JSON


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"

"""The reference says what the code does: every flag, every key, every default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

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


def _links(page: Path) -> set[Path]:
    """The files that a page links to."""
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


def test_every_page_is_linked_and_every_link_leads_somewhere() -> None:
    pages = set((ROOT / "docs").rglob("*.md"))
    start = ROOT / "docs" / "README.md"
    assert pages <= _links(start) | {start}, "docs/README.md does not link to every page"
    dead = {(page.name, str(link)) for page in (*pages, ROOT / "README.md") for link in _links(page) if not link.exists()}
    assert not dead

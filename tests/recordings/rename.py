"""A recording with every device and every custom chain under another name, consistently, in the dump's own text files.

What a node's packets do can't depend on names; whoever reads names instead of state is found out here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

KEPT_DEVICES = frozenset({"lo"})


def renamed(source: Path, target: Path) -> Path:
    """A copy of a dump's folder at `target`, renamed; flows.json follows."""
    shutil.copytree(source, target)
    devices: dict[str, dict[str, str]] = {}
    for folder in sorted(path.parent for path in target.glob("*/link.json")):
        links = json.loads((folder / "link.json").read_text())
        names = [link["ifname"] for link in links if link["ifname"] not in KEPT_DEVICES]
        # A new name sorts the other way round and has a dot and a dash in it, as names may.
        devices[folder.name] = {name: f"q{len(names) - number}.x-{folder.name[-2:]}" for number, name in enumerate(names)}
        chains = _chains(folder)
        for file in folder.iterdir():
            text = file.read_text()
            if file.suffix == ".json":
                if text.strip():
                    file.write_text(json.dumps(_walk(json.loads(text), {**devices[folder.name], **chains})))
            elif file.suffix == ".save":
                file.write_text(_save(text, devices[folder.name], chains))
            elif file.name == "sysctl.txt":
                file.write_text(_sysctl(text, devices[folder.name]))
    flows = json.loads((target / "flows.json").read_text())
    for flow in flows:
        for hop in (*flow.get("request_hops", ()), *flow.get("reply_hops", ()), *(flow.get("icmp") or ())):
            hop["dev"] = devices[hop["netns"]].get(hop["dev"], hop["dev"])
    (target / "flows.json").write_text(json.dumps(flows))
    return target


def _chains(folder: Path) -> dict[str, str]:
    """Custom chains: those that iptables-save lists without a policy."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("ip*tables-*.save")):
        for name in re.findall(r"^:(\S+) - ", file.read_text(), flags=re.M):
            found.setdefault(name, f"chain{len(found)}-of-nobody")
    return found


def _walk(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _walk(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_walk(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def _save(text: str, devices: dict[str, str], chains: dict[str, str]) -> str:
    lines = []
    for line in text.splitlines():
        if line.startswith(":"):
            name, space, rest = line[1:].partition(" ")
            lines.append(f":{chains.get(name, name)}{space}{rest}")
            continue
        words = line.split(" ")
        for number, word in enumerate(words[:-1]):
            if word in ("-i", "-o", "--in-interface", "--out-interface", "--physdev-in", "--physdev-out"):
                words[number + 1] = devices.get(words[number + 1], words[number + 1])
            elif word in ("-A", "-j", "-g"):
                words[number + 1] = chains.get(words[number + 1], words[number + 1])
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _sysctl(text: str, devices: dict[str, str]) -> str:
    slashed = {name.replace(".", "/"): new.replace(".", "/") for name, new in devices.items()}

    def one(match: re.Match[str]) -> str:
        return f"{match[1]}{slashed.get(match[2], match[2])}{match[3]}"

    return re.sub(r"^(net\.ipv[46]\.(?:conf|neigh)\.)([^.]+)(\.)", one, text, flags=re.M)

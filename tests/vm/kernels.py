"""Debian kernel packages of several releases, fetched by apt and unpacked into a cache; nothing is installed.

Releases that the machine's apt does not list (bullseye, bookworm-backports) get package lists of their own in the cache: apt
reads them from the mirror that the machine is configured for, and checks their signatures as ever.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("NETPATH_KERNEL_CACHE", "/var/cache/netpath/kernels"))
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_META = "linux-image-amd64"


class GuestUnavailable(Exception):
    """No guest can be had here; the text says what was tried, and what is missing."""


@dataclass(frozen=True)
class Source:
    """Where a series of kernels is packaged."""

    series: str
    """``6.1``"""
    suite: str | None
    """The Debian suite; None: what the machine's own apt offers."""


SOURCES = (Source("6.1", None), Source("5.10", "bullseye"), Source("6.12", "bookworm-backports"))


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    series: str
    release: str
    tree: Path

    @property
    def modules(self) -> Path:
        return self.tree / "lib/modules" / self.release

    @property
    def image(self) -> Path:
        """What QEMU boots: the ELF kernel, or the packaged image where that holds none that can be unpacked here."""
        unpacked = self.tree / "vmlinux"
        return unpacked if unpacked.exists() else self.tree / f"boot/vmlinuz-{self.release}"


def fetch(series: str) -> Kernel:
    """The newest kernel of a series, from the cache or by apt. Raises GuestUnavailable, whose text says what was tried."""
    source = {each.series: each for each in SOURCES}[series]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            package = _resolve(source)
        except GuestUnavailable:
            # Without a network the newest one that is here is good enough.
            here = sorted(CACHE.glob(f"linux-image-{series}.*"))
            if not here:
                raise
            package = here[-1].name
        tree = CACHE / package
        if not tree.is_dir():
            _unpack(source, package, tree)
    (release,) = [path.name for path in (tree / "lib/modules").iterdir()]
    return Kernel(series, release, tree)


def _unpack(source: Source, package: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        done = _apt(source, "apt-get", "download", package, cwd=scratch)
        archives = list(Path(scratch).glob("*.deb"))
        if done.returncode or not archives:
            raise GuestUnavailable(f"apt-get download {package} ({_where(source)}): {' '.join(done.stderr.split())[-200:]}")
        unpacked = Path(scratch) / "tree"
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], check=True)
        (release,) = [path.name for path in (unpacked / "lib/modules").iterdir()]
        kernel = unpack_kernel((unpacked / f"boot/vmlinuz-{release}").read_bytes())
        if kernel is not None:
            (unpacked / "vmlinux").write_bytes(kernel)
        subprocess.run(["depmod", "-b", str(unpacked), release], check=True)
        unpacked.rename(tree)


def _where(source: Source) -> str:
    return f"suite {source.suite}" if source.suite is not None else "the configured suites"


def _apt(source: Source, *command: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run apt-get or apt-cache, for a foreign suite with lists of its own."""
    options = ["-o", "APT::Sandbox::User=root"]
    if source.suite is not None:
        folder = CACHE / f"apt-{source.suite}"
        options += ["-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=-"]
        options += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache", "-o", "Acquire::Languages=none"]
    return subprocess.run([command[0], *options, *command[1:]], cwd=cwd, capture_output=True, text=True, check=False)


def _mirror() -> str:
    """The Debian mirror that this machine's apt is configured for."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    sites = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    for site in sites:
        if "security" not in site:
            return site
    raise GuestUnavailable("apt has no Debian mirror configured (apt-get indextargets)")


def _list(source: Source) -> None:
    """Package lists of a suite that the machine's apt does not have."""
    folder = CACHE / f"apt-{source.suite}"
    if not (folder / "listed").exists():
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        signed = f"[signed-by={_KEYS}] " if _KEYS.exists() else ""
        mirror = _mirror()
        (folder / "sources.list").write_text(f"deb {signed}{mirror} {source.suite} main\n")
        done = _apt(source, "apt-get", "update")
        if done.returncode or "W: Failed" in done.stderr:
            raise GuestUnavailable(f"apt-get update of {mirror} {source.suite}: {' '.join(done.stderr.split())[-200:]}")
        (folder / "listed").touch()


def _resolve(source: Source) -> str:
    """The package that the meta package depends on."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "depmod"):
        if shutil.which(tool) is None:
            raise GuestUnavailable(f"kernels come from Debian packages, and {tool} is not here")
    if source.suite is not None:
        _list(source)
    shown = _apt(source, "apt-cache", "show", _META).stdout
    for line in shown.splitlines():
        if line.startswith("Depends:"):
            for part in line.partition(":")[2].split(","):
                name = part.strip().split(" ")[0]
                if name.startswith(f"linux-image-{source.series}."):
                    return name
    raise GuestUnavailable(f"{_where(source)} of apt has no {source.series} kernel ({_META}); apt-get update may help")


def unpack_kernel(image: bytes) -> bytes | None:
    """The ELF kernel inside an xz-compressed bzImage, which QEMU boots by PVH without the slow real-mode start; None: no such."""
    start = image.find(b"\xfd7zXZ\x00")
    while start >= 0:
        try:
            kernel = lzma.LZMADecompressor().decompress(image[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel.startswith(b"\x7fELF"):
            return kernel
        start = image.find(b"\xfd7zXZ\x00", start + 1)
    return None


def module_files(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """The files of modules and of all they depend on, dependencies first (modules.dep of depmod(8))."""
    depends: dict[str, tuple[Path, list[Path]]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        files = [kernel.modules / word for word in rest.split()]
        depends[Path(path).name.partition(".ko")[0].replace("-", "_")] = (kernel.modules / path, files)
    ordered: list[Path] = []
    for name in names:
        if name not in depends:
            continue  # built in
        own, below = depends[name]
        for file in [*reversed(below), own]:
            if file not in ordered:
                ordered.append(file)
    return ordered


def module(path: Path) -> tuple[str, bytes]:
    """A module's file name and bytes, as insmod takes them: not compressed."""
    data = path.read_bytes()
    return (path.name.removesuffix(".xz"), lzma.decompress(data)) if path.suffix == ".xz" else (path.name, data)

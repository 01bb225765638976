"""Real components for labs, unpacked into a cache folder: nothing is installed, and nothing of them starts by itself.

Debian packages are fetched by apt's own download (checked against the archive's signatures) and unpacked with dpkg-deb; their
maintainer scripts never run. The cache is ``$XDG_CACHE_HOME/netpath/guests``, else ``/var/cache/netpath/guests``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from netpath.errors import MissingError

DOCKER = ("docker.io", "containerd", "runc", "busybox-static", "libdevmapper1.02.1")
"""dockerd with everything it starts, a static busybox for its images, and the one library that a bare machine lacks."""


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) / "netpath" if home.startswith("/") else Path("/var/cache/netpath")) / "guests"


def fetch(name: str, packages: tuple[str, ...]) -> Path:
    """The root of an unpacked set of packages, fetched at the first call. Raises MissingError."""
    target = cache() / name
    marker = target / ".complete"
    wanted = "\n".join(packages)
    if marker.exists() and marker.read_text() == wanted:
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingError(f"lab: {tool} is needed to fetch {', '.join(packages)}; this mode needs Debian or Ubuntu")
    try:
        cache().mkdir(parents=True, exist_ok=True)
        lock = os.open(cache() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MissingError(f"lab: {cache()}: {error.strerror} (set XDG_CACHE_HOME to a folder that can be written)") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists() and marker.read_text() == wanted:
            return target
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{name}-") as folder:
            # apt drops to its own user for downloads, who can't write here; the archive's signatures are checked all the same.
            command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
                reason = lines[0] if lines else " ".join(done.stderr.split())
                raise MissingError(f"lab: fetching {', '.join(packages)}: {reason} (apt-get update may help)")
            root = Path(folder, "root")
            for package in sorted(Path(folder).glob("*.deb")):
                done = subprocess.run(["dpkg-deb", "-x", str(package), str(root)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise MissingError(f"lab: unpacking {package.name}: {' '.join(done.stderr.split())}")
            (root / ".complete").write_text(wanted)
            if target.exists():
                shutil.rmtree(target)
            root.rename(target)
    finally:
        os.close(lock)
    return target


def program(root: Path, name: str) -> Path:
    """An executable of an unpacked set. Raises MissingError."""
    for folder in ("usr/bin", "usr/sbin", "bin", "sbin", "usr/libexec/docker"):
        path = root / folder / name
        if path.is_file():
            return path
    raise MissingError(f"lab: {root} has no {name}; remove the folder to fetch it again")


def libraries(root: Path) -> str:
    """LD_LIBRARY_PATH for programs of an unpacked set."""
    return ":".join(str(path) for path in sorted({path.parent for path in root.glob("**/*.so.*")}))

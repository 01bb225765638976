"""Boots a Debian kernel under QEMU with this machine's root file system, runs one command in it, and returns its exit code.

The root file system is read-only by 9p under an overlay in memory; only one share is writable. There is no network device and no
disk. Kernels are Debian packages, unpacked into a cache and never installed.
"""

from __future__ import annotations

import lzma
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("NETPATH_KERNEL_CACHE", "/var/cache/netpath/kernels"))
MEMORY_MB = 2048
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


class GuestUnavailable(Exception):
    """No guest can be had here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    tree: Path

    @property
    def modules(self) -> Path:
        return self.tree / "lib/modules" / self.release


@dataclass(frozen=True)
class Outcome:
    """What a guest left: the command's exit code (None: it never finished) and all that the console showed."""

    exit_code: int | None
    console: str

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.console.splitlines()[-lines:])


def fetch(package: str = "linux-image-amd64") -> Kernel:
    """The kernel that a Debian package (or the one that a meta package depends on) holds, from the cache or from apt.

    Raises GuestUnavailable without apt, or when the package can't be downloaded.
    """
    real = _resolve(package)
    tree = CACHE / real
    if not tree.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            done = subprocess.run(
                ["apt-get", "download", "-o", "APT::Sandbox::User=root", real],
                cwd=scratch,
                capture_output=True,
                text=True,
                check=False,
            )
            archives = list(Path(scratch).glob("*.deb"))
            if done.returncode or not archives:
                raise GuestUnavailable(f"the kernel package {real} could not be downloaded: {done.stderr.strip()[-200:]}")
            unpacked = Path(scratch) / "tree"
            subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], check=True)
            (release,) = [path.name for path in (unpacked / "lib/modules").iterdir()]
            (unpacked / "vmlinux").write_bytes(unpack_kernel((unpacked / f"boot/vmlinuz-{release}").read_bytes()))
            subprocess.run(["depmod", "-b", str(unpacked), release], check=True)
            unpacked.rename(tree)
    (release,) = [path.name for path in (tree / "lib/modules").iterdir()]
    return Kernel(release, tree)


def _resolve(package: str) -> str:
    if shutil.which("apt-cache") is None:
        raise GuestUnavailable("kernels come from Debian packages, and apt-cache is not here")
    shown = subprocess.run(["apt-cache", "show", package], capture_output=True, text=True, check=False).stdout
    if not shown:
        raise GuestUnavailable(f"apt knows no package {package} (apt-get update?)")
    for line in shown.splitlines():
        if line.startswith("Depends:"):
            for part in line.partition(":")[2].split(","):
                name = part.strip().split(" ")[0]
                if name.startswith("linux-image-"):
                    return name
    return package


def unpack_kernel(image: bytes) -> bytes:
    """The ELF kernel inside an xz-compressed bzImage, which QEMU boots by PVH without the slow real-mode start."""
    start = image.find(b"\xfd7zXZ\x00")
    while start >= 0:
        try:
            kernel = lzma.LZMADecompressor().decompress(image[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel.startswith(b"\x7fELF"):
            return kernel
        start = image.find(b"\xfd7zXZ\x00", start + 1)
    raise GuestUnavailable("the kernel image holds no xz-compressed ELF kernel")


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


def newc(entries: Sequence[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the newc format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /ro /rw /new /share
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in @MODULES@; do $b insmod /m/$m || echo "guest: insmod $m failed"; done
opt=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$opt root /ro || echo "guest: no root"
$b mount -t tmpfs tmpfs /rw
$b mkdir /rw/up /rw/work
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work overlay /new || echo "guest: no overlay"
for d in proc sys dev run tmp; do $b mkdir -p /new/$d; done
$b mount -t proc proc /new/proc
$b mount -t sysfs sys /new/sys
$b mount -t devtmpfs dev /new/dev
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts devpts /new/dev/pts
$b mount -t tmpfs tmpfs /new/dev/shm
$b mount -t tmpfs tmpfs /new/run
$b mount -t tmpfs tmpfs /new/tmp
$b mount -t tracefs trace /new/sys/kernel/tracing 2>/dev/null
$b mkdir -p /new/run/share /new/lib/modules
$b mount -t 9p -o $opt share /new/run/share || echo "guest: no share"
$b mount -o bind /ro@TREE@/lib/modules /new/lib/modules || echo "guest: no modules"
for d in @KEEP@; do $b mkdir -p /new$d; $b mount -o bind /ro$d /new$d || echo "guest: no $d"; done
$b ip link set lo up
$b chroot /new /bin/sh /run/share/command
echo $? > /new/run/share/exit
$b sync
$b poweroff -f
"""


def boot(kernel: Kernel, command: str, share: Path, timeout: float = 600, keep: Sequence[Path] = ()) -> Outcome:
    """Boot `kernel`, run the shell text `command` as root with `share` at /run/share, and power off.

    The guest's root is this machine's own, so paths are the same on both sides; what it writes outside the share is lost.
    The guest has a /tmp and a /run of its own; folders in `keep` are there all the same, wherever they are.
    A guest that panics or hangs has `exit_code` None.
    """
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")):
        if shutil.which(program) is None:
            raise GuestUnavailable(f"{program} is not installed: apt-get install --no-install-recommends {package}")
    (share / "command").write_text(command)
    (share / "exit").unlink(missing_ok=True)
    files = module_files(kernel, BOOT_MODULES)
    init = _INIT.replace("@MODULES@", " ".join(path.name for path in files)).replace("@TREE@", str(kernel.tree))
    init = init.replace("@KEEP@", " ".join(shlex.quote(str(path)) for path in keep))
    busybox = Path(shutil.which("busybox") or "busybox").read_bytes()
    directory = stat.S_IFDIR | 0o755
    entries = [(name, directory, b"") for name in ("bin", "m")]
    entries += [("init", stat.S_IFREG | 0o755, init.encode()), ("bin/busybox", stat.S_IFREG | 0o755, busybox)]
    entries += [(f"m/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in files]
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "initrd"
        archive.write_bytes(newc(entries))
        arguments = [
            "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", str(MEMORY_MB),
            "-nodefaults", "-no-reboot", "-nic", "none", "-display", "none", "-serial", "stdio",
            "-kernel", str(kernel.tree / "vmlinux"), "-initrd", str(archive),
            "-append", "console=ttyS0 panic=-1 oops=panic mitigations=off tsc=reliable quiet",
            "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={share},mount_tag=share,security_model=none,multidevs=remap",
        ]  # fmt: skip
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            raw, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raw, _ = process.communicate()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    console = raw.decode(errors="replace")
    try:
        return Outcome(int((share / "exit").read_text()), console)
    except (OSError, ValueError):
        return Outcome(None, console)

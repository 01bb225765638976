"""Boots a Debian kernel under QEMU with this machine's root file system, runs one command in it, and returns its exit code.

The root file system is read-only by 9p under an overlay in memory; only one share is writable. There is no network device and no
disk.
"""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.kernels import GuestUnavailable, Kernel, module, module_files

MEMORY_MB = 2048
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True)
class Outcome:
    """What a guest left: the command's exit code (None: it never finished) and all that the console showed."""

    exit_code: int | None
    console: str

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.console.splitlines()[-lines:])


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
# The kernel starts modprobe in the first root file system, which is this archive: modules are loaded on demand as on any machine.
printf '#!/bin/busybox sh\nexec /bin/busybox chroot /new /sbin/modprobe "$@"\n' > /bin/modprobe
$b chmod 755 /bin/modprobe
echo /bin/modprobe > /proc/sys/kernel/modprobe
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
    modules = [module(path) for path in module_files(kernel, BOOT_MODULES)]
    init = _INIT.replace("@MODULES@", " ".join(name for name, _ in modules)).replace("@TREE@", str(kernel.tree))
    init = init.replace("@KEEP@", " ".join(shlex.quote(str(path)) for path in keep))
    busybox = Path(shutil.which("busybox") or "busybox").read_bytes()
    directory = stat.S_IFDIR | 0o755
    entries = [(name, directory, b"") for name in ("bin", "m")]
    entries += [("init", stat.S_IFREG | 0o755, init.encode()), ("bin/busybox", stat.S_IFREG | 0o755, busybox)]
    entries += [(f"m/{name}", stat.S_IFREG | 0o644, data) for name, data in modules]
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "initrd"
        archive.write_bytes(newc(entries))
        arguments = [
            "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", str(MEMORY_MB),
            "-nodefaults", "-no-reboot", "-nic", "none", "-display", "none", "-serial", "stdio",
            "-kernel", str(kernel.image), "-initrd", str(archive),
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

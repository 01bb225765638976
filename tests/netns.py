"""Network namespaces for tests: random names, gone when the block ends, whatever happened in it."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Netns:
    """A namespace that iproute2 knows by `name`."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def inode(self) -> int:
        return Path(self.path).stat().st_ino

    def ip(self, *words: str) -> str:
        """Run ``ip -n NAME ...``; raises CalledProcessError with ip's own words."""
        return run("ip", "-n", self.name, *words)

    def batch(self, *lines: str) -> None:
        """Several ip commands in one process."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    def run(self, *words: str) -> str:
        """Run a program inside."""
        return run("nsenter", f"--net={self.path}", *words)

    def sysctl(self, name: str, value: str | int) -> None:
        self.call(lambda: Path("/proc/sys", *name.split(".")).write_text(str(value)))

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that has entered the namespace, and return its result."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(descriptor, 0x40000000) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), self.path)
                finally:
                    os.close(descriptor)
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives in the namespace."""
        return self.call(lambda: socket.socket(family, kind, protocol))


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def namespaces(count: int) -> Iterator[tuple[Netns, ...]]:
    """`count` empty namespaces with lo up."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            netns = Netns(f"npt{secrets.token_hex(4)}")
            run("ip", "netns", "add", netns.name)
            stack.callback(subprocess.run, ["ip", "netns", "del", netns.name], check=False, capture_output=True)
            netns.ip("link", "set", "lo", "up")
            made.append(netns)
        yield tuple(made)


@contextmanager
def veth_pair(*, mtu: int = 1500) -> Iterator[tuple[Netns, Netns]]:
    """Two namespaces joined by a veth pair: 10.9.0.1/24, fd09::1/64 on `a` and .2, ::2 on `b`."""
    with namespaces(2) as (a, b):
        run(
            "ip",
            "link",
            "add",
            "a0",
            "mtu",
            str(mtu),
            "netns",
            a.name,
            "type",
            "veth",
            "peer",
            "b0",
            "mtu",
            str(mtu),
            "netns",
            b.name,
        )
        for netns, device, number in ((a, "a0", 1), (b, "b0", 2)):
            netns.batch(
                f"addr add 10.9.0.{number}/24 dev {device}",
                f"addr add fd09::{number}/64 dev {device} nodad",
                f"link set {device} up",
            )
        yield a, b

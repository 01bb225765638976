"""Configuring a namespace's network, through pyroute2 on one netlink socket that lives in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from netpath.errors import MissingError, NetpathError
from netpath.lab import netns

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Host = ipaddress.IPv4Address | ipaddress.IPv6Address

_NTF_SELF = 0x02
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4
_IFA_F_NODAD = 0x02
_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0A
_ETHTOOL_STXCSUM = 0x17


class Cancelled(Exception):
    """The build was asked to stop."""


class Space:
    """A namespace of the lab, open for configuration by the lab's worker thread only."""

    def __init__(self, name: str, cancelled: Callable[[], bool]) -> None:
        """Make the namespace. Its name must be recorded already."""
        from pyroute2 import IPRoute

        self.name = name
        self._cancelled = cancelled
        self._stack = contextlib.ExitStack()
        self._index: dict[str, int] = {}
        self._check()
        self.descriptor = netns.create(name)
        self._stack.callback(os.close, self.descriptor)
        self._route = IPRoute()
        self._stack.callback(self._route.close)
        # The values of a fresh kernel: new namespaces copy some from the machine's own (net.core.devconf_inherit_init_net).
        self.sysctl("net.ipv4.conf.all.rp_filter", 0)
        self.sysctl("net.ipv4.conf.default.rp_filter", 0)
        self.sysctl("net.ipv4.conf.all.forwarding", 0)
        self.sysctl("net.ipv4.conf.default.forwarding", 0)
        # Addresses are usable at once: nobody else is here to duplicate them.
        self.sysctl("net.ipv6.conf.all.accept_dad", 0, optional=True)
        self.sysctl("net.ipv6.conf.default.accept_dad", 0, optional=True)
        self.sysctl("net.ipv6.conf.default.router_solicitations", 0, optional=True)

    def __enter__(self) -> Space:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled

    def _ask(self, what: str, function: Callable[[], Any]) -> Any:
        from pyroute2.netlink.exceptions import NetlinkError

        self._check()
        try:
            return function()
        except NetlinkError as error:
            raise NetpathError(f"lab: {self.name}: {what}: {os.strerror(error.code) if error.code else error}") from error

    def sysctl(self, name: str, value: int | str, *, optional: bool = False) -> None:
        """Write a sysctl; a ``/`` in a device's name is a dot there. `optional`: leave it if this kernel has none."""
        self._check()
        netns.enter(self.descriptor)
        path = Path("/proc/sys", *[part.replace("/", ".") for part in name.split(".")])
        if optional and not path.exists():
            return
        try:
            path.write_text(str(value))
        except OSError as error:
            raise NetpathError(f"lab: {self.name}: sysctl {name} = {value}: {error.strerror}") from error

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a program in the namespace and give its output."""
        self._check()
        program = shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise MissingError(f"lab: {words[0]} is not installed (apt-get install iptables nftables)")
        # The child is made by this thread, and so begins in this thread's namespace.
        netns.enter(self.descriptor)
        done = subprocess.run([program, *words[1:]], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NetpathError(f"lab: {self.name}: {words[0]} failed: {' '.join(done.stderr.split())}")
        return done.stdout

    def load(self, module: str) -> None:
        """Have a kernel module loaded, if it can be; what it brings is looked for by whoever needs it."""
        self._check()
        program = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is not None:
            subprocess.run([program, "--quiet", module], capture_output=True, check=False)

    def index(self, device: str) -> int:
        if device not in self._index:
            found = self._ask(f"device {device}", lambda: self._route.link_lookup(ifname=device))
            if not found:
                raise NetpathError(f"lab: {self.name}: no device {device}")
            self._index[device] = found[0]
        return self._index[device]

    def mac(self, device: str) -> str:
        index = self.index(device)
        link = self._ask(f"device {device}", lambda: self._route.get_links(index)[0])
        return str(link.get("address"))

    def link(self, device: str, kind: str, **attributes: Any) -> None:
        """Make a device."""
        try:
            self._ask(f"making {device}", lambda: self._route.link("add", ifname=device, kind=kind, **attributes))
        except NetpathError as error:
            if getattr(error.__cause__, "code", None) == errno.EOPNOTSUPP:
                raise MissingError(f"lab: this kernel makes no {kind} devices (modprobe {kind} may help)") from error
            raise

    def veth(self, device: str, peer: str, other: Space, *, mtu: int = 1500, queue: int | None = None) -> None:
        """A veth pair: `device` here, `peer` in `other`. `queue` is both ends' txqueuelen."""
        extra: dict[str, Any] = {} if queue is None else {"txqlen": queue}
        far = {"ifname": peer, "net_ns_fd": other.descriptor, "mtu": mtu, **extra}
        self.link(device, "veth", peer=far, mtu=mtu, **extra)

    def set(self, device: str, **attributes: Any) -> None:
        index = self.index(device)
        self._ask(f"setting {attributes} on {device}", lambda: self._route.link("set", index=index, **attributes))

    def up(self, *devices: str) -> None:
        for device in devices:
            self.set(device, state="up")

    def settle(self, *devices: str) -> None:
        """Make the kernel act on a change of these devices' carrier now.

        Otherwise it may take a second until their operational state follows (net/core/link_watch.c). Asking a device for its
        link is what makes it catch up (net/ethtool/ioctl.c, ethtool_op_get_link). Ports before their bridge.
        """
        self._check()
        netns.enter(self.descriptor)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for device in devices:
                answer = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_GLINK, 0))
                request = struct.pack("16sP", device.encode(), ctypes.addressof(answer))
                # Not every device can be asked; those that can't need no catching up.
                with contextlib.suppress(OSError):
                    fcntl.ioctl(sock, _SIOCETHTOOL, request)

    def whole_checksums(self, device: str) -> None:
        """Have what is sent by this device carry its transport checksum from the start (``ethtool -K DEVICE tx off``)."""
        self._check()
        netns.enter(self.descriptor)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            wanted = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP", device.encode(), ctypes.addressof(wanted)))

    def port(self, device: str, bridge: str, *, hairpin: bool = False) -> None:
        """Make `device` a port of `bridge`."""
        self.set(device, master=self.index(bridge))
        if hairpin:
            index = self.index(device)
            self._ask(f"hairpin on {device}", lambda: self._route.brport("set", index=index, mode=1))

    def address(self, device: str, address: Address, *, broadcast: bool = False) -> None:
        index = self.index(device)
        extra: dict[str, Any] = {}
        if broadcast and address.version == 4:
            extra["broadcast"] = str(address.network.broadcast_address)
        if address.version == 6:
            extra["flags"] = _IFA_F_NODAD
        self._ask(
            f"address {address} on {device}",
            lambda: self._route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **extra),
        )

    def route(
        self,
        destination: Network | str,
        device: str | None = None,
        gateway: Host | None = None,
        *,
        onlink: bool = False,
        protocol: int = 3,
        **attributes: Any,
    ) -> None:
        """Add a route (`protocol` 3 is RTPROT_BOOT, what ip route and the Go library leave). ``default`` needs a gateway."""
        request: dict[str, Any] = {"proto": protocol, **attributes}
        if destination == "default":
            request["dst"] = "default"
            request["family"] = socket.AF_INET6 if gateway is not None and gateway.version == 6 else socket.AF_INET
        else:
            request["dst"] = str(destination)
        if device is not None:
            request["oif"] = self.index(device)
        if gateway is not None:
            request["gateway"] = str(gateway)
        if onlink:
            request["flags"] = _RTNH_F_ONLINK
        self._ask(f"route {destination}", lambda: self._route.route("add", **request))

    def unroute(self, destination: Network, device: str) -> None:
        """Delete the route to this prefix that came with an address (RTPROT_KERNEL, scope link)."""
        index = self.index(device)
        self._ask(
            f"deleting route {destination}",
            lambda: self._route.route("del", dst=str(destination), oif=index, proto=2, scope=253),
        )

    def neighbour(self, device: str, address: Host, mac: str) -> None:
        """A permanent neighbour."""
        index = self.index(device)
        self._ask(
            f"neighbour {address}",
            lambda: self._route.neigh("add", dst=str(address), lladdr=mac, ifindex=index, state=_NUD_PERMANENT),
        )

    def fdb(self, device: str, mac: str, remote: Host) -> None:
        """A permanent FDB entry of a vxlan device."""
        index = self.index(device)
        self._ask(
            f"FDB entry {mac}",
            lambda: self._route.fdb("add", ifindex=index, lladdr=mac, dst=str(remote), state=_NUD_PERMANENT, flags=_NTF_SELF),
        )

"""The process that sends: it enters one network namespace and serves its parent over a socket pair.

Started by `netpath.probe.injector` as ``python -m netpath.probe.sender FD``. It is a process of its own because a network
namespace is entered for good, and because importing scapy can then overlap with everything else that a trace prepares.
It ends when its parent does: the socket closes.
"""

from __future__ import annotations

import contextlib
import errno
import random
import selectors
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from netpath.model import nonce as layout
from netpath.probe import build
from netpath.probe.messages import Answer, Enter, Entered, Failed, Preload, Send, Sent, Shot
from netpath.setns import enter_path

IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0
IP_PMTUDISC_PROBE = 3
"""Sets DF and ignores the path MTU that the kernel remembers, so that the path itself decides (linux/in.h)."""
IPV6_MTU_DISCOVER = 23
IPV6_DONTFRAG = 62
SO_MARK = 36

FRESH_KEPT = 64
"""Sockets of flows of one probe that stay open, so that an answer to one is not refused by an ICMP error."""

_REQUEST: Any = msgspec.json.Decoder(Preload | Enter | Send)


class Unroutable(OSError):
    """The kernel's route lookup refuses the destination."""


class Sender:
    """The state after `Enter`: sockets in the namespace, and what every probe has in common."""

    def __init__(self, spec: Enter) -> None:
        self.spec = spec
        self.family = socket.AF_INET6 if ":" in spec.dst else socket.AF_INET
        self.source, self.sport = "", spec.sport
        self._holder: socket.socket | None = None
        self._fresh: deque[socket.socket] = deque()
        self._ports = (0, 0)
        self._port = 0
        enter_path(spec.netns_path)
        self.source = spec.src or self._kernel_source()
        self.output = self._open()
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        self._ports = (int(first), int(last))
        self._port = random.randint(*self._ports)

    def _kernel_source(self) -> str:
        """The address that the kernel's route lookup chooses: connecting a datagram socket asks without sending."""
        with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
            self._common(probe)
            try:
                probe.connect((self.spec.dst, self.spec.dport or 9))
            except OSError as error:
                raise Unroutable(error.errno, error.strerror) from error
            return str(probe.getsockname()[0]).split("%")[0]

    def _common(self, sock: socket.socket) -> None:
        spec = self.spec
        if spec.mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, spec.mark)
        if spec.bound_device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec.bound_device.encode())
        mode = IP_PMTUDISC_PROBE if spec.df else IP_PMTUDISC_DONT
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, spec.ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, int(spec.df))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, spec.ttl)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)

    def _open(self) -> socket.socket:
        spec = self.spec
        if spec.protocol == "udp":
            sock = socket.socket(self.family, socket.SOCK_DGRAM)
            self._common(sock)
            # Bound to the wildcard unless the user named an address: the route lookup then starts without a source, as an
            # application's would. The socket also takes the answers, which would else be refused by an ICMP error.
            sock.bind((spec.src or "", spec.sport or 0))
            self.sport = sock.getsockname()[1]
        elif spec.protocol == "tcp":
            # Holds the port, so that no application gets it meanwhile. It never listens: the kernel resets what is answered.
            self._holder = socket.socket(self.family, socket.SOCK_STREAM)
            self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._holder.bind((self.source, spec.sport or 0))
            self.sport = self._holder.getsockname()[1]
            sock = self._raw(socket.IPPROTO_TCP)
        else:
            sock = self._raw(socket.IPPROTO_ICMPV6 if self.family == socket.AF_INET6 else socket.IPPROTO_ICMP)
            self.sport = None
        sock.setblocking(False)
        return sock

    def _raw(self, protocol: int) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_RAW, protocol)
        self._common(sock)
        if self.spec.src:
            sock.bind((self.spec.src, 0))
        return sock

    def _bytes(self, sequence: int, size: int, sport: int | None, identifier: int) -> bytes:
        spec = self.spec
        if spec.protocol == "udp":
            return layout.pack(spec.nonce, sequence, size)
        if spec.protocol == "tcp":
            assert sport is not None and spec.dport is not None
            number = layout.tcp_sequence(spec.tcp_base, sequence)
            return build.tcp_syn(self.source, spec.dst, sport, spec.dport, number)
        return build.echo(6 if self.family == socket.AF_INET6 else 4, identifier, spec.nonce, sequence, size)

    def _new_flow(self) -> socket.socket:
        """A socket with the next free source port. The kernel's own choice is random, and would come back to a flow that is known."""
        udp = self.spec.protocol == "udp"
        sock = socket.socket(self.family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        self._fresh.append(sock)
        self._common(sock)
        sock.setblocking(False)
        first, last = self._ports
        for attempt in range(last - first + 1):
            self._port = self._port + 1 if first <= self._port < last else first
            try:
                sock.bind((self.spec.src or "" if udp else self.source, self._port))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or attempt == last - first:
                    raise
        while len(self._fresh) > FRESH_KEPT:
            self._fresh.popleft().close()
        return sock

    def send(self, sequence: int, size: int | None = None, fresh: bool = False) -> Shot:
        """Send one probe; an errno says why the kernel would not take it (EMSGSIZE, ENETUNREACH, EPERM, ...)."""
        output, sport, identifier = self.output, self.sport, self.spec.identifier
        if fresh and self.spec.protocol == "icmp":
            identifier = (identifier + sequence) & 0xFFFF
        elif fresh:
            flow = self._new_flow()
            sport = flow.getsockname()[1]
            output = flow if self.spec.protocol == "udp" else output
        data = self._bytes(sequence, self.spec.size if size is None else size, sport, identifier)
        port = self.spec.dport or 0 if self.spec.protocol == "udp" else 0
        code = 0
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        try:
            output.sendto(data, (self.spec.dst, port))
        except OSError as error:
            # An ICMP error of an earlier probe is reported here once (ECONNREFUSED and the like); it is not this send's.
            code = error.errno or errno.EIO
            if code in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPROTO):
                code = 0
                before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                try:
                    output.sendto(data, (self.spec.dst, port))
                except OSError as again:
                    code = again.errno or errno.EIO
        return Shot(sequence=sequence, time_ns=before, error=code)

    def receive(self) -> Answer | None:
        """One answer to a UDP or echo probe; anything else that arrives is dropped without a word."""
        try:
            data = self.output.recv(65535)
        except OSError:
            return None
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        position = data.find(self.spec.nonce.to_bytes(8, "big"))
        head = layout.unpack(data[position:]) if position >= 0 else None
        # A raw ICMP socket also sees requests that come in (loopback): type 8 or 128 in the first byte of the message.
        if head is None or (self.spec.protocol == "icmp" and position >= 8 and data[position - 8] in (8, 128)):
            return None
        return Answer(sequence=head[1], time_ns=now)


def serve(channel: socket.socket) -> None:
    """Serve requests until the parent closes the channel."""
    sender: Sender | None = None
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    encoder = msgspec.json.Encoder()
    while True:
        for key, _ in selector.select():
            if key.fileobj is not channel:
                answer = sender.receive() if sender else None
                if answer is not None:
                    channel.send(encoder.encode(answer))
                continue
            raw = channel.recv(65536)
            if not raw:
                return
            request = _REQUEST.decode(raw)
            reply: Entered | Sent | Failed
            try:
                if isinstance(request, Preload):
                    build.preload()
                    continue
                if isinstance(request, Enter):
                    sender = Sender(request)
                    if request.protocol != "tcp":
                        selector.register(sender.output, selectors.EVENT_READ)
                    reply = Entered(source=sender.source, sport=sender.sport, netns=Path("/proc/thread-self/ns/net").stat().st_ino)
                elif sender is None:
                    reply = Failed(error=errno.EINVAL, text="asked to send before a namespace was entered")
                else:
                    reply = Sent(tuple(sender.send(number, request.size, request.fresh) for number in request.sequences))
            except OSError as error:
                unroutable = isinstance(error, Unroutable)
                reply = Failed(error=error.errno or errno.EIO, text=error.strerror or str(error), unroutable=unroutable)
            channel.send(encoder.encode(reply))


def main() -> None:
    # A parent that ends with something of ours unread resets the channel instead of closing it.
    with contextlib.suppress(ConnectionError):
        serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()

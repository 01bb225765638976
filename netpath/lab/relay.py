"""A user-space tunnel between nodes, as Flannel's UDP backend has it. Run as ``python -I relay.py LAB``, stdlib only.

It reads one JSON line from stdin: ``netns``, ``device``, ``local``, ``port`` and ``routes`` (prefix, address of its node). If stdin
closes before that (the builder died), it ends. Then it makes the TUN device, answers ``ready``, and carries packets: from the
device by UDP to the node that holds the destination's subnet, and from UDP to the device. The payload is the IP packet, nothing
else. Each relay takes one from the packet's TTL (flannel, backend/udp/proxy_amd64.c). The device lives as long as the relay.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_LARGEST = 65536
_BURST = 64
"""Packets taken from one side before the other gets its turn."""


def forwarded(packet: bytes) -> bytes | None:
    """The IPv4 packet with its TTL one less and the checksum updated (RFC 1624, equation 3); None if it may go no further."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[8] <= 1:
        return None
    old = packet[8] << 8 | packet[9]
    new = old - 0x100
    checksum = packet[10] << 8 | packet[11]
    total = (~checksum & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return b"".join((packet[:8], new.to_bytes(2, "big"), (~total & 0xFFFF).to_bytes(2, "big"), packet[12:]))


class Relay:
    """One node's end of the tunnel."""

    def __init__(self, device: int, sock: socket.socket, port: int, routes: list[tuple[str, str]]) -> None:
        self.device, self.sock, self.port = device, sock, port
        networks = [(ipaddress.IPv4Network(prefix), peer) for prefix, peer in routes]
        self.routes = [(int(network.network_address), int(network.netmask), peer) for network, peer in networks]

    def peer(self, packet: bytes) -> str | None:
        """The node to send a packet to."""
        destination = int.from_bytes(packet[16:20], "big")
        return next((peer for network, mask, peer in self.routes if destination & mask == network), None)

    def from_device(self) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(self.device, _LARGEST)
            except BlockingIOError:
                return
            changed = forwarded(packet)
            if changed is None or (peer := self.peer(packet)) is None:
                continue
            try:
                self.sock.sendto(changed, (peer, self.port))
            except OSError:
                continue  # no route, too large, full: a lost packet, as on any link

    def from_network(self) -> None:
        for _ in range(_BURST):
            try:
                packet = self.sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about something sent
            changed = forwarded(packet)
            if changed is None:
                continue
            try:
                os.write(self.device, changed)
            except OSError:
                continue

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.device, select.POLLIN)
        poll.register(self.sock, select.POLLIN)
        while True:
            for descriptor, event in poll.poll():
                if event & select.POLLERR and descriptor == self.device:
                    return  # the device was deleted
                if descriptor == self.device:
                    self.from_device()
                else:
                    self.from_network()


def main() -> None:
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(request["netns"], os.O_RDONLY)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", request["device"].encode(), _IFF_TUN | _IFF_NO_PI))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((request["local"], request["port"]))
    relay = Relay(device, sock, request["port"], request["routes"])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    relay.run()


if __name__ == "__main__":
    main()

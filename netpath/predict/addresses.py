"""Addresses and prefixes as integers: parsing that is fast enough for tables of ten thousand routes, and address classes."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

BITS = {4: 32, 6: 128}
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


@lru_cache(maxsize=65536)
def number(address: str) -> int:
    """The integer of an address. Raises ValueError for text that is none."""
    if ":" in address:
        return int(ipaddress.IPv6Address(address.partition("%")[0]))
    parts = address.split(".")
    if len(parts) != 4:
        raise ValueError(f"not an IPv4 address: {address}")
    a, b, c, d = map(int, parts)
    return a << 24 | b << 16 | c << 8 | d


def prefix(text: str) -> tuple[int, int]:
    """(network as an integer, prefix length) of ``10.0.0.0/8``, of a bare address (a host prefix). Raises ValueError."""
    address, _, length = text.partition("/")
    if address == "default":
        return 0, 0
    bits = 128 if ":" in address else 32
    size = int(length) if length else bits
    value = number(address)
    return value >> (bits - size) << (bits - size) if size else 0, size


@lru_cache(maxsize=16384)
def within(address: str, network: str) -> bool:
    """True when `address` is inside `network`; False for another family or for text that can't be read."""
    if (":" in address) != (":" in network):
        return False
    try:
        base, size = prefix(network)
        shift = BITS[family_of(address)] - size
        return number(address) >> shift == base >> shift
    except ValueError:
        return False


def same_subnet(address: str, other: str, length: int) -> bool:
    if (":" in address) != (":" in other):
        return False
    shift = BITS[family_of(address)] - length
    return number(address) >> shift == number(other) >> shift


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or (":" in address and number(address) == 1)


def is_multicast(address: str) -> bool:
    if ":" in address:
        return number(address) >> 120 == 0xFF
    return number(address) >> 28 == 0xE


def is_zero(address: str) -> bool:
    """The unspecified address; for IPv4 anything in 0.0.0.0/8 (RFC 1122, 3.2.1.3)."""
    return number(address) == 0 if ":" in address else number(address) >> 24 == 0


def is_link_local(address: str) -> bool:
    if ":" in address:
        return number(address) >> 118 == 0x3FA
    return number(address) >> 16 == 0xA9FE


def common_bits(a: str, b: str) -> int:
    difference = number(a) ^ number(b)
    return BITS[family_of(a)] - difference.bit_length()


def multicast_mac(address: str) -> str:
    """RFC 1112, 6.4 and RFC 2464, 7."""
    value = number(address)
    if ":" in address:
        tail = value & 0xFFFFFFFF
        return "33:33:" + ":".join(f"{tail >> shift & 0xFF:02x}" for shift in (24, 16, 8, 0))
    tail = value & 0x7FFFFF
    return "01:00:5e:" + ":".join(f"{tail >> shift & 0xFF:02x}" for shift in (16, 8, 0))


def is_group_mac(mac: str) -> bool:
    """Broadcast or multicast: the lowest bit of the first byte."""
    try:
        return bool(int(mac[:2], 16) & 1)
    except ValueError:
        return False

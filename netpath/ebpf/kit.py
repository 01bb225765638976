"""What the providers of hooks share: the kernel's types, the maps, and programs loaded from one source. One for each run."""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import ExitStack

from netpath.ebpf import programs, records, sys
from netpath.ebpf.btf import Btf
from netpath.ebpf.ring import Lines, Ring, buffer
from netpath.errors import MissingError

SCRATCH_BYTES = 8 + 256 + 64
"""struct np_scratch: a flag, the front of a packet, and room to read beyond it (probes/walk.h)."""
FRAME_BYTES = 16
"""struct np_frame (probes/functions.h)."""


class Kit:
    """Made with the maps; `load` adds programs. All descriptors are closed by `stack`.

    `ring_bytes` is the event buffer's size: a power of two, a multiple of the page. Raises MissingError when the kernel refuses.
    """

    def __init__(self, types: Btf, stack: ExitStack, ring_bytes: int) -> None:
        self.types = types
        self.compile_ms = 0.0
        """What compiling the programs (or reading the cache) took."""
        self._stack = stack
        self._variants: dict[str, programs.Programs] = {}
        self._lock = threading.Lock()
        self.maps: dict[str, int] = {}
        header = programs.source_text("event.h")
        self.event, self.stamp = records.layout(header, "np_event"), records.layout(header, "np_stamp")
        self.settings = records.layout(header, "np_settings")
        self._buffer = buffer(ring_bytes, sys.possible_cpus()) if programs.modern(types) is not None else None
        for name, kind, key, value, entries in (
            ("settings", sys.MAP_ARRAY, 4, self.settings.struct.size, 1),
            ("tunnels", sys.MAP_HASH, 2, 1, 256),
            ("counters", sys.MAP_PERCPU_ARRAY, 4, 8, 4),
            ("scratch", sys.MAP_PERCPU_ARRAY, 4, SCRATCH_BYTES, 16),
        ):
            self._make(name, kind, key, value, entries)
        self.ring: Ring | Lines
        if self._buffer is not None:
            self._make("events", sys.MAP_ARRAY, 4, self._buffer.map_bytes, 1, sys.MAPPABLE)
            self.ring = Lines(self.maps["events"], self._buffer)
        else:
            self._make("events", sys.MAP_RINGBUF, 0, 0, ring_bytes)
            self.ring = Ring(self.maps["events"], ring_bytes)
        stack.callback(self.ring.close)

    def _make(self, name: str, kind: int, key: int, value: int, entries: int, flags: int = 0) -> None:
        try:
            descriptor = sys.create_map(kind, key, value, entries, f"np_{name}", flags)
        except OSError as error:
            raise MissingError(
                f"the kernel refused an eBPF map ({error.strerror}); CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed (run as root)"
            ) from error
        self._stack.callback(os.close, descriptor)
        self.maps[name] = descriptor

    def prepared(self, variant: str) -> programs.Programs:
        """The bytecode of a variant (`programs.VARIANTS`). Raises MissingError without bcc where it must be compiled."""
        with self._lock:
            if variant not in self._variants:
                started = time.perf_counter()
                if variant == "registers":
                    self._make("frames", sys.MAP_HASH, 8, FRAME_BYTES, 1024)
                self._variants[variant] = programs.prepare(self.types, variant)
                self.compile_ms += (time.perf_counter() - started) * 1000
            return self._variants[variant]

    def load(self, variant: str, kind: int, program: str, **how: int) -> int:
        """A loaded program's descriptor. Raises LoadError with the verifier's log."""
        descriptor = sys.load(kind, self.prepared(variant).linked(program, self.maps, self._buffer), program, **how)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def load_at(self, variant: str, kind: int, program: str, priority: int, **how: int) -> int:
        """The same of a program that is told its netfilter priority."""
        descriptor = sys.load(kind, self.prepared(variant).at_priority(program, self.maps, priority, self._buffer), program, **how)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def own(self, descriptor: int) -> None:
        """Close it with everything else."""
        self._stack.callback(os.close, descriptor)

    def configure(self, values: dict[str, int]) -> None:
        """Tell the programs what to look for (struct np_settings)."""
        sys.update(self.maps["settings"], struct.pack("<I", 0), self.settings.pack(values))

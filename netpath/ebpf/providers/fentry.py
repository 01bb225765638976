"""Programs where functions are entered and left, with their arguments' types known. A trampoline of the compiler's, no trap."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from netpath.ebpf import btf, sys
from netpath.ebpf.kit import Kit
from netpath.ebpf.providers.base import RETURN_0
from netpath.ebpf.providers.functions import STAGES, Functions, Site


class Fentry(Functions):
    """BPF_TRACE_FENTRY and BPF_TRACE_FEXIT (kernel commit fec56f5890d9); functions of modules since 5.11 (91cc1a99740e)."""

    name = "fentry"
    title = "fentry"
    requirement = "Linux 5.5 with BTF (5.11 for functions of modules), where the kernel lets programs onto functions"
    loss = "kprobes do the same"

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._modules: dict[str, int] = {}

    def load(self) -> None:
        _check_modules()
        super().load()

    def _load(self, site: Site) -> int:
        attach_type = sys.TRACE_FEXIT if site.leaving else sys.TRACE_FENTRY
        type_id = self.kit.types.find(btf.KIND_FUNC, site.function)
        if type_id is not None:
            return self.kit.load("typed", sys.PROG_TRACING, site.program, attach_type=attach_type, attach_btf_id=type_id)
        type_id = btf.module_function(self.kit.types, site.module, site.function) if site.module is not None else None
        module = self._module(site.module) if site.module is not None and type_id is not None else None
        if type_id is None or module is None:
            raise sys.LoadError(errno.ENOENT, "the kernel's types do not have it", "", site.program)
        return self.kit.load(
            "typed", sys.PROG_TRACING, site.program, attach_type=attach_type, attach_btf_id=type_id, attach_btf_obj=module
        )

    def _module(self, name: str) -> int | None:
        """A descriptor of a module's types."""
        if name not in self._modules:
            descriptor = sys.btf_of_module(name)
            if descriptor is None:
                return None
            self.kit.own(descriptor)
            self._modules[name] = descriptor
        return self._modules[name]

    def _attach(self, site: Site, program: int) -> int:
        return sys.open_raw_tracepoint(program, None)

    @staticmethod
    def attempt(stack: ExitStack) -> str:
        _check_modules()
        type_id = btf.read().find(btf.KIND_FUNC, "ip_rcv")
        if type_id is None:
            raise OSError(errno.ENOENT, "no BTF type for ip_rcv")
        program = sys.load(sys.PROG_TRACING, RETURN_0, "np_try", attach_type=sys.TRACE_FENTRY, attach_btf_id=type_id)
        stack.callback(os.close, program)
        stack.callback(os.close, sys.open_raw_tracepoint(program, None))
        return "loaded and attached"


def _check_modules() -> None:
    """Raise LoadError where a module is loaded whose functions the kernel does not describe, as before 5.11: kprobes reach them."""
    for module in sorted({site.module for site in STAGES if site.module is not None}):
        if Path(f"/sys/module/{module}/initstate").exists() and not btf.VMLINUX.with_name(module).exists():
            raise sys.LoadError(errno.ENOENT, f"the functions of its module {module} can't be had so", "")

"""Running a program in a namespace of a lab."""

from __future__ import annotations

import os
import signal
import sys

from netpath.lab import netns


def execute(path: str, argv: tuple[str, ...]) -> int:
    """Fork, enter the namespace at `path` in the child, become `argv`; the exit code as a shell gives it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    # The terminal sends an interrupt to both: it is the program's to answer.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pid = os.fork()
        if pid == 0:
            code = 126
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                netns.enter(descriptor)
                os.execvp(argv[0], argv)
            except FileNotFoundError:
                code = 127
                os.write(2, f"netpath: {argv[0]}: not found\n".encode())
            except OSError as error:
                os.write(2, f"netpath: {argv[0]}: {error.strerror}\n".encode())
            finally:
                os._exit(code)
        _pid, status = os.waitpid(pid, 0)
    finally:
        signal.signal(signal.SIGINT, previous)
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code

"""A process that must not outlive the one that started it, and which of its fellows are still there. Free of torch."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int) -> None:
    """Asks the kernel to SIGKILL this process when its parent ends, however the parent ends. Linux only; elsewhere it does nothing.

    Call it from the child's main thread, of a parent whose starting thread lives as long as the parent does (the kernel watches
    the thread that forked).

    Args:
        expected_parent: process id of the parent, taken before this process was started.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != expected_parent:
        # The parent died before the request was armed, so no signal will ever come.
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_torchrun(environ: Mapping[str, str]) -> None:
    """Binds a worker of torchrun to it: killing torchrun, or its process group, does not kill its workers otherwise.

    A torchrun that died before this was called is known by its store, which it serves itself: nothing listens there any more.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return
    die_with_parent(os.getppid())
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((environ["MASTER_ADDR"], int(environ["MASTER_PORT"])), timeout=1.0).close()
    except ConnectionRefusedError:
        os.kill(os.getpid(), signal.SIGKILL)
    except (OSError, KeyError, ValueError):
        pass  # joining the group will say what is wrong with the address


@dataclass(frozen=True)
class Member:
    """Where a rank runs."""

    rank: int
    host: str
    pid: int

    @classmethod
    def here(cls, rank: int) -> Member:
        """This process."""
        return cls(rank, socket.gethostname(), os.getpid())


def ended(members: Sequence[Member]) -> list[Member]:
    """Those that run on this machine no longer; of other machines nothing is known."""
    host = socket.gethostname()
    return [member for member in members if member.host == host and not _alive(member.pid)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return sys.platform != "linux"
    except OSError:
        return True
    return state not in "ZX"  # dead, but its parent has not asked after it yet

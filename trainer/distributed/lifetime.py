"""A process that must not outlive the one that started it."""

import ctypes
import os
import signal
import sys

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

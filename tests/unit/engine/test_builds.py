"""Builds of DeepSpeed's operations are said, happen once, and do not wait for the dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from trainer.engine import builds

HOLDER = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
import os; os.remove(sys.argv[1])
"""


class Builder:
    """Builds as torch does: whoever gets the baton builds, the others wait for it."""

    name = "async_io"

    def __init__(self, folder: Path):
        self.library, self.lock, self.builds = folder / f"{self.name}.so", folder / "lock", 0

    def load(self, verbose: bool) -> None:
        baton = FileBaton(str(self.lock), wait_seconds=0.01)
        if not baton.try_acquire():
            return baton.wait()
        if not self.library.exists():
            self.builds += 1
            self.library.touch()
        baton.release()


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """In a cache behind a link, as on machines where homes are elsewhere."""
    (tmp_path / "real" / Builder.name).mkdir(parents=True)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return Builder(tmp_path / "cache" / Builder.name)


def holder(lock: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_build_is_announced_once(builder, capsys):
    builds.load(builder)
    builds.load(builder)
    said = capsys.readouterr()
    assert builder.builds == 1 and said.out == "" and builder.library.exists()
    assert said.err == "Building DeepSpeed's async_io, once on this machine: about 5 minutes on two cores.\n"


def test_the_lock_of_a_killed_build_is_removed(builder, capsys):
    process = holder(builder.lock, 600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert builder.lock.exists()
    builds.load(builder)
    assert builder.builds == 1 and "was killed; removed the lock it left" in capsys.readouterr().err


def test_a_build_that_fails_is_a_sentence(builder, monkeypatch):
    def fail(verbose):
        raise RuntimeError("Error building extension:\nfatal error: disk full")

    monkeypatch.setattr(builder, "load", fail)
    assert builds.load(builder).startswith("DeepSpeed's async_io could not be built in ") and "fatal error: disk full" in builds.load(
        builder
    )


def test_a_running_build_is_waited_for(builder):
    process = holder(builder.lock, 1.5)
    begun = time.monotonic()
    builds.load(builder)
    assert process.wait() == 0 and time.monotonic() - begun > 1


def test_a_compiler_whose_python_was_killed_is_waited_for(builder, capsys):
    builder.lock.touch()
    compiler = subprocess.Popen(["sleep", "1.5"], cwd=builder.lock.parent)
    begun = time.monotonic()
    threading.Thread(target=compiler.wait, daemon=True).start()
    builds.load(builder)
    assert time.monotonic() - begun > 1 and builder.builds == 1
    assert "was killed; removed the lock" in capsys.readouterr().err

"""A rank's folder on a disk is its own, and goes with it, or with the next start."""

import os
import signal
import subprocess
import sys

from trainer.engine.scratch import Scratch, takes_direct_writes

HOLDER = """
import sys, time
from pathlib import Path
from trainer.engine.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "large").write_bytes(b"x" * 1000)
print(scratch.path.name, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_left_is_removed_and_a_living_ones_is_not(tmp_path):
    mine = tmp_path / "isotrain-runs" / "demo"
    mine.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    first = Scratch(tmp_path)
    swap = first.path.parent
    assert (swap / name / "large").is_file() and first.path.name != name
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = Scratch(tmp_path)
    assert sorted(swap.iterdir()) == sorted([first.path, second.path])
    for scratch in (first, second):
        scratch.remove()
    assert list(swap.iterdir()) == [] and mine.is_dir()


ENDS = """
import sys
from pathlib import Path
from trainer.engine.scratch import Scratch
(Scratch(Path(sys.argv[1])).path / "large").touch()
raise RuntimeError
"""


def test_it_goes_with_a_run_that_fails(tmp_path):
    assert subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], stderr=subprocess.DEVNULL).returncode == 1
    assert [path.name for path in tmp_path.rglob("*")] == [".isotrain-swap"]


def test_a_disk_takes_direct_writes(tmp_path):
    assert takes_direct_writes(tmp_path)

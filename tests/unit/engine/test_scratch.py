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
    (tmp_path / "mine").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    first = Scratch(tmp_path)
    assert (tmp_path / name / "large").is_file() and first.path != tmp_path / name
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = Scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mine", first.path, second.path])
    for scratch in (first, second):
        scratch.remove()
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_a_disk_takes_direct_writes_and_a_folder_that_is_not_there_yet_is_looked_for_above(tmp_path):
    assert takes_direct_writes(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()

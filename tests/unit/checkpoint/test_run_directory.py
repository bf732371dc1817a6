import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.errors import Refused, StorageFailed
from trainer.run_directory import RunDirectory, fresh

HOLD = """
import os, sys, time
from trainer.run_directory import RunDirectory
directory = RunDirectory(sys.argv[1])
directory.create()
directory.lock()
child = os.fork() if sys.argv[2] == "fork" else None
if child != 0:
    print(child, flush=True)
time.sleep(60)
"""


def hold(path: Path, how: str = "alone") -> tuple[subprocess.Popen, str]:
    """Another process that holds the lock; and the process that it forked, if asked to."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_create_is_private_and_can_be_repeated(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b")
    for _ in range(2):
        directory.create()
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert sorted(path.name for path in directory.path.iterdir()) == ["checkpoints", "logs"]
    assert directory.log(3) == directory.path / "logs" / "rank-3.log"


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    with pytest.raises(StorageFailed, match="is not one: remove it") as raised:
        RunDirectory(blocker / below).create()
    assert "run.dir=" in str(raised.value)
    assert str(blocker) in str(raised.value)
    assert blocker.read_text() == "mine"


UNWRITABLE = """
import os, sys
from trainer.errors import StorageFailed
from trainer.run_directory import RunDirectory
if os.geteuid() == 0:
    os.setuid(65534)
try:
    RunDirectory(sys.argv[1]).create()
except StorageFailed as error:
    print(error)
"""


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    run = subprocess.run([sys.executable, "-c", UNWRITABLE, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    tmp_path.chmod(0o700)
    assert run.stdout.startswith(f"run.dir={tmp_path / 'run'} cannot be written to (Permission denied)")


LIMITED = """
import resource, sys
from trainer.errors import StorageFailed
from trainer.run_directory import RunDirectory
directory = RunDirectory(sys.argv[1])
directory.create()
directory.write_exit(0, "before")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
directory.write_exit(8, "after")
try:
    directory.create()
except StorageFailed as error:
    print(error)
"""


def test_the_write_test_writes_and_a_failing_exit_file_hides_nothing(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be written to (File too large)" in run.stdout
    assert json.loads((tmp_path / "exit.json").read_text()) == {"code": 0, "sentence": "before"}


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    second = RunDirectory(tmp_path)
    with pytest.raises(Refused) as raised:
        second.lock(patience=0.1)
    assert f"run.dir={tmp_path} is in use by another run (process {process.pid} on {os.uname().nodename}, started 20" in str(raised.value)
    end(process)
    second.lock()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    second.release()


def test_a_refused_run_leaves_the_holders_files_alone(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.lock()
    first.write_exit(0, "done")
    with pytest.raises(Refused):
        second.lock(patience=0)
    assert (tmp_path / "exit.json").exists()
    first.release()
    second.lock(patience=0)
    assert not (tmp_path / "exit.json").exists()
    second.release()


def test_a_holder_that_is_dying_is_waited_for(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    started = time.monotonic()
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {process.pid}"])
    directory = RunDirectory(tmp_path)
    directory.lock(patience=10)
    assert 0.1 < time.monotonic() - started < 9
    directory.release()
    killer.wait()
    end(process)


def test_a_forked_child_that_outlives_a_killed_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    process, child = hold(tmp_path, "fork")
    end(process)
    os.kill(int(child), 0)
    directory = RunDirectory(tmp_path)
    try:
        directory.lock(patience=1)
        directory.release()
    finally:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("content", ["", "garbage", '{"pid": 1}', "[]"])
def test_a_stale_lock_file_is_harmless(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    directory = RunDirectory(tmp_path)
    directory.lock(patience=0)
    directory.release()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(StorageFailed, match="cannot be locked"):
        RunDirectory(tmp_path).lock()
    assert victim.read_text() == "mine"


def test_writers(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_config("train:\n  steps: 3\n")
    directory.write_passport({"world_size": 2, "name": "é"})
    directory.write_exit(4, "Stopped on request.")
    assert (tmp_path / "config.yaml").read_text() == "train:\n  steps: 3\n"
    assert json.loads((tmp_path / "passport.json").read_text()) == {"world_size": 2, "name": "é"}
    assert json.loads((tmp_path / "exit.json").read_text()) == {"code": 4, "sentence": "Stopped on request."}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_config("old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        directory.write_config("new")
    assert (tmp_path / "config.yaml").read_text() == "old"


def test_fresh_directories_never_collide(tmp_path: Path) -> None:
    made = [fresh("demo", tmp_path / "runs") for _ in range(5)]
    assert len(set(made)) == 5
    assert all(path.is_dir() and path.name.startswith("demo-20") for path in made)
    assert stat.S_IMODE(made[0].stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", ".hidden", "a\nb", "a\x1b[2J"])
def test_a_run_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=r"run\.name="):
        fresh(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageFailed, match="runs is not one"):
        fresh("demo", tmp_path / "runs")

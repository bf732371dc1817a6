"""The Commit contract: a checkpoint exists only complete, and a crash at any instant leaves the old one or the new one."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.checkpoint.builders import save, value_of, write_files, write_shard
from trainer.checkpoint import commit, verify
from trainer.checkpoint.manifest import NAME
from trainer.errors import StorageFailed

STEPS_OF_A_SAVE = ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """The process is dead: every later operation fails as well."""


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """Lets ``moment`` operations on the file system happen, and none after them."""
    count = 0

    def dying(operation: Callable) -> Callable:
        def operate(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            return operation(*args, **kwargs)

        return operate

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS_OF_A_SAVE:
            patch.setattr(os, name, dying(getattr(os, name)))
        yield


def survives(moment: int, act: Callable[[], object]) -> bool:
    """Whether ``act`` ends before the kill."""
    try:
        with killed_at(moment):
            act()
    except Killed:
        return False
    return True


def start(checkpoints: Path) -> Path:
    """What every run does first; the folder then holds nothing but trusted checkpoints."""
    commit.clean(checkpoints)
    chosen, skipped = verify.choose(checkpoints, verify.problems)
    assert chosen is not None
    assert not skipped
    assert all(verify.problems(folder) == [] for folder in checkpoints.iterdir())
    return chosen


def test_what_is_committed_verifies_and_reads_back(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 20, value=1.5)
    assert checkpoint == tmp_path / "step-20"
    assert verify.problems(checkpoint) == []
    assert value_of(checkpoint) == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["step-20"]


def test_every_flipped_bit_is_found_and_the_previous_checkpoint_used(tmp_path: Path) -> None:
    draw = random.Random(0)
    good, newer = save(tmp_path, 1), save(tmp_path, 2)
    num_flips = 0
    for path in [path for path in newer.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        header = range(8 + int.from_bytes(content[:8], "little")) if path.suffix == ".safetensors" else range(0)
        places = [draw.randrange(len(content)) for _ in range(5)] + [draw.choice(header) for _ in range(5 if header else 0)]
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            found = verify.problems(newer)
            assert found, f"{path} byte {place}"
            assert path.name in found[0]
            assert verify.choose(tmp_path, verify.problems)[0] == good
            num_flips += 1
        path.write_bytes(content)
    assert num_flips == 7 * 5 + 2 * 5
    assert verify.problems(newer) == []


def killed_everywhere(base: Path, work: Path, act: Callable[[Path], object], accept: Callable[[Path], bool]) -> int:
    """Kills ``act`` before each of its operations, then each clean-up before each of its own; returns how many kills there were."""
    moment = num_kills = 0
    done = False
    while not done:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)
        done = survives(moment, lambda: act(work))
        second = 0
        while not survives(second, lambda: commit.clean(work)):
            second += 1
            num_kills += 1
        chosen = start(work)
        assert accept(chosen), f"after kill {moment} the run would resume from {chosen}"
        num_kills += not done
        moment += 1
    return num_kills


def test_a_kill_at_any_moment_of_save_and_prune_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(base, 1, value=1)
    save(base, 2, value=2)

    def act(checkpoints: Path) -> None:
        save(checkpoints, 3, value=3)
        commit.prune(checkpoints, keep=1, written=3)

    num_kills = killed_everywhere(base, tmp_path / "work", act, lambda chosen: value_of(chosen) in (2, 3))
    assert num_kills > 30
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["step-3"]


def test_a_kill_at_any_moment_of_replacing_the_only_checkpoint_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(base, 5, value=1)

    def act(checkpoints: Path) -> None:
        save(checkpoints, 5, value=2)

    assert killed_everywhere(base, tmp_path / "work", act, lambda chosen: value_of(chosen) in (1, 2)) > 20
    assert value_of(tmp_path / "work" / "step-5") == 2


def test_all_is_on_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    published: list[Path] = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checking_rename(source: Path, target: Path) -> None:
        if source.suffix == commit.PARTIAL:
            assert (source / NAME).is_file()
            assert {path.stat().st_ino for path in (source, *source.rglob("*"))} <= synced
            synced.clear()
            published.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", checking_rename)
    save(tmp_path, 1)
    assert published == [tmp_path / "step-1"]
    assert tmp_path.stat().st_ino in synced, "the rename itself is not durable"


def test_files_that_no_rank_confirmed_are_not_published(tmp_path: Path) -> None:
    partial = commit.begin(tmp_path, 1)
    entries = commit.describe_files(partial, write_shard(partial, 0, 1.0))
    write_files(partial, 1)
    with pytest.raises(StorageFailed, match=r"tokenizer/tokenizer\.json"):
        commit.commit(partial, entries, 1)
    assert verify.newest(tmp_path) == []


def test_a_confirmed_file_that_is_gone_is_not_published(tmp_path: Path) -> None:
    partial = commit.begin(tmp_path, 1)
    names = write_shard(partial, 0, 1.0) + write_files(partial, 1)
    entries = commit.describe_files(partial, names)
    (partial / "state.json").unlink()
    with pytest.raises(StorageFailed, match=r"state\.json"):
        commit.commit(partial, entries, 1)
    assert verify.newest(tmp_path) == []


LOOP = """
import sys
from pathlib import Path
from tests.unit.checkpoint.builders import save
from trainer.checkpoint import commit, verify
checkpoints = Path(sys.argv[1])
commit.clean(checkpoints)
chosen, skipped = verify.choose(checkpoints, verify.problems)
assert not skipped, skipped
step = verify.step_of(chosen) if chosen else 0
print(f"started {step}", flush=True)
while True:
    step += 1
    save(checkpoints, step, value=step, num_values=20_000)
    print(f"saved {step}", flush=True)
    commit.prune(checkpoints, keep=1, written=step)
"""


def test_a_process_killed_at_random_instants_never_loses_what_it_reported(tmp_path: Path) -> None:
    draw = random.Random(1)
    reported = 0
    leftovers = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started = process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines = [started, *process.stdout]
        process.wait()
        process.stdout.close()
        assert started.startswith("started"), "a start after a kill failed"
        assert int(started.split()[1]) >= reported
        reported = int(lines[-1].split()[1])
        leftovers += any(verify.step_of(path) is None for path in tmp_path.iterdir())
    commit.clean(tmp_path)
    chosen, _ = verify.choose(tmp_path, verify.problems)
    assert chosen is not None
    assert value_of(chosen) == verify.step_of(chosen) >= reported > 0
    assert leftovers > 0, "no kill hit a save: the test shows nothing"

"""One process builds, others wait: with real processes and real deaths."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from trainer.data.cache import build_once, locked
from trainer.errors import Refused

FORK = multiprocessing.get_context("fork")


def damage(folder: Path) -> str | None:
    return None if (folder / "content").is_file() else "content is missing"


class Builder:
    """Writes who built, into the folder and into a log of attempts beside it; may wait or fail on the way."""

    def __init__(self, log: Path, seconds: float = 0.0, fails: Exception | None = None):
        self.log, self.seconds, self.fails = log, seconds, fails

    def __call__(self, folder: Path) -> None:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if self.fails:
            raise self.fails
        (folder / "content").write_text(str(os.getpid()))


def process(folder: Path, build: Builder, timeout: float = 30.0) -> tuple[multiprocessing.Process, multiprocessing.Queue]:
    said = FORK.Queue()

    def work() -> None:
        try:
            build_once(folder, build, damage, timeout)
            said.put(None)
        except Refused as refusal:
            said.put(str(refusal))

    child = FORK.Process(target=work)
    child.start()
    return child, said


def wait_for(path: Path, what: str) -> None:
    give_up = time.monotonic() + 20
    while not (path.exists() and path.read_text().count("\n")):
        assert time.monotonic() < give_up, what
        time.sleep(0.01)


def test_of_many_one_builds(tmp_path):
    folder, log = tmp_path / "corpus", tmp_path / "log"
    children = [process(folder, Builder(log, 0.3)) for _ in range(5)]
    assert [said.get(timeout=20) for _, said in children] == [None] * 5
    assert len(log.read_text().split()) == 1
    assert (folder / "content").read_text() == log.read_text().strip()
    assert not list(tmp_path.glob("*.building-*"))


def test_a_waiter_takes_over_when_the_builder_is_killed(tmp_path):
    folder, log = tmp_path / "corpus", tmp_path / "log"
    builder, _ = process(folder, Builder(log, 60))
    wait_for(log, "the first process builds")
    waiter, said = process(folder, Builder(log))
    time.sleep(0.3)
    assert len(log.read_text().split()) == 1, "the second waits"
    os.kill(builder.pid, signal.SIGKILL)
    assert said.get(timeout=20) is None
    assert (folder / "content").read_text() == str(waiter.pid)
    assert not list(tmp_path.glob("*.building-*")), "what the dead one left is gone"
    builder.join()


def test_waiters_see_the_failure_and_its_message(tmp_path):
    folder, log = tmp_path / "corpus", tmp_path / "log"
    builder, failed = process(folder, Builder(log, 1.0, Refused(["The text is bad.", "Repair data.path."])))
    wait_for(log, "the first process builds")
    waiters = [process(folder, Builder(log)) for _ in range(3)]
    for said in (failed, *(said for _, said in waiters)):
        assert said.get(timeout=20) == "The text is bad.\nRepair data.path."
    assert log.read_text().split() == [str(builder.pid)]


def test_an_old_failure_does_not_count(tmp_path):
    folder, log = tmp_path / "corpus", tmp_path / "log"
    with pytest.raises(Refused, match="broken"):
        build_once(folder, Builder(log, fails=Refused("broken")), damage, 1.0)
    assert not folder.exists()
    build_once(folder, Builder(log), damage, 1.0)
    assert damage(folder) is None
    assert not folder.with_name("corpus.failed").exists()


def test_a_full_disk_is_told_with_the_key(tmp_path):
    with pytest.raises(Refused, match=r"No space left.*data\.cache_dir"):
        build_once(tmp_path / "corpus", Builder(tmp_path / "log", fails=OSError(28, "No space left on device")), damage, 1.0)


def test_waiting_ends(tmp_path):
    folder = tmp_path / "corpus"
    with locked(tmp_path / "corpus.lock", 1.0):
        _, said = process(folder, Builder(tmp_path / "log"), timeout=0.3)
        assert "data.prepare_timeout=0.3" in said.get(timeout=20)

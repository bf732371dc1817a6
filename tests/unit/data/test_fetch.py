"""Pinned files through the real pip, over a folder instead of a network; and folders that are made once, with real processes and deaths."""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

from trainer.errors import Refused
from trainer.recipes import fetch, once
from trainer.recipes.fetch import Package, cache_folder, fetched, last_line, take
from trainer.recipes.once import RECORD, build_once

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """The only place in which pip looks: an empty folder."""
    shop = tmp_path / "shop"
    shop.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    return shop


def wheel(shop: Path) -> Package:
    """Puts a small wheel into the shop."""
    path = shop / "isotrain_toy-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("isotrain_toy/model/data.txt", "real text")
        archive.writestr("isotrain_toy-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: isotrain-toy\nVersion: 1.2\n")
        archive.writestr("isotrain_toy-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("isotrain_toy-1.2.dist-info/RECORD", "")
    content = path.read_bytes()
    return Package("isotrain-toy", "1.2", path.name, hashlib.sha256(content).hexdigest(), len(content))


def recipe(package: Package):
    def build(folder: Path) -> dict:
        with fetched(package, folder) as path:
            take(path, {"isotrain_toy/model/data.txt": "data.txt"}, folder)
        return package.record()

    return build


def test_a_package_becomes_a_folder_and_is_fetched_once(tmp_path, shop, caplog):
    package = wheel(shop)
    with caplog.at_level(logging.WARNING):
        folder = build_once(tmp_path / "cache" / "toy", recipe(package))
    assert (folder / "data.txt").read_text() == "real text"
    assert [record.getMessage() for record in caplog.records] == [f"Fetching isotrain-toy 1.2 (0.0 MB), once, for {folder.parent}"]
    assert sorted(path.name for path in folder.iterdir()) == ["data.txt", RECORD], "the download is gone"
    record = json.loads((folder / RECORD).read_text())
    assert record["source"]["sha256"] == package.sha256
    assert record["files"] == {"data.txt": {"bytes": 9, "sha256": hashlib.sha256(b"real text").hexdigest()}}
    (shop / package.filename).unlink()
    assert build_once(folder, recipe(package)) == folder
    assert len(caplog.records) == 1, "the second call fetched nothing"


def test_another_file_than_the_pinned_one_is_refused(tmp_path, shop):
    package = wheel(shop)
    with (shop / package.filename).open("ab") as file:
        file.write(b"tampered")
    with pytest.raises(Refused, match=rf"isotrain-toy==1\.2 is not .* with SHA-256 {package.sha256}.*PIP_INDEX_URL"):
        build_once(tmp_path / "cache" / "toy", recipe(package))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["toy.lock"]


def test_without_a_network_one_sentence_says_what_to_do_and_doing_it_helps(tmp_path, shop):
    package, cache = wheel(shop), tmp_path / "cache"
    (shop / package.filename).rename(tmp_path / package.filename)
    with pytest.raises(Refused) as refusal:
        build_once(cache / "toy", recipe(package))
    (sentence,) = refusal.value.problems
    assert "(No matching distribution found for isotrain-toy==1.2)" in sentence
    assert "pip download --no-deps --only-binary isotrain-toy isotrain-toy==1.2`" in sentence
    assert sentence.endswith(f"copy {package.filename} into {cache}.")
    assert [path.name for path in cache.iterdir()] == ["toy.lock"]

    (tmp_path / package.filename).rename(cache / package.filename)
    assert (build_once(cache / "toy", recipe(package)) / "data.txt").read_text() == "real text"
    assert (cache / package.filename).is_file(), "what a user put there is not ours to remove"


def test_a_given_file_must_be_the_pinned_one_too(tmp_path, shop):
    package, cache = wheel(shop), tmp_path / "cache"
    cache.mkdir()
    (cache / package.filename).write_bytes(b"half a download")
    with pytest.raises(Refused, match=f"has SHA-256 {hashlib.sha256(b'half a download').hexdigest()} and not {package.sha256}"):
        build_once(cache / "toy", recipe(package))


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path, shop, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(fetch.sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(Refused, match=r"could not be downloaded \(this Python has no pip; `.*bare/bin/python -m ensurepip`"):
        build_once(tmp_path / "cache" / "toy", recipe(wheel(shop)))


def test_an_sdist_is_asked_for_as_one():
    arguments = Package("some", "1", "some-1.tar.gz", "0" * 64, 1).pip_arguments
    assert arguments == ["download", "--no-deps", "--no-binary", "some"]


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "isotrain" / "recipes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "isotrain" / "recipes"


@pytest.mark.parametrize(
    ("output", "line"),
    [("W: a\nE: b\nW: c\n", "b"), ("Traceback\nImportError: no gguf\n\n", "ImportError: no gguf"), ("", "it said nothing")],
)
def test_the_line_of_an_output_that_says_why(output, line):
    assert last_line(output) == line


class Builder:
    """Notes each attempt in a log; may wait or fail on the way."""

    def __init__(self, log: Path, seconds: float = 0.0, fails: Exception | None = None):
        self.log, self.seconds, self.fails = log, seconds, fails

    def __call__(self, folder: Path) -> dict:
        (folder / "half").write_text("half")
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if self.fails:
            raise self.fails
        (folder / "half").rename(folder / "content")
        return {"builder": os.getpid()}


def process(folder: Path, build: Builder) -> tuple[multiprocessing.Process, multiprocessing.Queue]:
    said = FORK.Queue()

    def work() -> None:
        try:
            build_once(folder, build)
            said.put(None)
        except Refused as refusal:
            said.put(str(refusal))

    child = FORK.Process(target=work)
    child.start()
    return child, said


def wait_for_an_attempt(log: Path) -> None:
    give_up = time.monotonic() + 20
    while not (log.exists() and log.read_text().count("\n")):
        assert time.monotonic() < give_up, "the first process builds"
        time.sleep(0.01)


def test_of_many_processes_one_builds(tmp_path):
    folder, log = tmp_path / "cache" / "set", tmp_path / "log"
    children = [process(folder, Builder(log, 0.3)) for _ in range(5)]
    assert [said.get(timeout=20) for _, said in children] == [None] * 5
    (builder,) = log.read_text().split()
    assert json.loads((folder / RECORD).read_text())["source"] == {"builder": int(builder)}


def test_what_a_killed_process_left_half_written_does_not_count(tmp_path):
    folder, log = tmp_path / "set", tmp_path / "log"
    builder, _ = process(folder, Builder(log, 60))
    wait_for_an_attempt(log)
    waiter, said = process(folder, Builder(log))
    time.sleep(0.3)
    assert len(log.read_text().split()) == 1, "the second waits"
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert said.get(timeout=20) is None
    waiter.join()
    assert sorted(path.name for path in folder.iterdir()) == ["content", RECORD]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "set", "set.lock"]


def test_those_who_wait_hear_why_it_failed_and_do_not_try_themselves(tmp_path):
    folder, log = tmp_path / "set", tmp_path / "log"
    builder, failed = process(folder, Builder(log, 1.0, Refused("There is no network. Copy the folder.")))
    wait_for_an_attempt(log)
    waiters = [process(folder, Builder(log)) for _ in range(3)]
    for said in (failed, *(said for _, said in waiters)):
        assert said.get(timeout=20) == "There is no network. Copy the folder."
    assert log.read_text().split() == [str(builder.pid)]
    build_once(folder, Builder(log))
    assert (folder / "content").is_file(), "an old failure does not count"


def test_a_waiter_takes_what_another_made_after_a_failure(tmp_path, monkeypatch):
    """Between the failure it waited for and its own turn, a third process has made the folder."""
    folder, log = tmp_path / "set", tmp_path / "log"
    own_turn = once._wait

    def late(handle, path):
        own_turn(handle, path)
        fcntl.flock(handle, fcntl.LOCK_UN)
        build_once(folder, Builder(log))
        fcntl.flock(handle, fcntl.LOCK_EX)

    monkeypatch.setattr(once, "_wait", late)
    builder, failed = process(folder, Builder(log, 1.0, Refused("There is no network.")))
    wait_for_an_attempt(log)
    assert build_once(folder, Builder(log)) == folder
    assert failed.get(timeout=20) == "There is no network."
    builder.join()
    assert len(log.read_text().split()) == 2


def test_a_wait_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "WAIT_SECONDS", 0.3)
    folder, log = tmp_path / "set", tmp_path / "log"
    builder, _ = process(folder, Builder(log, 60))
    wait_for_an_attempt(log)
    with pytest.raises(Refused, match=rf"making {folder} for longer than 0\.3 seconds"):
        build_once(folder, Builder(log))
    builder.kill()
    builder.join()


def test_a_pip_without_end_is_ended(tmp_path, shop, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(fetch.sys, "executable", str(program))
    monkeypatch.setattr(once, "PROGRAM_SECONDS", 0.3)
    with pytest.raises(Refused, match=r"could not be downloaded \(it was ended after 0\.3 seconds\)\. Where there is a network"):
        build_once(tmp_path / "cache" / "toy", recipe(wheel(shop)))


def test_a_damaged_folder_is_made_again_but_kept_while_that_fails(tmp_path, caplog):
    folder, log = build_once(tmp_path / "set", Builder(tmp_path / "log")), tmp_path / "log"
    (folder / "content").write_text("cut")
    with pytest.raises(Refused, match="no network"):
        build_once(folder, Builder(log, fails=Refused("no network")))
    assert (folder / "content").read_text() == "cut"
    build_once(folder, Builder(log))
    assert (folder / "content").read_text() == "half"
    assert "content has not the size it was written with" in caplog.text
    assert len(log.read_text().split()) == 3


@pytest.mark.parametrize("record", [None, "", "[]", '{"files": {"absent": {"bytes": 1}}}'])
def test_a_folder_without_a_good_record_is_made_again(tmp_path, record):
    folder = build_once(tmp_path / "set", Builder(tmp_path / "log"))
    (folder / RECORD).unlink() if record is None else (folder / RECORD).write_text(record)
    build_once(folder, Builder(tmp_path / "log"))
    assert len((tmp_path / "log").read_text().split()) == 2
    assert json.loads((folder / RECORD).read_text())["source"]


def test_a_complete_folder_is_used_without_a_lock(tmp_path):
    folder = build_once(tmp_path / "set", Builder(tmp_path / "log"))
    (tmp_path / "set.lock").unlink()
    build_once(folder, Builder(tmp_path / "log"))
    assert not (tmp_path / "set.lock").exists()


def test_a_full_disk_and_a_cache_that_is_no_folder_are_told(tmp_path):
    with pytest.raises(Refused, match=r"set cannot be written: No space left on device\. Free some space .* XDG_CACHE_HOME"):
        build_once(tmp_path / "set", Builder(tmp_path / "log", fails=OSError(28, "No space left on device")))
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot be written: (File exists|Not a directory)"):
        build_once(tmp_path / "file" / "set", Builder(tmp_path / "log"))


def test_the_module_needs_no_torch():
    """The fetcher is imported where a command line must answer at once."""
    code = "import sys, trainer.recipes.smollm2, trainer.recipes.vader; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

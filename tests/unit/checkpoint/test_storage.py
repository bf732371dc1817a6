import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.checkpoint.builders import save
from trainer.checkpoint import storage, verify
from trainer.checkpoint.storage import explain, require_space
from trainer.errors import StorageFailed


def test_a_full_device_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, open("/dev/full", "wb", buffering=0) as stream:  # noqa: PTH123 (a real ENOSPC)
        stream.write(b"x")
    told = explain(raised.value, tmp_path, step=40, previous=20, needed=5_000_000)
    assert isinstance(told, StorageFailed)
    assert told.code == 8
    text = str(told)
    assert text.startswith(f"Checkpoint step-40 could not be written to {tmp_path}: the disk is full (5.0 MB needed, ")
    assert "B free). Checkpoint step-20 is intact. Free some space" in text
    assert text.endswith("then run the same command again: it goes on from step 20.")


def test_without_an_earlier_checkpoint_it_says_so(tmp_path: Path) -> None:
    text = str(explain(OSError(errno.EROFS, os.strerror(errno.EROFS)), tmp_path, step=40, previous=None))
    assert "read-only" in text
    assert "There is no earlier checkpoint." in text
    assert "from the beginning" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", "the disk is full"),
        ("I/O error: (os error 122)", "quota"),
        ("[Errno 13] Permission denied: '/x'", "permission is denied"),
        ("File too large (os error 27)", "largest allowed size"),
        ("expected 2 tensors\ngot 3.", "RuntimeError: got 3"),
    ],
)
def test_the_cause_is_found_in_what_others_wrote(tmp_path: Path, text: str, words: str) -> None:
    assert words in str(explain(RuntimeError(text), tmp_path, 40, 20))


def test_what_says_it_all_is_not_wrapped_again(tmp_path: Path) -> None:
    error = StorageFailed("All is said.")
    assert explain(error, tmp_path, 40, 20) is error


def test_a_folder_that_is_gone_does_not_hide_the_cause(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "the disk is full" in str(explain(error, tmp_path / "gone" / "step-40.partial", 40, 20))


def test_the_cause_is_found_behind_other_errors(tmp_path: Path) -> None:
    cause = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    error = RuntimeError("save failed")
    error.__cause__ = ValueError("wrapped")
    error.__cause__.__context__ = cause
    cause.__context__ = error
    assert "quota" in str(explain(error, tmp_path, 40, 20))


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(OSError) as raised:
        require_space(tmp_path, 2**62)
    assert "the disk is full (4.6 EB needed, " in str(explain(raised.value, tmp_path, 40, 20, needed=2**62))


@pytest.mark.parametrize(
    ("there", "to_come", "keep", "more"),
    [(0, 1, 2, 1), (0, 10, 2, 3), (1, 10, 2, 2), (2, 10, 2, 1), (5, 10, 2, 1), (0, 10, None, 10), (3, 4, None, 4)],
)
def test_room_for_all_that_will_lie_there_at_once(tmp_path, monkeypatch, there, to_come, keep, more):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: more * 1000)
    assert storage.room_warning(tmp_path, 1000, there, to_come, keep) is None
    monkeypatch.setattr(storage, "free_bytes", lambda folder: more * 1000 - 1)
    warning = storage.room_warning(tmp_path, 1000, there, to_come, keep)
    assert f"{more}.0 kB more ({more} of 1.0 kB: " in warning and f"checkpoint.keep={keep or 'null'}" in warning


LIMITED = """
import resource, sys
from pathlib import Path
import torch
import torch.distributed.checkpoint as dcp
from tests.unit.checkpoint.builders import write_files
from trainer.checkpoint import commit
from trainer.checkpoint.storage import explain
checkpoints, hard = Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
try:
    partial = commit.begin(checkpoints, 2)
    writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
    dcp.save({"weight": torch.zeros(1000)}, storage_writer=writer, no_dist=True)
    names = [path.name for path in partial.iterdir()] + write_files(partial, 2)
    entries = commit.describe_files(partial, names)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), hard))
    commit.commit(partial, entries, 2)
except BaseException as error:
    print(type(error).__name__, explain(error, checkpoints, 2, 1), sep=": ")
"""


@pytest.mark.parametrize(
    ("shards", "manifest", "error"),
    [(2000, 9999, "CheckpointException"), pytest.param(9999, 100, "OSError", marks=pytest.mark.slow), (9999, 9999, None)],
)
def test_a_real_limit_in_torchs_writer_and_in_ours_leaves_the_previous_checkpoint(
    tmp_path: Path, shards: int, manifest: int, error: str | None
) -> None:
    save(tmp_path, 1)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(shards), str(manifest)], capture_output=True, text=True, check=True
    )
    assert verify.problems(tmp_path / "step-1") == []
    chosen, skipped = verify.choose(tmp_path, verify.problems)
    assert not skipped
    if error is None:
        assert run.stdout == ""
        assert chosen == tmp_path / "step-2"
        return
    assert chosen == tmp_path / "step-1"
    assert run.stdout.startswith(f"{error}: Checkpoint step-2 could not be written")
    assert "largest allowed size. Checkpoint step-1 is intact. Raise the limit" in run.stdout

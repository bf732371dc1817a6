from pathlib import Path

import pytest

from tests.unit.checkpoint.builders import save
from trainer.checkpoint import commit, verify
from trainer.errors import StorageFailed


def steps(checkpoints: Path) -> list[int | None]:
    return [verify.step_of(folder) for folder in verify.newest(checkpoints)]


def test_newest_sorts_by_number_and_knows_only_checkpoints(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-0", "step-007", "step-11.partial", "step-x", "other", "step-12.deleted"):
        (tmp_path / name).mkdir()
    assert [path.name for path in verify.newest(tmp_path)] == ["step-10", "step-9", "step-0"]
    assert verify.newest(tmp_path / "absent") == []


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [30, 20]), (9, [30, 20, 10, 3]), (None, [30, 20, 10, 3])])
def test_prune_keeps_the_newest(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for step in (3, 10, 20, 30):
        save(tmp_path, step)
    commit.prune(tmp_path, keep, written=30)
    assert steps(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == len(left)


def test_an_incomplete_checkpoint_does_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-2" / "manifest.json").unlink()
    commit.prune(tmp_path, keep=2, written=3)
    assert steps(tmp_path) == [3, 1]


def test_after_going_back_the_one_just_written_is_never_the_one_deleted(tmp_path: Path) -> None:
    save(tmp_path, 40)
    save(tmp_path, 30)
    commit.prune(tmp_path, keep=1, written=30)
    assert steps(tmp_path) == [40, 30]


def test_saving_a_step_again_replaces_it_even_if_it_was_damaged(tmp_path: Path) -> None:
    save(tmp_path, 5, value=1)
    (tmp_path / "step-5" / "state.json").write_text("{}")
    assert verify.problems(save(tmp_path, 5, value=2)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


def test_clean_says_one_line_for_each_leftover_and_touches_nothing_else(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    for name in ("step-2.partial", "step-1.replaced", "step-0.deleted", "notes.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text("{}")
    said = commit.clean(tmp_path)
    assert len(said) == 3
    assert all(any(name in line for line in said) for name in ("step-2.partial", "step-1.replaced", "step-0.deleted"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.partial", "step-1"]
    assert verify.problems(good) == []
    assert commit.clean(tmp_path) == []
    assert commit.clean(tmp_path / "absent") == []


def test_clean_puts_back_what_was_being_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-1.replaced")
    assert "Put back" in commit.clean(tmp_path)[0]
    assert verify.problems(tmp_path / "step-1") == []


def test_begin_clears_what_an_earlier_try_left(tmp_path: Path) -> None:
    (commit.begin(tmp_path, 1) / "old.json").write_text("{}")
    assert list(commit.begin(tmp_path, 1).iterdir()) == []


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert verify.choose(tmp_path, verify.problems) == (None, [])


def test_choose_skips_with_the_reason(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-3" / "manifest.json").unlink()
    (tmp_path / "step-2" / "state.json").unlink()
    (tmp_path / "step-2" / "config.yaml").unlink()
    chosen, skipped = verify.choose(tmp_path, verify.problems)
    assert chosen == tmp_path / "step-1"
    assert skipped == [
        "Checkpoint step-3 cannot be used: step-3/manifest.json is missing: the checkpoint was never completed, or has lost it.",
        "Checkpoint step-2 cannot be used: step-2/config.yaml is missing. (1 more problems)",
    ]


def test_when_none_can_be_trusted_nothing_starts(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").write_text("{}")
    with pytest.raises(StorageFailed) as raised:
        verify.choose(tmp_path, verify.problems)
    assert raised.value.code == 8
    assert "step-2/state.json is damaged" in str(raised.value)
    assert "step-1/state.json is damaged" in str(raised.value)
    assert "checkpoint.resume" in str(raised.value)


def test_ranks_share_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(tmp_path, 1)
    hashed: list[str] = []
    hash_file = verify.manifest.hash_file
    monkeypatch.setattr(verify.manifest, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    for rank in range(4):
        assert verify.problems(checkpoint, (rank, 4)) == []
    assert sorted(hashed) == sorted(path.name for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json")
    shard = checkpoint / "shard-00001-model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert sum(bool(verify.problems(checkpoint, (rank, 4))) for rank in range(4)) == 1


def test_a_checkpoint_under_another_steps_name_is_found(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-2")
    assert verify.problems(tmp_path / "step-2") == ["step-2/manifest.json belongs to step 1."]
    (tmp_path / "step-2").rename(tmp_path / "best")
    assert verify.problems(tmp_path / "best") == []

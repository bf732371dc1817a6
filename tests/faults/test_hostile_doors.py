"""Hostile checkpoints at the doors by which users let them in: ``checkpoint.resume=PATH``, ``export`` and ``generate``."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.faults.door import Guests
from tests.faults.test_hostile_checkpoints import header, pickled, relist
from trainer.checkpoint import manifest
from trainer.testing import run_ranks, train_curve


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("good") / "run"
    train_curve([*tiny, "train.steps=8", "train.stop_after=1"], run_dir)
    return run_dir / "checkpoints" / "step-1"


def shard(checkpoint: Path) -> Path:
    return next(checkpoint.glob("shard-*.safetensors"))


def with_pickle(checkpoint: Path, marker: Path) -> str:
    shard(checkpoint).write_bytes(pickled(marker))
    relist(checkpoint)
    return f"{shard(checkpoint).name} is not a safetensors file; it looks like a pickle"


def with_a_way_out(checkpoint: Path, marker: Path) -> str:
    (checkpoint.parent / "outside.json").write_text("{}")
    relist(checkpoint, {"../outside.json": {"size": 2, "sha256": manifest.hash_file(checkpoint.parent / "outside.json")}})
    return "manifest.json lists '../outside.json', which "


def with_a_huge_header(checkpoint: Path, marker: Path) -> str:
    shard(checkpoint).write_bytes(header({}, length=2**60))
    relist(checkpoint)
    return "header too large"


def with_code(checkpoint: Path, marker: Path) -> str:
    """A model config that asks transformers to run a file of the checkpoint."""
    (checkpoint / "model" / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((checkpoint / "model" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    (checkpoint / "model" / "config.json").write_text(json.dumps(config))
    relist(checkpoint)
    return "model/modeling_evil.py"


MAKERS = [with_pickle, with_a_way_out, with_a_huge_header, with_code]


@pytest.fixture(params=MAKERS, ids=[maker.__name__ for maker in MAKERS])
def hostile(request, good, tmp_path) -> tuple[Path, Path, str]:
    """A hostile copy of a good checkpoint, the file that its payload would make, and what must be said of it."""
    checkpoint, marker = tmp_path / "hostile" / "step-1", tmp_path / "marker"
    shutil.copytree(good, checkpoint)
    return checkpoint, marker, request.param(checkpoint, marker)


def test_resuming(tiny, tmp_path, hostile):
    checkpoint, marker, words = hostile
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*tiny, "train.steps=8", f"checkpoint.resume={checkpoint}"]).wait()
    assert seen.codes == [8, 8] and seen.ended["code"] == 8
    assert words in seen.terminal and seen.terminal.count("isotrain: ") == 1 and "Traceback (" not in seen.terminal
    assert not marker.exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not list((tmp_path / "run" / "checkpoints").iterdir())


def command(arguments: list[str]) -> tuple[int, str]:
    from trainer.cli import main

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(arguments)
    return code, errors.getvalue() + output.getvalue()


@pytest.mark.parametrize("name", ["export", "generate"])
def test_exporting_and_generating(tmp_path, hostile, name):
    checkpoint, marker, words = hostile
    more = [f"to={tmp_path / 'out'}"] if name == "export" else []
    ((code, terminal),) = run_ranks(command, 1, [name, f"checkpoint={checkpoint}", *more])
    assert code == 8 and words in terminal and "Traceback (" not in terminal
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_the_good_one_is_let_in(tiny, tmp_path, good):
    assert len(train_curve([*tiny, "train.steps=8", f"checkpoint.resume={good}"], tmp_path / "run")) == 7
    ((code, _),) = run_ranks(command, 1, ["export", f"checkpoint={good}", f"to={tmp_path / 'out'}"])
    assert code == 0 and (tmp_path / "out" / "model.safetensors").exists()

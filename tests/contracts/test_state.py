"""Contract State: a checkpoint belongs to no strategy; any engine goes on from what any other wrote."""

import json
from itertools import pairwise, permutations

import pytest
import torch

from tests.contracts.tasks import NAMES, SPREAD, STEADY, layout
from trainer.checkpoint.find import choose
from trainer.errors import StorageFailed
from trainer.state.storage import plan_shares, read_tensors
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve

STRATEGIES = ("single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3", "tensor", "tensor x fsdp", "pipeline", "pipeline x fsdp")
RANKS = {"single": 1, "hsdp": 4, "tensor x fsdp": 4, "tensor x ddp": 4, "pipeline x fsdp": 4, "3d": 4}
"""Where it is not 2."""


def tensors_of(run_dir, step):
    return read_tensors(run_dir / "checkpoints" / f"step-{step}", "")


def engine_state(arguments, folder):
    """On each rank: builds the engine of a command line, loads ``folder``, and gives this rank's view of the whole state."""
    from functools import partial

    from tests.contracts.engines import build_job, whole
    from trainer.assembly import build_engine
    from trainer.state.storage import read_state

    engine = build_engine(build_job(arguments), resumed=True)
    engine.load_state(partial(read_state, folder))
    return {name: whole(value).numpy() for name, value in engine.state().items()}


STOPPED = [
    ("zero2", 2),
    ("ddp", 4),
    ("fsdp", 3),
    ("hsdp", 4),
    ("zero1", 3),
    ("zero3", 4),
    ("tensor", 2),
    ("tensor x fsdp", 4),
    ("tensor x ddp", 4),
]
STOPPED += [("pipeline", 2), ("pipeline x fsdp", 4), ("3d", 4)]


@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 3), *(pytest.param(*cell, marks=pytest.mark.slow) for cell in STOPPED)])
def test_a_run_that_was_stopped_has_the_bits_of_one_that_was_not(tiny, tmp_path, strategy, ranks):
    stopped_and_not([*tiny, *layout(strategy), "train.micro_batch=2"], tmp_path, ranks)


@pytest.mark.parametrize(
    "strategy", ["fsdp", "zero2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero1", "zero3", "tensor"))]
)
def test_so_it_has_in_bf16_where_masters_are_not_what_the_model_computes_with(tiny, tmp_path, strategy):
    spread = [SPREAD] if strategy == "zero3" else []
    arguments = last_wins([*tiny, f"strategy={strategy}", "precision=bf16", "train.micro_batch=2", *spread])
    stopped_and_not(arguments, tmp_path, 2)


def stopped_and_not(arguments, tmp_path, ranks):
    whole = train_curve(arguments, tmp_path / "whole", ranks)
    train_curve([*arguments, "train.stop_after=7"], tmp_path / "run", ranks)
    curve = train_curve(arguments, tmp_path / "run", ranks)
    bits = [[(line["loss"].hex(), line["grad_norm"].hex()) for line in lines] for lines in (curve, whole)]
    assert bits[0] == bits[1]


def some(names, quick):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(NAMES, {"llama"}))
def test_a_run_that_moves_four_times_keeps_its_curve(task, tmp_path, name):
    arguments = [*task(name), *STEADY]
    stayed = train_curve([*arguments, "+strategy=single"], tmp_path / "stayed")
    for strategy, ranks, stop in (("fsdp", 4, 5), ("zero3", 2, 10), ("single", 1, 15), ("zero2", 3, 20)):
        moved = train_curve([*arguments, f"strategy={strategy}", f"train.stop_after={stop}"], tmp_path / "moved", ranks)
        assert moved[-1]["step"] == stop
    assert_same_curve(moved, stayed, loss=1e-6, grad_norm=1e-4)


QUICK = {
    ("llama", "zero3", "fsdp"),
    ("llama", "tensor", "pipeline"),
    ("gpt2", "pipeline x fsdp", "ddp"),
}
MOVES = [("llama", *pair) for pair in permutations(STRATEGIES, 2)] + [(name, "fsdp", "ddp") for name in NAMES if name != "llama"]
MOVES += [(name, *pair) for name in NAMES if name != "llama" for pair in (("fsdp", "tensor"), ("tensor x fsdp", "ddp"))]
MOVES += [(name, *pair) for name in NAMES if name != "llama" for pair in (("fsdp", "pipeline"), ("pipeline x fsdp", "ddp"))]


FUSED = ("tensor", "zero3", "tensor x fsdp", "zero2", "3d", "tensor x ddp", "tensor")
MOVES += [("gpt2", *pair) for pair in pairwise(FUSED)]
"""A matrix that is query, key and value, whose columns ranks of the tensor axis hold in an order of their own."""


@pytest.mark.parametrize(
    ("name", "source", "destination"),
    [pytest.param(*move, marks=() if move in QUICK else pytest.mark.slow) for move in MOVES],
)
def test_loaded_state_is_bitwise_what_was_saved(task, tmp_path, name, source, destination):
    train_curve([*task(name), *layout(source), "train.micro_batch=4", "train.stop_after=3"], tmp_path / "run", RANKS.get(source, 2))
    folder = tmp_path / "run" / "checkpoints" / "step-3"
    saved = read_tensors(folder, "")
    arguments = last_wins([*task(name), *layout(destination), "train.micro_batch=4"])
    parts = run_ranks(engine_state, RANKS.get(destination, 2), arguments, folder)
    assert (
        set().union(*parts) == saved.keys()
        if "pipeline" in destination or destination == "3d"
        else all(part.keys() == saved.keys() for part in parts)
    )
    for tensor, value in (item for seen in parts for item in seen.items()):
        assert torch.equal(torch.from_numpy(value), saved[tensor]), tensor
    assert all(saved[tensor].item() == 3 for tensor in saved if tensor.endswith(".step"))


def test_all_names_are_those_of_the_stock_model_and_tied_weights_stand_once(tiny, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    train_curve([*tiny, "model=gpt2_tiny", "train.stop_after=1"], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-1"
    stock = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    names = {name for name, _ in stock.named_parameters()}
    assert "lm_head.weight" not in names and "transformer.wte.weight" in names
    found = set(read_tensors(folder, ""))
    keys = ("exp_avg", "exp_avg_sq", "step")
    assert found == {f"model.{name}" for name in names} | {f"optim.{name}.{key}" for name in names for key in keys}


def test_what_is_no_tensor_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"optim\.lr"):
        plan_shares({"model.w": torch.ones(2), "optim.lr": 1e-3})


def test_no_file_of_a_checkpoint_is_a_pickle(tiny, tmp_path):
    train_curve([*tiny, "strategy=fsdp", "train.stop_after=2"], tmp_path / "run", 2)
    folder = tmp_path / "run" / "checkpoints" / "step-2"
    for path in filter(lambda path: path.is_file(), folder.rglob("*")):
        start = path.read_bytes()[:2]
        assert start not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"), path
        assert path.suffix in (".safetensors", ".json", ".yaml"), path


FLIPPED = [("zero2", False), ("zero3", False), ("fsdp", True), ("zero3", True)]


@pytest.mark.parametrize(
    ("strategy", "in_background"), [("fsdp", False), *(pytest.param(*cell, marks=pytest.mark.slow) for cell in FLIPPED)]
)
def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(tiny, tmp_path, strategy, in_background):
    import random

    more = ["checkpoint.every=2", "train.stop_after=4", f"checkpoint.background={in_background}"]
    train_curve([*tiny, f"strategy={strategy}", *more], tmp_path / "run", 2)
    newest = tmp_path / "run" / "checkpoints" / "step-4"
    rng = random.Random(0)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert {"manifest.json", "state.json", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.suffix == ".safetensors" for path in files) == 2
    for path in files:
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
        places = [rng.randrange(len(whole) * 8) for _ in range(5)] + [rng.randrange(header * 8) for _ in range(5)]
        for bit in places:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            folder, skipped = choose(tmp_path / "run")
            assert folder.name == "step-2" and len(skipped) == 1 and "step-4" in skipped[0], (path, bit)
        path.write_bytes(whole)
    assert choose(tmp_path / "run")[0] == newest


def test_resuming_past_a_damaged_checkpoint_gives_the_same_curve(tiny, tmp_path):
    arguments = [*tiny, "checkpoint.every=2", "checkpoint.keep=3"]
    whole = train_curve(arguments, tmp_path / "whole")
    train_curve([*arguments, "train.stop_after=6"], tmp_path / "run")
    shard = next((tmp_path / "run" / "checkpoints" / "step-6").glob("*.safetensors"))
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 16
    shard.write_bytes(damaged)
    assert_same_curve(train_curve(arguments, tmp_path / "run"), whole, loss=0, grad_norm=0)


def test_when_nothing_can_be_trusted_nothing_starts(tiny, tmp_path):
    train_curve([*tiny, "train.stop_after=2"], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-2" / "state.json").write_text("{}")
    with pytest.raises(AssertionError, match=StorageFailed.__name__):
        train_curve(tiny, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 8


def test_another_model_seed_or_batch_is_refused_by_name(tiny, tmp_path):
    train_curve([*tiny, "train.stop_after=2"], tmp_path / "run")
    for change, named in (
        ("train.seed=5", "train.seed was 0"),
        ("train.global_batch=8", "train.global_batch was 16"),
        ("model.hidden_size=64", "hidden_size"),
        ("data.sequence_length=16", "data.sequence_length was 32"),
        ("data.document=line", "data was"),
    ):
        with pytest.raises(AssertionError, match="Refused") as caught:
            train_curve([*tiny, change], tmp_path / "run")
        assert named in str(caught.value)
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 2

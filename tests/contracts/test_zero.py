"""What only ZeRO has: its options change no loss, its JSON is derived, frozen parameters and unequal step counts, and what it refuses."""

import json
from functools import partial

import pytest
import torch

from tests.contracts.engines import build_job, micro_batches, whole
from tests.contracts.tasks import SPREAD
from trainer import assembly
from trainer.checkpoint.shards import write_shards
from trainer.config import load
from trainer.errors import Refused, StorageFailed
from trainer.state.storage import plan_shares, read_state, read_tensors
from trainer.strategy.zero import Facts
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here
from trainer.types import StepPlan


@pytest.fixture(scope="module")
def one_rank(tiny, tmp_path_factory):
    return train_curve(tiny, tmp_path_factory.mktemp("reference"))


CPU = {"device": "cpu"}
OPTIONS = [
    ("zero1", 2, ["strategy.offload_optimizer=cpu"], {"offload_optimizer": CPU}),
    (
        "zero2",
        2,
        ["strategy.offload_optimizer=cpu", "strategy.bucket_elements=1000"],
        {"offload_optimizer": CPU, "reduce_bucket_size": 1000},
    ),
    (
        "zero3",
        2,
        ["strategy.offload_optimizer=cpu", "strategy.offload_parameters=cpu", SPREAD],
        {"offload_optimizer": CPU, "offload_param": CPU, "stage3_param_persistence_threshold": 0},
    ),
    ("zero3", 4, ["strategy.secondary_shard=2", SPREAD], {"zero_hpz_partition_size": 2}),
    ("zero3", 2, ["strategy.overlap_communication=false", "strategy.bucket_elements=1000"], {"overlap_comm": False}),
    ("zero2", 2, ["strategy.deepspeed={zero_optimization: {round_robin_gradients: true}}"], {"round_robin_gradients": True}),
]


@pytest.mark.parametrize(
    ("strategy", "ranks", "more", "told"),
    [pytest.param(*case, marks=() if place == 2 else pytest.mark.slow) for place, case in enumerate(OPTIONS)],
)
def test_its_options_change_no_loss(tiny, tmp_path, one_rank, strategy, ranks, more, told):
    arguments = [*tiny, f"strategy={strategy}", "train.micro_batch=2", *more]
    train_curve([*arguments, "train.stop_after=11"], tmp_path / "run", ranks)
    assert_same_curve(train_curve(arguments, tmp_path / "run", ranks), one_rank, loss=1e-5, grad_norm=1e-4)
    kept = json.loads((tmp_path / "run" / "deepspeed.json").read_text())["zero_optimization"]
    assert kept | told == kept


def test_its_json_is_derived_and_kept(tiny, tmp_path):
    more = ["strategy.deepspeed={zero_optimization: {round_robin_gradients: true}}", "train.micro_batch=3", "optimizer.max_grad_norm=0.3"]
    train_curve([*tiny, "strategy=zero2", *more, "train.stop_after=1"], tmp_path / "run", 2)
    kept = json.loads((tmp_path / "run" / "deepspeed.json").read_text())
    assert (kept["train_micro_batch_size_per_gpu"], kept["gradient_accumulation_steps"], kept["gradient_clipping"]) == (3, 3, 0.3)
    assert (kept["zero_optimization"]["stage"], kept["zero_optimization"]["round_robin_gradients"]) == (2, True)
    strategy = load(last_wins([*tiny, "strategy=zero2", "optimizer.max_grad_norm=null"]), 2).strategy
    assert strategy.settings(Facts(max_norm=None))["gradient_clipping"] == 0.0
    passport = json.loads((tmp_path / "run" / "passport.json").read_text())
    assert passport["parameters"] > 10_000 and set(passport["dtypes"].values()) == {"fp32"}


FROZEN = "model.embed_tokens.weight"


def frozen(arguments, source, to):
    """On a rank: a step with the embedding frozen, from ``source`` on if it is given; writes the state and gives it whole."""
    job = build_job(arguments)
    job.skeleton.model.get_parameter(FROZEN).requires_grad_(False)
    engine = assembly.build_engine(job, resumed=source is not None)
    if source is not None:
        engine.load_state(partial(read_state, source))
    before = {name: whole(value) for name, value in engine.state().items()}
    engine.forward_backward(1, micro_batches(job, engine, 1), {"targets": torch.tensor(400)})
    assert engine.optimizer_step(StepPlan(1, 1.0, None)).applied
    after = {name: whole(value) for name, value in engine.state().items()}
    state = engine.state()
    write_shards(to, plan_shares(state).of(state))
    return {name: torch.equal(before[name], value) for name, value in after.items()}, {
        name: value.numpy() for name, value in before.items()
    }


@pytest.mark.parametrize("strategy", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_frozen_parameters_stay_and_move(tiny, tmp_path, strategy):
    more = ["model.tie_embeddings=false"]
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    for same, _ in run_ranks(frozen, 2, last_wins([*tiny, *more, f"strategy={strategy}"]), None, folders[0]):
        assert [name for name, value in same.items() if value] == [f"model.{FROZEN}"]
        assert f"optim.{FROZEN}.step" not in same
    saved = read_tensors(folders[0], "")
    assert saved[f"model.{FROZEN}"].dtype == torch.float32
    for same, before in run_ranks(frozen, 2, last_wins([*tiny, *more, "strategy=fsdp"]), folders[0], folders[1]):
        assert same[f"model.{FROZEN}"] and all(torch.equal(torch.from_numpy(before[name]), saved[name]) for name in before)
    saved = read_tensors(folders[1], "")
    for _, before in run_ranks(frozen, 2, last_wins([*tiny, *more, f"strategy={strategy}"]), folders[1], folders[2]):
        assert all(torch.equal(torch.from_numpy(before[name]), saved[name]) for name in before)


def refused(arguments):
    """On a rank: why a model with a frozen parameter is not built."""
    job = build_job(arguments)
    job.skeleton.model.get_parameter(FROZEN).requires_grad_(False)
    try:
        assembly.build_engine(job)
    except Refused as error:
        return str(error)


def test_under_bf16_what_is_frozen_would_be_rounded_and_is_refused(tiny):
    (said,) = run_ranks(refused, 1, last_wins([*tiny, "strategy=zero3", "precision=bf16"]))
    assert said.startswith(f"{FROZEN} is frozen, and under bf16") and "strategy=fsdp or precision=fp32" in said


def unequal(arguments, source):
    """On a rank: loads a state whose parameters were not stepped alike."""
    engine = assembly.build_engine(build_job(arguments), resumed=True)

    def read(state):
        read_state(source, state)
        next(tensor for name, tensor in state.items() if name.endswith(".step")).add_(1)

    try:
        engine.load_state(read)
    except StorageFailed as failure:
        return str(failure)


def test_unequal_step_counts_are_refused_with_the_way_out(tiny, tmp_path):
    train_curve([*tiny, "strategy=ddp", "train.stop_after=2"], tmp_path / "run", 2)
    for said in run_ranks(unequal, 2, last_wins([*tiny, "strategy=zero2"]), tmp_path / "run" / "checkpoints" / "step-2"):
        assert said == (
            "The checkpoint's parameters were stepped 2 to 3 times; ZeRO keeps one count for all of them. Go on with strategy=fsdp or ddp."
        )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("{zero_optimization: {nonsense: 1}}", "zero_optimization.nonsense"),
        ("{zero_optimization: {stage3_max_live_parameters: many}}", "zero_optimization.stage3_max_live_parameters"),
    ],
)
def test_what_deepspeed_does_not_understand_is_refused_before_ranks_meet(tiny, more, says, monkeypatch):
    monkeypatch.setattr("trainer.run.start_process_group", None)
    with pytest.raises(Refused, match=rf"strategy\.deepspeed: DeepSpeed refuses {says}"):
        train_here(last_wins([*tiny, "strategy=zero3", f"strategy.deepspeed={more}"]))


def test_without_deepspeed_one_sentence_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr("trainer.strategy.zero.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"strategy=zero3 needs deepspeed, which is not installed: pip install 'isotrain\[deepspeed\]'"):
        load([*tiny, "strategy=zero3"], 2)
    load([*tiny, "strategy=fsdp"], 2)


@pytest.mark.parametrize("option", ["quantized_weights", "quantized_gradients"])
def test_what_a_cpu_cannot_quantize_is_refused_before_ranks_meet(tiny, option, monkeypatch):
    monkeypatch.setattr("trainer.run.start_process_group", None)
    with pytest.raises(Refused, match=rf"strategy\.{option}=true needs a GPU"):
        train_here(last_wins([*tiny, "strategy=zero3", f"strategy.{option}=true"]))

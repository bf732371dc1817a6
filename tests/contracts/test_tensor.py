"""Tensor parallelism where the contract Gradient does not reach: dropout over ranks, and sequences split between sublayers."""

import hashlib
from contextlib import contextmanager

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from tests.contracts.engines import build_engine, micro_batches, whole
from tests.contracts.tasks import write_bert
from trainer.distributed.degrees import Degrees
from trainer.model.families import BART, GPT2, Family
from trainer.model.names import named_owners
from trainer.parallel.sequence import sequence_problems
from trainer.strategy.native import NativeStrategy
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve

TENSOR, SPLIT = "strategy=tensor", "strategy.sequence_parallel=true"
DROPS = {
    "llama": ["model.attention_dropout=0.1"],
    "gpt2": ["model.dropout=0.1", "model.attention=eager"],
    "bert": ["model.dropout=0.1", "model.attention=eager"],  # eager: its masks of attention can be seen
    "t5": ["model.dropout=0.1", "model.attention=eager"],
    "bart": ["model.dropout=0.1", "model.attention_dropout=0.1", "model.attention=eager"],
}


@contextmanager
def watching_masks(seen):
    """Notes the shape and a hash of whatever is dropped, in order; of SDPA, which drops unseen, the state that it draws from."""
    functional = torch.nn.functional
    drop, attend = functional.dropout, functional.scaled_dot_product_attention

    def note(shape, data):
        seen.append((tuple(shape), hashlib.sha256(data.numpy().tobytes()).hexdigest()))

    def dropout(values, p=0.5, training=True, inplace=False):
        if training and p > 0:
            state = torch.get_rng_state()
            note(values.shape, drop(torch.ones_like(values), p))
            torch.set_rng_state(state)
        return drop(values, p, training, inplace)

    def attention(*arguments, dropout_p=0.0, **keywords):
        if dropout_p > 0:
            note(arguments[0].shape, torch.get_rng_state())
        return attend(*arguments, dropout_p=dropout_p, **keywords)

    functional.dropout, functional.scaled_dot_product_attention = dropout, attention
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = drop, attend


def step_of(arguments):
    """What a rank dropped in a step of two micro-batches, the hidden states behind its last block, hashed, and their widths in a norm."""
    job, engine = build_engine(arguments)
    seen, widths, hidden = [], [], []
    model = engine._parts.model
    blocks = list(model.get_submodule(job.skeleton.family.blocks[-1]).children())
    norm = next(module for module in blocks[-1].modules() if "Norm" in type(module).__name__)
    norm.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[1]))
    last = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    blocks[-1].register_forward_hook(lambda module, inputs, output: hidden.append(last(output).detach().clone()))
    batches = micro_batches(job, engine, 1)
    counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
    with watching_masks(seen):
        engine.forward_backward(1, batches, counts)
    return seen, widths, [hashlib.sha256(states.numpy().tobytes()).hexdigest() for states in hidden]


def is_residual(shape, hidden_size=32):
    return len(shape) == 3 and shape[-1] == hidden_size


@pytest.mark.parametrize(
    "family", [name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in (*DROPS, "two berts")]
)
def test_ranks_drop_the_same_of_what_is_whole_and_something_else_of_their_heads(task, tiny, tmp_path, family):
    drops = DROPS.get(family) or [f"model.encoder={write_bert([*tiny, 'model.dropout=0.1'], tmp_path / 'bert')}", "model.attention=eager"]
    arguments = [*task(family), *drops, TENSOR, "train.micro_batch=8", f"run.dir={tmp_path}"]
    (first, _, one), (second, _, other) = run_ranks(step_of, 2, last_wins(arguments))
    assert [shape for shape, _ in first] == [shape for shape, _ in second]
    assert one == other, "what ranks have whole has the same bits"
    same = [(ours, theirs) for (shape, ours), (_, theirs) in zip(first, second, strict=True) if is_residual(shape)]
    parts = [(ours, theirs) for (shape, ours), (_, theirs) in zip(first, second, strict=True) if not is_residual(shape)]
    assert parts and all(ours != theirs for ours, theirs in parts)
    assert all(ours == theirs for ours, theirs in same)
    assert bool(same) == (family != "llama"), "a Llama drops of attention only"
    masks = [mask for pair in parts for mask in pair] + [ours for ours, _ in same]
    assert len(set(masks)) == len(masks), "each layer and micro-batch has a mask of its own"


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bert", "bart")])
def test_ranks_drop_something_else_of_their_slots(task, tmp_path, family):
    arguments = [*task(family), *DROPS[family], TENSOR, SPLIT, "train.micro_batch=8", f"run.dir={tmp_path}"]
    (first, _, one), (second, _, other) = run_ranks(step_of, 2, last_wins(arguments))
    assert one == other
    pairs = [(shape, ours == theirs) for (shape, ours), (_, theirs) in zip(first, second, strict=True)]
    same = [shape for shape, equal in pairs if equal]
    stacks = 2 if family == "bart" else 1
    assert len(same) == 2 * stacks, "of embeddings, in each micro-batch and stack"
    assert all(not equal for shape, equal in pairs if shape not in same) and len(pairs) > 3 * len(same)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "more"), [("bert", [TENSOR]), *((name, [TENSOR, SPLIT]) for name in ("llama", "gpt2", "t5"))])
def test_a_resumed_run_drops_what_an_uninterrupted_one_does(task, tmp_path, family, more):
    arguments = [*task(family), *DROPS[family], *more, "train.micro_batch=8", "train.steps=6"]
    whole = train_curve(arguments, tmp_path / "whole", 2)
    train_curve([*arguments, "train.stop_after=3"], tmp_path / "parts", 2)
    assert_same_curve(train_curve(arguments, tmp_path / "parts", 2), whole, loss=0, grad_norm=0)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[TENSOR], [TENSOR, SPLIT]])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_mean_loss_over_seeds_is_that_of_one_rank(task, tmp_path, family, more):
    drops = [item.replace("0.1", "0.3") for item in DROPS[family]]

    def last_losses(name, ranks, *others):
        curves = [train_curve([*task(family), *others, f"train.seed={seed}"], tmp_path / f"{name}{seed}", ranks) for seed in range(4)]
        return torch.tensor([[line["loss"] for line in curve[-5:]] for curve in curves]).mean(1)

    dropped, ours = last_losses("one", 1, *drops), last_losses("two", 2, *drops, *more)
    spread = (ours - last_losses("none", 1)).abs().mean()
    assert spread > 0, "what is dropped changes the loss"
    assert ((ours - dropped) / dropped).mean().abs() < 5e-3
    assert ((ours - dropped) / dropped).abs().max() < 2e-2


CELLS = {
    ("llama", 2): [TENSOR],
    ("llama", 4): [TENSOR],
    ("llama", 4, "fsdp"): ["strategy=fsdp", "strategy.tensor=2"],
    ("llama", 4, "replicas"): [TENSOR, "strategy.tensor=2"],
    ("llama", 2, "31 slots"): [TENSOR, "data.sequence_length=31"],
    ("llama", 4, "33 slots"): [TENSOR, "data.sequence_length=33"],
    ("llama classes", 2): [TENSOR],
    ("gpt2", 2): [TENSOR],
    ("gpt2", 4, "fsdp"): ["strategy=fsdp", "strategy.tensor=2"],
    ("gpt2", 2, "31 slots"): [TENSOR, "data.sequence_length=31"],
    ("gpt2 classes", 4): [TENSOR, "strategy.tensor=2"],
    ("bert", 2): [TENSOR],
    ("roberta", 2): [TENSOR],
    ("bert tags", 4): ["strategy=fsdp", "strategy.tensor=2"],
    ("t5", 2): [TENSOR],
    ("t5 spans", 4): ["strategy=fsdp", "strategy.tensor=2"],
    ("bart", 2): [TENSOR],
    ("bart spans", 4): [TENSOR],
    ("two berts", 2): [TENSOR],
    ("two berts", 4, "fsdp"): ["strategy=fsdp", "strategy.tensor=2"],
}


@pytest.mark.parametrize("cell", [cell if cell == ("llama", 2) else pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS], ids=str)
def test_split_sequences_have_the_curve_of_one_rank(task, tmp_path, cell):
    family, ranks = cell[:2]
    length = [item for item in CELLS[cell] if item.startswith("data")]
    reference = train_curve([*task(family), *length], tmp_path / "one")
    curve = train_curve([*task(family), *CELLS[cell], SPLIT, "train.micro_batch=4"], tmp_path / "run", ranks)
    assert_same_curve(curve, reference, loss=1e-5, grad_norm=1e-4)


def gradients(arguments):
    """A step's gradient of each parameter in full, as a rank has it."""
    job, engine = build_engine(arguments)
    batches = micro_batches(job, engine, 1)
    engine.forward_backward(
        1, batches, {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
    )
    fused = engine._parts.fused
    found = {name: parameter.grad for name, parameter in named_owners(engine._parts.model)}
    return {name: whole(fused[name].neutral(grad) if name in fused else grad).numpy() for name, grad in found.items()}


@pytest.mark.parametrize("more", [[TENSOR], [TENSOR, SPLIT]], ids=["whole", "split"])
@pytest.mark.parametrize(
    "family", [name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in (*DROPS, "two berts")]
)
def test_each_gradient_is_that_of_one_rank(task, tmp_path, family, more):
    one = run_ranks(gradients, 1, last_wins([*task(family), f"run.dir={tmp_path / 'one'}"]))[0]
    for rank in run_ranks(gradients, 2, last_wins([*task(family), *more, f"run.dir={tmp_path / 'two'}"])):
        assert rank.keys() == one.keys()
        largest = max(abs(gradient).max() for gradient in one.values())
        for name, gradient in rank.items():
            assert abs(gradient - one[name]).max() <= 1e-4 * abs(one[name]).max() + 1e-7 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_split_sequences_stay_near_one_rank_in_bf16(task, tmp_path, family):
    reference = train_curve([*task(family), "precision=bf16"], tmp_path / "one")
    for name, more in {"tensor": [TENSOR], "fsdp": ["strategy=fsdp", "strategy.tensor=2"]}.items():
        arguments = [*task(family), *more, SPLIT, "precision=bf16", "train.micro_batch=4"]
        assert_same_curve(train_curve(arguments, tmp_path / name, 2 if name == "tensor" else 4), reference, loss=1e-2, grad_norm=5e-2)


def evaluated(arguments):
    """A rank's slots in a norm, in training and not; a batch's likelihoods; what the model writes; its slots in training after that."""
    job, engine = build_engine(arguments)
    model, widths = engine._parts.model, []
    block = next(iter(model.get_submodule(job.skeleton.family.blocks[0]).children()))
    norm = next(module for module in block.modules() if "Norm" in type(module).__name__)
    norm.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[1]))
    batches = micro_batches(job, engine, 1)
    counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
    engine.forward_backward(1, batches, counts)
    trained, widths[:] = list(widths), []
    nll = engine.score(batches[0])[1].nll.tolist()
    with engine.inference() as (model, more):
        written = model.generate(batches[0].inputs["input_ids"][:2, :7], max_new_tokens=6, do_sample=False, **more)
    judged, widths[:] = list(widths), []
    engine.forward_backward(1, batches, counts)
    return trained, judged, list(widths), nll, written.tolist()


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "t5", "two berts"))])
def test_evaluation_and_generation_are_unsplit(task, tmp_path, family):
    length = 33
    arguments = [*task(family), "train.micro_batch=16", "data.packing=false", f"data.sequence_length={length}"]
    one = run_ranks(evaluated, 1, last_wins([*arguments, f"run.dir={tmp_path / 'one'}"]))[0]
    two = run_ranks(evaluated, 2, last_wins([*arguments, TENSOR, SPLIT, f"run.dir={tmp_path / 'two'}"]))
    width = one[0][0]
    assert [rank[0][0] for rank in two] == [(width + 1) // 2, width // 2], "the slots of a sequence are dealt out"
    for trained, judged, after, nll, written in two:
        assert judged == one[1] and after == trained
        torch.testing.assert_close(torch.tensor(nll), torch.tensor(one[3]), rtol=1e-5, atol=1e-5)
        assert written == one[4]


def problems_of(world_size, **fields):
    return NativeStrategy(**fields).check(world_size, "fp32", "causal_lm", "llama")


def test_sequences_are_split_over_tensor_ranks_only():
    sentence = "strategy.sequence_parallel=true splits sequences over the tensor ranks, but there is 1"
    for asked in ({"replicate": None}, {"replicate": None, "shard": None, "fully_shard": True}):
        assert any(sentence in problem for problem in problems_of(2, name="x", sequence_parallel=True, **asked))
    assert any(sentence in problem for problem in problems_of(1, name="tensor", tensor=None, sequence_parallel=True))
    assert problems_of(2, name="tensor", tensor=None, sequence_parallel=True) == []
    assert NativeStrategy(tensor=2, sequence_parallel=True).degrees(2) == Degrees(replicate=1, shard=1, tensor=2)


def test_a_model_whose_sequences_nobody_knows_how_to_split_is_refused():
    with torch.device("meta"):
        model = BartForConditionalGeneration(BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_layerdrop=0.1))
    assert "encoder_layerdrop=0.1" in sequence_problems(model, BART)[0]
    model.config.encoder_layerdrop = 0.0
    assert sequence_problems(model, BART) == []
    unknown = Family("Unheard-of", GPT2.blocks, GPT2.heads, GPT2.max_positions)
    assert "Unheard-of" in (problem := sequence_problems(model, unknown)[0]) and "trainer/model/families.py" in problem

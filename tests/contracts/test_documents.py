"""Kernels that are told where documents begin: the scores, gradients and curves of SDPA under a mask, for every family and strategy."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers.masking_utils
from torch._dynamo.utils import counters
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM
from transformers.integrations import flex_attention as integration

from tests.contracts import test_packing as packing
from tests.contracts.tasks import SPREAD, layout
from tests.contracts.varlen_on_cpu import install, train_with_varlen
from tests.unit.objective.corpora import packed, padded, take
from tests.unit.objective.pairs import MODELS, Pair
from trainer.engine.loop import send
from trainer.model import documents
from trainer.model.attention import attend_with, drop_plain
from trainer.model.head import Scorer, swap_head
from trainer.model.lookup import family_of
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.testing import assert_same_curve, last_wins, read_curve, run_ranks, train_curve

CPU = torch.device("cpu")
FLEXIBLE = ["llama", "qwen2", "qwen3"]


def causal_batches():
    """Packed rows, packed and plain ones together, and plain ones alone."""
    tokens = np.random.default_rng(0).integers(0, 61, sum(packing.LENGTHS)).astype(np.uint16)
    several = packing.packed_set(tokens, np.cumsum([0, *packing.LENGTHS[:-1]]).astype(np.int64))
    one = packing.packed_set(tokens, np.zeros(1, np.int64))
    return [packing.collate(several, range(len(several))), packing.collate(several, [2, 0]), packing.collate(one, [1, 2])]


def encoder_case(name, objective):
    """A model that sees both ways, and packed or padded rows of several widths, full and not."""
    pair = Pair(MODELS[name], objective, labels=("a", "b", "c") if objective.task == "classification" else None)
    sets = [(packed if objective.needs(width, None).packs else padded)(objective, width) for width in (40, 12)]
    return pair.stock, [pair.collate(take(samples, ids)) for samples in sets for ids in (np.arange(len(samples)), [0, 1], [0])]


def evaluated(model, task, batch, kernel):
    """The outputs of a micro-batch under a kernel, and of a weighted sum of them the gradients by name."""
    model = copy.deepcopy(model)
    attend_with(kernel, model.config)
    if documents.wants_documents(model.config):
        batch = replace(batch, inputs=batch.inputs | {"documents": documents.boundaries(batch.inputs)})
    batch, family = send(replace(batch, inputs=drop_plain(batch.inputs)), CPU), family_of(model.config.model_type)
    found = Scorer(model, swap_head(model, family.head(task)), family, family.head(task).bias)(batch.inputs, batch.labels, batch.places)
    if found.requires_grad:
        (found * torch.linspace(1, 2, found.numel()).view_as(found)).sum().backward()
    return found.detach(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_alike(model, task, batch, kernel):
    expected, expected_grads = evaluated(model, task, batch, "sdpa")
    found, grads = evaluated(model, task, batch, kernel)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert (grad - expected_grads[name]).abs().max() <= 2e-5 * max(1, expected_grads[name].abs().max()), name


def slow_but(*quick):
    """Marks the other cells of a matrix."""
    return lambda cells: [cell if cell in quick else pytest.param(cell, marks=pytest.mark.slow) for cell in cells]


@pytest.mark.parametrize("name", slow_but("mistral")(packing.CONFIGS))
def test_varlen_has_the_scores_and_gradients_of_sdpa(monkeypatch, name):
    """Mistral shares keys among heads and has windows."""
    install()
    model = AutoModelForCausalLM.from_config(packing.CONFIGS[name](), attn_implementation="sdpa")
    for batch in causal_batches():
        assert_alike(model, "causal_lm", batch, "varlen")

    # Nobody asks the device whether rows are packed, and of two documents taken for one the comparison would have told.
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", never_asked)
    batch = causal_batches()[0]
    expected, _ = evaluated(model, "causal_lm", batch, "varlen")
    monkeypatch.setattr(documents, "boundaries", lambda inputs: torch.arange(0, inputs["input_ids"].numel() + 1, 16, dtype=torch.int32))
    leaked, _ = evaluated(model, "causal_lm", batch, "varlen")
    assert (leaked - expected).abs().max() > 0.05


def never_asked(*_):
    raise AssertionError("transformers was asked whether rows are packed")


@pytest.mark.parametrize("objective", [MaskedLM(), Classification("multi_label")], ids=["packed", "padded"])
@pytest.mark.parametrize("name", slow_but("roberta")(["bert", "roberta"]))
def test_varlen_keeps_apart_what_is_seen_both_ways(name, objective):
    install()
    model, batches = encoder_case(name, objective)
    for batch in batches:
        assert_alike(model, objective.task, batch, "varlen")


@pytest.mark.parametrize("name", slow_but("llama")(FLEXIBLE))
@torch.no_grad()
def test_flex_has_the_scores_of_sdpa(monkeypatch, name):
    """Forward only, uncompiled: on a CPU there is no more of it."""
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", lambda *tensors, training, **told: flex_attention(*tensors, **told))
    model = AutoModelForCausalLM.from_config(packing.CONFIGS[name](), attn_implementation="sdpa")
    for batch in causal_batches():
        assert_alike(model, "causal_lm", batch, "flex")


@pytest.mark.parametrize("objective", [MaskedLM(), Classification("multi_label")], ids=["packed", "padded"])
@pytest.mark.parametrize("name", slow_but()(["bert", "roberta"]))
@torch.no_grad()
def test_flex_keeps_apart_what_is_seen_both_ways(monkeypatch, name, objective):
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", lambda *tensors, training, **told: flex_attention(*tensors, **told))
    model, batches = encoder_case(name, objective)
    for batch in batches:
        assert_alike(model, objective.task, batch, "flex")


@pytest.mark.slow
def test_blocks_compile_in_one_piece_and_not_for_every_batch():
    """Again for another number of documents, again for another longest one, and then no more."""
    install()
    torch._dynamo.reset()
    counters.clear()
    model, family = AutoModelForCausalLM.from_config(packing.CONFIGS["qwen3"](), attn_implementation="sdpa"), family_of("qwen3")
    attend_with("varlen", model.config)
    tokens = np.random.default_rng(0).integers(0, 61, 200).astype(np.uint16)
    starts = [np.unique(np.append(0, np.random.default_rng(seed).integers(1, 200, 3 + 9 * seed))) for seed in range(6)]
    batches = [packing.collate(packing.packed_set(tokens, some.astype(np.int64)), range(4)) for some in starts]
    sent = [send(replace(one, inputs=one.inputs | {"documents": documents.boundaries(one.inputs)}), CPU) for one in batches]
    assert len({one.inputs["documents"].shape for one in sent}) > 3
    scorer = Scorer(model, swap_head(model, family.head("causal_lm")), family)
    expected = [scorer(one.inputs, one.labels) for one in sent]
    for block in model.model.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    for one, theirs in zip(sent, expected, strict=True):
        found = scorer(one.inputs, one.labels)
        found.sum().backward()
        assert (found - theirs).abs().max() < 1e-5
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]


def test_boundaries_are_where_documents_begin_and_rows_end():
    inputs = {
        "input_ids": torch.zeros(3, 5, dtype=torch.int64),
        "position_ids": torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]),
        "lengths": torch.tensor([5, 5, 3]),
    }
    found = documents.boundaries(inputs)
    assert found.dtype == torch.int32 and found.tolist() == [0, 2, 5, 10, 11, 13, 15]
    assert documents.longest_document(found) == 8, "5, rounded up"
    assert documents.longest_document(torch.tensor([0, 4, 6])) == 4 and documents.longest_document(torch.tensor([0, 1])) == 2
    mask = documents.as_mask(found, 8)
    assert mask.shape == (1, 1, 8, 7) and mask.data_ptr() == found.data_ptr(), "a view"


def test_torch_takes_what_its_kernel_is_called_with():
    asked = {"scale", "window_size", "enable_gqa"}
    assert asked <= inspect.signature(varlen.varlen_attn).parameters.keys()


CELLS = [
    ("llama", "single", 1, ()),
    ("llama", "fsdp", 2, ("train.activation_checkpointing=selective",)),
    ("llama", "ddp", 2, ("train.activation_checkpointing=full", "data.workers=1")),
    ("llama", "fsdp", 2, ("train.compile=true",)),
    ("llama", "zero3", 2, ()),
    ("llama", "tensor", 2, ()),
    ("llama", "tensor", 2, ("strategy.sequence_parallel=true", "train.activation_checkpointing=full")),
    ("llama", "pipeline", 2, ("train.activation_checkpointing=full",)),
    ("llama", "3d", 4, ()),
    ("gpt2", "fsdp", 2, ()),
    ("gpt2", "pipeline", 2, ()),
    ("bert", "hsdp", 4, ()),
    ("roberta", "pipeline", 2, ("train.activation_checkpointing=selective",)),
    ("bert tags", "tensor", 2, ()),
    ("llama classes", "fsdp", 2, ()),
]


SHORT = ["train.steps=5", "train.micro_batch=4", "train.evaluate_samples=8", "sample.max_new_tokens=2"]


@pytest.mark.parametrize("cell", slow_but(CELLS[1])(CELLS), ids=str)
def test_varlen_has_the_curve_of_sdpa(task, tmp_path, cell):
    name, strategy, ranks, more = cell
    own = [item for item in more if item.startswith("strategy")]  # nothing else changes a curve
    arguments = [*task(name), *layout(strategy), *([SPREAD] if strategy == "zero3" else []), *SHORT]
    expected = train_curve([*arguments, *own], tmp_path / "sdpa", ranks)
    told = last_wins([*arguments, *more, "train.attention=varlen", f"run.dir={tmp_path / 'varlen'}"])
    assert run_ranks(train_with_varlen, ranks, told) == [(0, True)] * ranks
    assert_same_curve(read_curve(tmp_path / "varlen"), expected)

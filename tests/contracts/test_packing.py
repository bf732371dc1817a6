"""Packed documents do not see each other: their outputs are those of the documents run apart."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from trainer.data.rows import PackedRows
from trainer.data.samples import SampleSet
from trainer.engine.loop import Loop
from trainer.model.attention import drop_plain
from trainer.model.families import FAMILIES
from trainer.model.head import Scorer, swap_head
from trainer.model.lookup import family_of
from trainer.objective.causal_lm import IGNORE, CausalLM
from trainer.types import Batch, Context, Term, Vocabulary, Window

LENGTHS = [5, 1, 9, 3, 13, 1, 1, 8, 6, 11]
LENGTH = 16
CONTEXT = Context(Vocabulary(size=61, bos=None, eos=None, pad=None, sha256=""), seed=0, decoder_start=None, word_starts=np.ones(61, bool))
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,  # large, so that attention weighs and a leak would show
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


def test_every_supported_model_type_is_tried_here():
    causal = {model_type for model_type, family in FAMILIES.items() if family.causal}
    assert set(CONFIGS) == causal, "those that see both ways are tried in tests/unit/model/test_attention.py"


@pytest.fixture(scope="module")
def rows():
    """Rows over a stream of ten documents: several, parts of one, and a document of one token in a row."""
    tokens = np.random.default_rng(0).integers(0, 61, sum(LENGTHS)).astype(np.uint16)
    return packed_set(tokens, np.cumsum([0, *LENGTHS[:-1]]).astype(np.int64))


def packed_set(tokens: np.ndarray, starts: np.ndarray) -> SampleSet:
    return SampleSet({"text": PackedRows(tokens, starts, Window(LENGTH, LENGTH + 1), fill=0)})


def collate(samples: SampleSet, ids: list[int] | range) -> Batch:
    return CausalLM().collate(samples.take(np.array(ids)), CONTEXT)


def build(model_type, attention):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[model_type](), attn_implementation=attention).eval()


def pieces(batch):
    """(row, first slot, end) of each run of slots that belong to one document."""
    for row, positions in enumerate(batch.inputs["position_ids"].tolist()):
        begins = [slot for slot, position in enumerate(positions) if position == 0]
        yield from ((row, begin, end) for begin, end in zip(begins, [*begins[1:], len(positions)], strict=True))


@torch.no_grad()
def apart(model, batch):
    """The logits of each document's tokens, run alone: a batch of one, no position ids given, no padding."""
    logits = torch.zeros(*batch.inputs["input_ids"].shape, 61)
    for row, begin, end in pieces(batch):
        logits[row, begin:end] = model(batch.inputs["input_ids"][row : row + 1, begin:end], use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_packed_is_apart(rows, model_type, attention):
    model = build(model_type, attention)
    batch = collate(rows, range(len(rows)))
    assert sum(1 for _ in pieces(batch)) > len(rows) + 5
    expected = apart(model, batch)
    packed = model(**batch.inputs, use_cache=False).logits
    real = torch.from_numpy(rows.take(np.arange(len(rows))).rows["text"].real[:, :LENGTH])
    assert (packed - expected)[real].abs().max() < 1e-5 * expected.abs().max().clamp(min=1)

    # Control: without restarting positions documents do see each other, and the comparison above notices.
    straight = torch.arange(LENGTH).expand_as(batch.inputs["position_ids"])
    leaked = build(model_type, attention)(input_ids=batch.inputs["input_ids"], position_ids=straight, use_cache=False).logits
    assert (leaked - expected)[real].abs().max() > 0.05


class Likelihoods(CausalLM):
    """Next-token prediction that gives its likelihoods away unsummed."""

    def loss(self, scores, batch):
        return {"nll": Term(scores.nll, "targets")}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_the_training_path_scores_documents_as_if_apart(rows, model_type, attention):
    model = build(model_type, attention)
    family = family_of(model_type)
    scorer = Scorer(model, swap_head(model, family.head("causal_lm")), family)
    job = SimpleNamespace(objective=Likelihoods(), device=torch.device("cpu"), seed=0)
    loop = Loop(SimpleNamespace(model=model, scorer=scorer, rehearses=False), job, data_rank=0, data_size=1)
    plain = packed_set(np.random.default_rng(1).integers(0, 61, 4 * LENGTH + 1).astype(np.uint16), np.zeros(1, np.int64))
    # Packed rows, rows of one document each, both kinds one after the other, and packed ones again.
    for source, ids in ((rows, [0, 1, 2, 3]), (plain, [0, 3]), (plain, [1]), (rows, [2, 0])):
        batch = collate(source, ids)
        found = loop.terms(replace(batch, inputs=drop_plain(batch.inputs)), scorer)["nll"].sum
        expected = cross_entropy(apart(model, batch).flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(found)
        assert (found - expected).abs().max() < 1e-5 * expected.max(), ids


def test_a_documents_first_token_is_no_target_and_every_other_is_one_once(rows):
    batch = collate(rows, range(len(rows)))
    starts = set(np.cumsum([0, *LENGTHS[:-1]]).tolist())
    targets = [row * LENGTH + slot + 1 for row, slot in (batch.labels != IGNORE).nonzero().tolist()]
    assert sorted(targets) == [place for place in range(sum(LENGTHS)) if place not in starts]
    assert batch.counts == {"targets": sum(LENGTHS) - len(LENGTHS)}

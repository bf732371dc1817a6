"""Random weights have the distribution of the stock model's, and computed buffers its values."""

import math

import pytest
import torch

from trainer.model.decoders import Gpt2, Llama
from trainer.model.encoders import Bert, Roberta
from trainer.model.seq2seq import T5, Bart
from trainer.model.skeleton import build_model, build_skeleton
from trainer.model.weights import FromSeed
from trainer.types import Vocabulary

VOCABULARY = Vocabulary(size=700, bos=0, eos=1, pad=2, sha256="")
MODELS = {
    "llama": Llama(num_layers=3, hidden_size=96, num_heads=4, num_kv_heads=2, intermediate_size=160),
    "llama untied": Llama(num_layers=2, tie_embeddings=False, initializer_range=0.05),
    "gpt2": Gpt2(num_layers=3, hidden_size=96),
    "bert": Bert(num_layers=2, hidden_size=96),
    "bert classifier": Bert(num_layers=2, hidden_size=96),
    "roberta": Roberta(num_layers=2, hidden_size=96),
    "roberta classifier": Roberta(num_layers=2, hidden_size=96),
    "llama classifier": Llama(num_layers=2, hidden_size=96),
    "gpt2 classifier": Gpt2(num_layers=2, hidden_size=96),
    "t5": T5(num_layers=2, hidden_size=96),
    "t5 gated, untied": T5(num_layers=2, hidden_size=96, feed_forward="gated-gelu", tie_embeddings=False),
    "bart": Bart(num_layers=2, hidden_size=96),
}
TASKS = {"bert": "masked_lm", "roberta": "masked_lm", "t5": "seq2seq", "bart": "seq2seq", "llama": "causal_lm", "gpt2": "causal_lm"}


def skeleton_of(name):
    if "classifier" in name:
        return build_skeleton(MODELS[name], "classification", VOCABULARY, labels=("a", "b", "c"), label_kind="class")
    return build_skeleton(MODELS[name], TASKS[name.split()[0]], VOCABULARY)


def stock_of(skeleton):
    return build_model(skeleton.model.config, skeleton.task)


@pytest.mark.parametrize("name", MODELS)
def test_mean_and_deviation_are_those_of_the_stock_model(name):
    skeleton = skeleton_of(name)
    weights = FromSeed(skeleton, seed=5)
    torch.manual_seed(0)
    stock = stock_of(skeleton)
    for path, theirs in stock.named_parameters():
        ours = weights.fill(path)
        assert ours.shape == theirs.shape and ours.dtype == torch.float32, path
        deviation, size = theirs.std().item(), theirs.numel()
        if deviation == 0:
            assert torch.equal(ours, theirs), path
            continue
        # Two samples of n normal numbers: means differ by sigma * sqrt(2/n), deviations by sigma / sqrt(n), times 5.
        assert abs(ours.mean() - theirs.mean()) < 5 * deviation * math.sqrt(2 / size), path
        assert abs(ours.std() / deviation - 1) < 5 / math.sqrt(size), path
        assert not torch.equal(ours, theirs), path


def test_gpt2_scales_what_writes_to_the_residual_stream():
    model = Gpt2(num_layers=8, hidden_size=96)
    weights = FromSeed(build_skeleton(model, "causal_lm", VOCABULARY), seed=0)
    for path in ("transformer.h.7.attn.c_proj.weight", "transformer.h.7.mlp.c_proj.weight"):
        assert weights.fill(path).std() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.03)
    assert weights.fill("transformer.h.7.mlp.c_fc.weight").std() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_computed_buffers_are_the_stock_models(name):
    skeleton = skeleton_of(name)
    weights = FromSeed(skeleton, seed=5)
    stock = stock_of(skeleton)
    buffers = dict(stock.named_buffers())
    assert {path for path, _ in skeleton.model.named_buffers()} == set(buffers)
    assert "llama" not in name or any("inv_freq" in path for path in buffers)
    for path, buffer in buffers.items():
        assert torch.equal(weights.fill(path), buffer), path


def test_values_depend_on_name_and_seed_not_on_the_order_of_asking():
    skeleton = skeleton_of("llama")
    names = [name for name, _ in skeleton.model.named_parameters()]
    forward, backward = FromSeed(skeleton, 1), FromSeed(skeleton, 1)
    drawn = {name: forward.fill(name).clone() for name in names}
    state = torch.get_rng_state()
    for name in reversed(names):
        assert torch.equal(backward.fill(name), drawn[name]), name
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    deeper = FromSeed(build_skeleton(Llama(**{**vars(MODELS["llama"]), "num_layers": 5}), "causal_lm", VOCABULARY), 1)
    assert all(torch.equal(deeper.fill(name), drawn[name]) for name in names)
    assert not torch.equal(FromSeed(skeleton, 2).fill(names[0]), drawn[names[0]])


def test_a_slice_is_a_slice_and_an_alias_is_its_owner():
    weights = FromSeed(skeleton_of("gpt2"), 1)
    whole = weights.fill("transformer.wte.weight")
    assert torch.equal(weights.fill("transformer.wte.weight", (slice(7, 90), slice(0, 5))), whole[7:90, :5])
    assert torch.equal(weights.fill("lm_head.weight"), whole)

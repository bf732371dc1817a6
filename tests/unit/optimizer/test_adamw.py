"""The optimizer: what decays, what state there is from the start, and that it is AdamW."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from trainer.model.decoders import Gpt2, Llama
from trainer.model.names import named_owners
from trainer.optimizer import adamw
from trainer.optimizer.adamw import build_adamw, make_moments
from trainer.optimizer.config import BF16_STEP, AdamW
from trainer.types import Vocabulary

VOCABULARY = Vocabulary(size=64, bos=0, eos=1, pad=2, sha256="")
SHAPES = {
    "llama": Llama(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24),
    "gpt2": Gpt2(num_layers=2, hidden_size=16, num_heads=2, max_positions=32),
}


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPES[name].build_config(VOCABULARY))


@pytest.mark.parametrize("name", SHAPES)
def test_matrices_and_embeddings_decay_and_vectors_do_not(name):
    model = build(name)
    named = dict(named_owners(model))
    optimizer = build_adamw(AdamW(weight_decay=0.3), named.items())
    names = {id(parameter): key for key, parameter in named.items()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == named.keys(), "every parameter once, tied ones too"
    for key, value in decay.items():
        is_vector = key.endswith(".bias") or any(part in key for part in ("norm", "ln_"))
        assert value == (0.0 if is_vector else 0.3), key
    assert set(decay.values()) == {0.0, 0.3}


def test_all_state_is_there_before_the_first_step_and_nothing_else_comes():
    model = build("llama")
    optimizer = build_adamw(AdamW(), named_owners(model))
    assert not optimizer.state, "an engine that puts other tensors in the parameters' place makes their moments"
    make_moments(optimizer, model.parameters())
    before = {id(p): {key: value.data_ptr() for key, value in optimizer.state[p].items()} for p in model.parameters()}
    assert all(set(keys) == {"step", "exp_avg", "exp_avg_sq"} for keys in before.values())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {id(p): {key: value.data_ptr() for key, value in optimizer.state[p].items()} for p in model.parameters()} == before
    assert all(optimizer.state[p]["step"].item() == 1 for p in model.parameters())


def test_five_steps_are_those_of_the_formula():
    config = AdamW(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.5)
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
    expected, m, v = weight.detach().double().clone(), 0.0, 0.0
    optimizer = build_adamw(config, [("weight", weight)])
    for step in range(1, 6):
        weight.grad = torch.sin(torch.arange(6.0).view(2, 3) * step)
        gradient = weight.grad.double()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
    assert torch.allclose(weight.double(), expected, rtol=1e-5, atol=1e-6)


def rounded(tensor):
    return tensor.to(torch.bfloat16).double()


@pytest.mark.parametrize("at_once", [2**24, 5])
def test_bf16_moments_are_rounded_behind_a_step_of_fp32(monkeypatch, at_once):
    monkeypatch.setattr(adamw, "_AT_ONCE", at_once)
    config = AdamW(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.5, moments="bf16")
    weights = {name: torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3) * size) for name, size in (("a", 1), ("b", 3))}
    weights["vector"] = torch.nn.Parameter(torch.linspace(1, 2, 4))
    optimizer = build_adamw(config, weights.items())
    make_moments(optimizer, weights.values())
    expected = {name: (weight.detach().double().clone(), 0.0, 0.0) for name, weight in weights.items()}
    for step in range(1, 6):
        for name, weight in weights.items():
            weight.grad = torch.sin(torch.arange(1.0, weight.numel() + 1).view_as(weight) * step)
            gradient = weight.grad.double()
            w, m, v = expected[name]
            m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
            w = w * (1 - 0.1 * (0.5 if weight.ndim > 1 else 0)) - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
            expected[name] = w, rounded(m), rounded(v)
        optimizer.step()
    for name, weight in weights.items():
        state = optimizer.state[weight]
        assert {key: value.dtype for key, value in state.items()} == {
            "step": torch.float32,
            "exp_avg": torch.bfloat16,
            "exp_avg_sq": torch.bfloat16,
        }
        assert state["step"] == 5
        torch.testing.assert_close(weight.double(), expected[name][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["exp_avg"].double(), expected[name][1], rtol=2**-7, atol=0)  # the last bit, at a border
        torch.testing.assert_close(state["exp_avg_sq"].double(), expected[name][2], rtol=2**-7, atol=0)


def test_a_step_that_is_not_finite_leaves_bf16_moments_untouched():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = build_adamw(AdamW(moments="bf16"), [("weight", weight)])
    make_moments(optimizer, [weight])
    for gradient, found_inf in ((0.3, 0.0), (float("nan"), 1.0)):
        before = [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]
        weight.grad = torch.full_like(weight, gradient)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        after = [weight.detach(), *optimizer.state[weight].values()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)) == bool(found_inf)


@pytest.mark.parametrize("gradient", [0.0, 1e-3])
def test_the_largest_decay_that_is_allowed_still_shrinks_every_moment(gradient):
    weight = torch.nn.Parameter(torch.ones(2**7, 1))
    optimizer = build_adamw(AdamW(beta1=1 - BF16_STEP, beta2=1 - BF16_STEP, moments="bf16"), [("weight", weight)])
    make_moments(optimizer, [weight])
    every = torch.arange(128, 256, dtype=torch.bfloat16)[:, None]  # each number that bf16 has of one power of two
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[weight][key].copy_(every)
    weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    assert all((optimizer.state[weight][key] < every).all() for key in ("exp_avg", "exp_avg_sq"))


def test_what_is_frozen_is_left_out():
    model = build("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    optimizer = build_adamw(AdamW(), named_owners(model))
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in named_owners(model)} - {id(model.transformer.wpe.weight)}

"""The optimizer: what decays, what state there is from the start, and that it is AdamW."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from trainer.model.decoders import Gpt2, Llama
from trainer.model.names import named_owners
from trainer.optimizer.adamw import build_adamw, make_moments
from trainer.optimizer.config import AdamW
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


def test_what_is_frozen_is_left_out():
    model = build("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    optimizer = build_adamw(AdamW(), named_owners(model))
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in named_owners(model)} - {id(model.transformer.wpe.weight)}

"""The scorer decides about packing on the host: nothing asks the device, and the scores are those of transformers' own decision."""

from types import SimpleNamespace

import pytest
import torch
import transformers.masking_utils
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from trainer.engine.loop import _may_drop
from trainer.model.attention import attends_fully, drop_plain_positions
from trainer.model.families import family_of
from trainer.model.head import Scorer, swap_head

LENGTH = 12
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}
CONFIGS = {
    "llama": LlamaConfig(**LLAMA),
    "gpt2": GPT2Config(vocab_size=40, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2),
    "mistral": MistralConfig(**LLAMA, sliding_window=None),
    "mistral, sliding": MistralConfig(**LLAMA, sliding_window=4),
}
PLAIN = torch.arange(LENGTH).expand(2, -1)
PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5], [*range(LENGTH)]])


def build(name, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


def never_asked(*_):
    raise AssertionError("transformers was asked whether rows are packed")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [PLAIN, PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_scores_are_those_of_transformers(monkeypatch, name, positions, attention):
    model, asked = build(name, attention), attention == "eager" or "sliding" in name
    ids, labels = torch.randint(40, (2, LENGTH)), torch.randint(40, (2, LENGTH))
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, LENGTH)
    assert attends_fully(model.config) == (not asked)
    if not asked:
        monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", never_asked)
    scorer = Scorer(model, swap_head(model, family_of(model.config.model_type).head))
    scores = scorer(drop_plain_positions({"input_ids": ids, "position_ids": positions}), labels)
    assert (scores - expected).abs().max() < 1e-5
    assert model.config._attn_implementation == attention, "the model is what it was, for whoever calls it next"


def test_positions_are_left_out_where_they_say_nothing():
    ids = torch.zeros_like(PLAIN)
    assert drop_plain_positions({"input_ids": ids, "position_ids": PLAIN}).keys() == {"input_ids"}
    assert drop_plain_positions({"input_ids": ids, "position_ids": PACKED}).keys() == {"input_ids", "position_ids"}
    late = PLAIN.clone()
    late[1, -1] = 0
    assert "position_ids" in drop_plain_positions({"input_ids": ids, "position_ids": late}), "a document that begins in the last slot"
    assert drop_plain_positions({"input_ids": ids}).keys() == {"input_ids"}


@pytest.mark.parametrize(
    ("config", "drops"),
    [
        (LlamaConfig(), False),
        (LlamaConfig(attention_dropout=0.1), True),
        (GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, summary_first_dropout=0), False),
        (GPT2Config(), True),
    ],
)
def test_dropout_is_found_in_the_config(config, drops):
    assert _may_drop(SimpleNamespace(config=config, modules=lambda: iter(()))) == drops


def test_dropout_is_found_among_the_modules():
    model = SimpleNamespace(config=LlamaConfig(), modules=lambda: iter([torch.nn.Linear(1, 1), torch.nn.Dropout(0.1)]))
    assert _may_drop(model)

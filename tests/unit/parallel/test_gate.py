"""What of a model cannot be split is refused by name, before any process group."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel, EncoderDecoderConfig, EncoderDecoderModel

from trainer.assembly import open_job
from trainer.config import load
from trainer.distributed.launch import Launch
from trainer.errors import Refused
from trainer.model.families import ENCODER_DECODER, Family
from trainer.parallel.tensor import tensor_problems
from trainer.testing import last_wins

CASES = [
    (["model.num_heads=6", "model.num_kv_heads=3", "model.hidden_size=48"], 2, ["num_key_value_heads=3"]),
    (["model.num_heads=3", "model.num_kv_heads=3", "model.hidden_size=48"], 2, ["num_attention_heads=3", "num_key_value_heads=3"]),
    (["model.intermediate_size=97"], 2, ["97 units of the model's model.layers.0.mlp."]),
    (["objective=masked_lm", "model=bert_tiny", "model.num_heads=2"], 4, ["num_attention_heads=2"]),
    (["model=gpt2_tiny", "model.num_heads=3", "model.hidden_size=48"], 2, ["n_head=3"]),
]


@pytest.mark.parametrize(("more", "ranks", "named"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_what_a_degree_does_not_divide_is_named(tiny, more, ranks, named):
    arguments = last_wins([*tiny, *more, "strategy=tensor"])
    with pytest.raises(Refused) as refused:
        open_job(load(arguments, ranks), Launch(0, ranks, 0, ranks))
    assert [name for name in named if not any(name in problem for problem in refused.value.problems)] == [], refused.value.problems
    assert all(problem.startswith(f"strategy.tensor={ranks} does not divide ") for problem in refused.value.problems)


def test_the_buckets_of_relative_positions_are_not_split(tiny):
    """T5 looks up each head's bias by one of 32 buckets; 3 ranks share 6 heads, whatever the buckets."""
    shape = ["model.num_heads=6", "model.hidden_size=48", "model.intermediate_size=96"]
    arguments = last_wins([*tiny, "objective=span_corruption", "model=t5_tiny", *shape, "strategy=tensor"])
    assert open_job(load(arguments, 3), Launch(0, 3, 0, 3)).skeleton.model.config.relative_attention_num_buckets % 3


def test_each_of_two_models_has_heads_and_words_of_its_own():
    def bert(heads, words):
        return BertConfig(vocab_size=words, hidden_size=24, num_hidden_layers=1, num_attention_heads=heads, intermediate_size=32)

    def problems(encoder, decoder, degree):
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        with torch.device("meta"):
            return tensor_problems(SimpleNamespace(model=EncoderDecoderModel(config), family=ENCODER_DECODER), degree)

    assert problems(bert(4, 9), bert(2, 7), 2) == []
    (heads,) = problems(bert(4, 9), bert(3, 9), 2)
    assert "does not divide the model's num_attention_heads=3" in heads
    (words,) = problems(bert(8, 9), bert(8, 7), 8)
    assert "vocabulary of 7" in words


def test_a_family_without_a_plan_is_refused_by_name():
    with torch.device("meta"):
        model = BertModel(BertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32))
    (problem,) = tensor_problems(SimpleNamespace(model=model, family=Family("Unheard-of", ("encoder.layer",), {}, ())), 2)
    assert "Unheard-of" in problem and "trainer/model/families.py" in problem

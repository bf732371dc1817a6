"""What of a model cannot be split is refused by name, before any process group."""

import pytest

from trainer.assembly import open_job
from trainer.config import load
from trainer.distributed.launch import Launch
from trainer.errors import Refused
from trainer.testing import last_wins

CASES = [
    (["model.num_heads=6", "model.num_kv_heads=3", "model.hidden_size=48"], 2, ["num_key_value_heads=3"]),
    (["model.num_heads=3", "model.num_kv_heads=3", "model.hidden_size=48"], 2, ["num_attention_heads=3", "num_key_value_heads=3"]),
    (["model.intermediate_size=97"], 2, ["97 units of the model's model.layers.0.mlp."]),
    (["objective=masked_lm", "model=bert_tiny", "model.num_heads=2"], 4, ["num_attention_heads=2"]),
]


@pytest.mark.parametrize(("more", "ranks", "named"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_what_a_degree_does_not_divide_is_named(tiny, more, ranks, named):
    arguments = last_wins([*tiny, *more, "strategy=tensor"])
    with pytest.raises(Refused) as refused:
        open_job(load(arguments, ranks), Launch(0, ranks, 0, ranks))
    assert [name for name in named if not any(name in problem for problem in refused.value.problems)] == [], refused.value.problems
    assert all(problem.startswith(f"strategy.tensor={ranks} does not divide ") for problem in refused.value.problems)

"""Experiments, and debug=cpu on top of each: what it changes, what it leaves alone, and what it refuses."""

from pathlib import Path

import pytest

from trainer import config
from trainer.errors import Refused
from trainer.schema import leaves

ROOT = Path(__file__).parents[2]
EXPERIMENTS = config.folders().options("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_debug_makes_it_small(experiment):
    full = config.load([f"experiment={experiment}"], 1)
    debug = config.load([f"experiment={experiment}", "debug=cpu"], 1)
    assert (debug.run.device, debug.precision.compute, debug.train.steps, debug.data.sequence_length) == ("cpu", "fp32", 10, 64)
    for group in ("objective", "model", "data"):
        assert type(getattr(debug, group)) is type(getattr(full, group)), "what is learned from what stays the same"
    if hasattr(full.model, "hidden_size"):
        assert debug.model.hidden_size == 64 < full.model.hidden_size and debug.model.num_layers == 2
    else:
        assert debug.model == full.model, "pretrained weights keep their shape"
    assert getattr(debug.model, "dropout", None) == getattr(full.model, "dropout", None)
    assert debug.optimizer.lr == full.optimizer.lr


def test_what_is_typed_wins_over_debug():
    loaded = config.load(["experiment=gpt2_stdlib", "debug=cpu", "train.steps=30", "model.hidden_size=32", "run.device=null"], 1)
    assert (loaded.train.steps, loaded.model.hidden_size, loaded.run.device, loaded.model.num_layers) == (30, 32, None, 2)


@pytest.mark.parametrize("model", config.folders().options("model"))
def test_every_model_can_be_made_small(model):
    """Also one with keys that the small size must not leave behind, such as Llama's key-value heads."""
    objectives = {"seq2seq": ("t5", "bart", "encoder_decoder"), "masked_lm": ("bert", "roberta"), "classification": ("minilm",)}
    objective = next((name for name, prefixes in objectives.items() if model.startswith(prefixes)), "causal_lm")
    more = {"classification": ["data=vader"]}.get(objective, [])
    given = {"pretrained": ["model.path=x"], "from_config": ["model.path=x"], "encoder_decoder": ["model.encoder=x"]}.get(model, [])
    loaded = config.load([f"model={model}", f"objective={objective}", *more, *given, "debug=cpu"], 1)
    assert not list(loaded.model.problems())
    assert "hidden_size" not in leaves(loaded.model) or loaded.model.hidden_size == 64


@pytest.fixture
def mine(tmp_path):
    """Writes debug/mine.yaml into a folder of the user's own and loads with it."""

    def load(text, *arguments):
        (tmp_path / "debug").mkdir()
        (tmp_path / "debug" / "mine.yaml").write_text(text)
        return config.load(["debug=mine", *arguments], 1, config_dir=tmp_path)

    return load


def test_ones_own_debug_may_choose_options_and_builds_on_cpu(mine):
    text = "# @package _global_\ndefaults:\n  - cpu\n  - override /strategy: fsdp\n  - _self_\ntrain: {steps: 5}\n"
    loaded = mine(text, "experiment=gpt2_stdlib")
    assert (loaded.strategy.name, loaded.train.steps, loaded.model.hidden_size) == ("fsdp", 5, 64)


def test_a_typed_choice_wins_over_debugs(mine):
    text = "# @package _global_\ndefaults:\n  - override /model: bert_tiny\n  - override /objective: masked_lm\n"
    loaded = mine(text, "model=roberta_tiny", "experiment=gpt2_stdlib")
    assert (type(loaded.model).__name__, type(loaded.objective).__name__) == ("Roberta", "MaskedLM")


def test_a_key_of_another_option_is_left_alone_but_no_misspelt_one(mine):
    with pytest.raises(Refused) as refusal:
        mine("# @package _global_\nmodel:\n  num_kv_heads: 2\n  hiden_size: 5\ndata:\n  document: line\n", "model=gpt2_tiny")
    (sentence,) = refusal.value.problems
    assert "model.hiden_size" in sentence and "mine.yaml:4" in sentence and "did you mean model.hidden_size" in sentence


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {steps: 5}\n", "# @package _global_"),
        ("# @package _global_\ntrain:\n  steps: many\n", r"mine\.yaml:3\) is not a whole number"),
        ("# @package _global_\ntrain:\n  steps: 0\n", r"mine\.yaml:3\) is out of range"),
        ("# @package _global_\nplugins: [evil]\n", "plugins"),
        ("# @package _global_\ndefaults:\n  - override /model: gpt2_tinny\n", r"mine\.yaml:3.*gpt2_tiny"),
        ("# @package _global_\ntrain: {steps: 5\n", "not valid YAML"),
    ],
)
def test_odd_debug_files_are_refused_in_words(mine, text, says):
    with pytest.raises(Refused, match=says):
        mine(text)


def test_an_unknown_debug_is_refused():
    with pytest.raises(Refused, match=r"debug=cup is not an option of debug, which has cpu: did you mean debug=cpu\?"):
        config.load(["debug=cup"], 1)

"""Decoders in no list of ours: what transformers' own plans say of them is enough to train, and what it is not enough for is refused."""

import json
import re
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.unit.objective.corpora import VOCABULARY, packed, take
from tests.unit.objective.pairs import Pair, pieces
from trainer.errors import Refused
from trainer.model.families import FAMILIES
from trainer.model.gate import model_problems
from trainer.model.lookup import family_of
from trainer.model.planned import planned_problems
from trainer.model.pretrained import FromConfig, Pretrained
from trainer.model.skeleton import build_skeleton
from trainer.model.weights import FromSafetensors, FromSeed
from trainer.objective.causal_lm import CausalLM
from trainer.parallel.cutting import pipeline_problems
from trainer.parallel.tensor import tensor_problems
from trainer.testing import assert_same_curve, train_curve

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large values, so that attention weighs
    "sliding_window": 6,
}
TRAINED = ("gemma", "olmo2", "phi", "glm", "gpt_neox", "starcoder2", "phi3", "smollm3", "exaone4", "ministral")
"""Scaled embeddings; norms over all heads at once; a head with a bias; gate and up in one; names of its own; layers that know no positions;
norms of each head; sliding windows."""
NOT_SPLIT = ("phi3", "glm", "olmo2")  # along the sequence: what is gathered between two layers is no sequence's part


def folder_of(kind, folder, **more):
    """A Hugging Face folder with nothing but the config.json of a small model of a type."""
    folder.mkdir(exist_ok=True)
    fields = {"model_type": kind, **SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **more}
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def dense():
    """Every decoder that is in no list of ours and whose plans this transformers has."""
    for kind, config in CONFIG_MAPPING.items():
        if kind not in FAMILIES and config in AutoModelForCausalLM._model_mapping:
            try:
                family_of(kind)
            except Refused:
                continue
            yield kind


LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
}
FITTING = {"youtu": LATENT, "minicpm3": LATENT, "granite_swa": {"layer_types": ["full_attention", "sliding_attention"]}}
"""What a small one needs beside ``SHAPE``."""
NOT_SO_SMALL = {"cohere_compass_text", "gemma3n_text", "phi4_multimodal"}
"""Cannot be built from ``SHAPE``; two of them would be refused."""


def small(kind, folder):
    """The skeleton of a small one and its preset, with the attention that transformers has for it."""
    model = FromConfig(path=folder_of(kind, folder, **FITTING.get(kind, {})))
    try:
        return build_skeleton(model, "causal_lm", VOCABULARY), model
    except Refused:
        model.attention = "eager"
        return build_skeleton(model, "causal_lm", VOCABULARY), model


@torch.no_grad()
def difference(model):
    """Of the loss of packed documents, through our head and masks, from that of the stock model on each of them."""
    pair = Pair(model, CausalLM(), model.attention)
    samples = packed(pair.objective, 40)
    taken = take(samples, np.arange(len(samples)))
    batch, losses = pair.collate(taken), []
    for row, begin, end in pieces(taken.rows["text"]):
        logits = pair.stock(batch.inputs["input_ids"][row : row + 1, begin:end], use_cache=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels[row, begin:end], reduction="sum").item())
    assert len(losses) > len(samples)
    return abs(pair.term(batch).sum.item() / sum(losses) - 1)


def gate(skeleton):
    """Everything that is said of a model, its weights included."""
    with suppress(Refused):
        FromSeed(skeleton, 1)
        return planned_problems(skeleton)
    return ["its weights"]


@pytest.mark.filterwarnings("ignore")
def test_packed_documents_of_every_such_decoder_score_as_they_do_alone_in_transformers(tmp_path):
    """What passes the gate is right, also under a window that is shorter than its texts."""
    worst = {}
    for kind in set(dense()) - NOT_SO_SMALL:
        skeleton, model = small(kind, tmp_path / kind)
        if not gate(skeleton):
            worst[kind] = difference(model)
    assert {kind: value for kind, value in worst.items() if value > 1e-5} == {}
    assert worst.keys() >= {*TRAINED} and len(worst) > 20


@pytest.mark.filterwarnings("ignore")
def test_a_seed_draws_every_tensor_of_theirs(tmp_path):
    """Not what was in memory: a second drawing, of memory that holds something else, is the same."""
    for kind in TRAINED:
        skeleton, _ = small(kind, tmp_path / kind)
        one, other = FromSeed(skeleton, 3), FromSeed(skeleton, 3)
        names = [name for name, _ in (*skeleton.model.named_parameters(), *skeleton.model.named_buffers())]
        drawn = [one.fill(name).clone() for name in names]
        with memory_full_of_nan():
            assert all(torch.equal(other.fill(name), value) for name, value in zip(names, drawn, strict=True))


@contextmanager
def memory_full_of_nan():
    """What is allocated without being written to holds NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cohere", "a cohere scales or caps its logits behind the head, and the loss is made from"),
        ("gemma2", "a gemma2 scales or caps its logits behind the head"),
        ("hrm_text", "transformers' plan of a hrm_text does not say what its L_module is: give it a row in trainer/model/families.py"),
        ("qwen3_5_text", "'qwen3_5_text' keeps a state that runs on from one packed document to the next"),
        ("mixtral", "'mixtral' is a mixture of experts"),
        ("gpt_oss", "'gpt_oss' is a mixture of experts"),  # whose plan does not say so
        ("apertus", "how model.layers.0.mlp.act_fn.* of a apertus begins, so that a seed cannot draw it"),
        ("gemma", "this gemma attends to later tokens too"),
        ("opt", r"'opt' is not supported.*needs a row in trainer/model/families.py \(docs/adding-a-model-family.md\)"),
        ("nowhere", "model type `nowhere`"),
    ],
)
def test_what_no_plan_says_is_refused(kind, sentence, tmp_path):
    with pytest.raises(Refused, match=sentence):
        more = {"use_bidirectional_attention": True} if kind == "gemma" else {}
        skeleton = build_skeleton(FromConfig(path=folder_of(kind, tmp_path / "model", **more), attention="eager"), "causal_lm", VOCABULARY)
        FromSeed(skeleton, 1)
        raise Refused(planned_problems(skeleton))


def test_a_plan_with_other_ways_is_refused_under_tensor_parallelism_only(tmp_path):
    skeleton = build_skeleton(FromConfig(path=folder_of("gemma", tmp_path)), "causal_lm", VOCABULARY)
    assert tensor_problems(skeleton, 2) == [] and pipeline_problems(skeleton, "1f1b") == []
    skeleton.model.config.base_model_tp_plan = {"layers.*.self_attn.q_proj": "colwise", "layers.*.self_attn.kv": "mla_kv_a_proj"}
    (problem,) = tensor_problems(skeleton, 2)
    assert problem == "strategy.tensor=2: transformers splits a gemma by mla_kv_a_proj too, which is not done here: use strategy=fsdp."


@pytest.mark.parametrize(
    ("kind", "more", "sentence"),
    [
        ("phi", {"qk_layernorm": True}, "does not say how its model.layers.0.self_attn.q_layernorm.weight is split: use strategy=fsdp"),
        ("olmo", {"clip_qkv": 8.0}, "strategy.tensor=2 does not go with the model's clip_qkv=8.0: use strategy=fsdp."),
        ("granite_swa", {}, "does not say how its|by local_params too"),
    ],
)
def test_what_works_between_split_layers_without_being_planned_is_refused(tmp_path, kind, more, sentence):
    model = FromConfig(path=folder_of(kind, tmp_path, **FITTING.get(kind, {}), **more), attention="eager")
    assert any(re.search(sentence, problem) for problem in tensor_problems(build_skeleton(model, "causal_lm", VOCABULARY), 2))


def test_rotary_frequencies_that_depend_on_the_longest_text_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    skeleton = build_skeleton(FromConfig(path=folder_of("llama", tmp_path, rope_parameters=rope)), "causal_lm", VOCABULARY)
    of_length = lambda length: model_problems(skeleton, VOCABULARY, CausalLM().needs(length, None), length, None, True)  # noqa: E731
    assert of_length(64) == []
    assert any("beyond 64 positions the model's rope_type=dynamic takes other frequencies" in problem for problem in of_length(65))


@pytest.mark.parametrize("more", [{"hidden_size": "wide"}, {"hidden_act": "none such"}])
def test_a_config_that_does_not_fit_together_is_refused(tmp_path, more):
    with pytest.raises(Refused, match=r"config\.json"):
        build_skeleton(FromConfig(path=folder_of("gemma", tmp_path, **more)), "causal_lm", VOCABULARY)


def test_a_model_without_blocks_is_refused(tmp_path):
    skeleton = build_skeleton(FromConfig(path=folder_of("gemma", tmp_path, num_hidden_layers=0)), "causal_lm", VOCABULARY)
    assert any("no blocks" in problem for problem in model_problems(skeleton, VOCABULARY, CausalLM().needs(8, None), 8, None, True))


def test_an_attention_that_a_model_does_not_have_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"model\.attention=sdpa: transformers has none for a gemma2: set model.attention=eager"):
        build_skeleton(FromConfig(path=folder_of("gemma2", tmp_path)), "causal_lm", VOCABULARY)


def test_a_config_of_several_models_is_refused(tmp_path):
    with pytest.raises(Refused, match="joins several models"):
        FromConfig(
            path=folder_of("encoder-decoder", tmp_path, encoder={"model_type": "bert"}, decoder={"model_type": "bert"})
        ).build_config(VOCABULARY)


@pytest.fixture(scope="module")
def arguments(task, tmp_path_factory):
    """The tiny run of a decoder that is known by its config.json alone."""
    common = [argument for argument in task("llama") if not argument.startswith("model")]

    def of(kind, **more):
        folder = folder_of(kind, tmp_path_factory.mktemp(kind) / "model", **more)
        return [*common, "train.micro_batch=4", "model=from_config", f"model.path={folder}"]

    return of


def test_it_is_read_from_a_folder_where_transformers_calls_it_otherwise(tmp_path):
    config = CONFIG_MAPPING["gpt_neox"](**SHAPE, vocab_size=61)
    stock = AutoModelForCausalLM.from_config(config)
    stock.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "embed_out.weight" in file.keys() and "lm_head.weight" not in file.keys()  # noqa: SIM118 -- it is no dict
    skeleton = build_skeleton(Pretrained(path=str(tmp_path)), "causal_lm", VOCABULARY, {"": tmp_path})
    weights = FromSafetensors(skeleton, seed=1)
    for name, parameter in stock.named_parameters():
        assert torch.equal(weights.fill(name), parameter)


LAYOUTS = {
    "tensor": (2, ["strategy=tensor"]),
    "pipeline": (2, ["strategy=pipeline"]),
    "fsdp": (2, ["strategy=fsdp"]),
    "sequence": (2, ["strategy=tensor", "strategy.sequence_parallel=true"]),
    "3d": (8, ["strategy=3d", "train.micro_batch=2"]),
}
CELLS = [
    pytest.param(kind, layout, marks=() if (kind, layout) in (("olmo2", "pipeline"),) else pytest.mark.slow)
    for layout in LAYOUTS
    for kind in TRAINED
    if not (layout == "sequence" and kind in NOT_SPLIT) and not (layout == "3d" and kind != "gemma")
]


@pytest.mark.parametrize(("kind", "layout"), CELLS)
def test_it_has_the_curve_of_one_rank(arguments, tmp_path, kind, layout):
    ranks, overrides = LAYOUTS[layout]
    run = arguments(kind)
    assert_same_curve(train_curve([*run, *overrides], tmp_path / "run", ranks), train_curve(run, tmp_path / "one"))

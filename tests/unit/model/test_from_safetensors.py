"""Pretrained folders: whatever their files look like, the right weights or a sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trainer.errors import Refused
from trainer.model.config import Gpt2, Llama, Pretrained
from trainer.model.gate import model_problems
from trainer.model.skeleton import build_skeleton
from trainer.model.weights import FromSafetensors
from trainer.types import Vocabulary

VOCABULARY = Vocabulary(size=64, bos=0, eos=1, pad=2, sha256="")
SHAPES = {
    "llama": Llama(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24),
    "untied": Llama(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24, tie_embeddings=False),
    "gpt2": Gpt2(num_layers=2, hidden_size=16, num_heads=2, max_positions=32),
}


def stock(name, dtype=torch.float32):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(SHAPES[name].build_config(VOCABULARY), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return model


def weights_of(folder):
    return FromSafetensors(build_skeleton(Pretrained(path=str(folder)), VOCABULARY, folder), 0)


def assert_same(folder, model):
    weights = weights_of(folder)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        value = weights.fill(name)
        assert value.dtype == torch.float32 and torch.equal(value, parameter.float()), name
        part = tuple(slice(size // 3, size) for size in parameter.shape)
        assert torch.equal(weights.fill(name, part), parameter.float()[part]), name
    for name, buffer in model.named_buffers():
        assert torch.equal(weights.fill(name), buffer.float()), name


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("files", ["one", "several"])
def test_what_transformers_saved_is_read_back(tmp_path, name, files):
    model = stock(name)
    model.save_pretrained(tmp_path, **({"max_shard_size": "6KB"} if files == "several" else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (files == "several") == (tmp_path / "model.safetensors.index.json").exists()
    assert_same(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_fp32(tmp_path, dtype):
    model = stock("llama", dtype)
    model.save_pretrained(tmp_path)
    weights = weights_of(tmp_path)
    for name, parameter in model.named_parameters():
        value = weights.fill(name)
        assert parameter.dtype == dtype and value.dtype == torch.float32 and torch.equal(value, parameter.float())
    inv_freq = "model.rotary_emb.inv_freq"
    assert torch.equal(weights.fill(inv_freq), stock("llama").get_buffer(inv_freq)), "what is computed is computed in fp32"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def test_names_without_the_base_models_prefix_are_found(tmp_path):
    model = stock("gpt2")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert_same(tmp_path, model)


def test_a_tied_weight_stored_as_the_head_is_found(tmp_path):
    model = stock("llama")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()})
    assert_same(tmp_path, model)


def test_tensors_that_the_model_does_not_have_do_not_matter(tmp_path):
    model = stock("gpt2")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, "transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)})
    assert_same(tmp_path, model)


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def altered(name, tensor):
    return lambda tensors: {**tensors, name: tensor}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", without("model.layers.1.mlp.up_proj.weight"), ["hold no 'model.layers.1.mlp.up_proj.weight'"]),
        ("untied", without("lm_head.weight"), ["hold no 'lm_head.weight'"]),
        ("llama", altered("model.norm.weight", torch.ones(17)), ["'model.norm.weight' is (17,)", "asks for (16,)"]),
        ("llama", altered("model.norm.weight", torch.ones(16, dtype=torch.int8)), ["'model.norm.weight' is I8", "quantized"]),
    ],
)
def test_what_does_not_fit_is_named_at_the_model_gate(tmp_path, name, change, said):
    stock(name).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    skeleton = build_skeleton(Pretrained(path=str(tmp_path)), VOCABULARY, tmp_path)
    (problem,) = model_problems(skeleton, VOCABULARY, 8, same_tokenizer=True)
    for words in [*said, f"model.path={tmp_path}"]:
        assert words in problem
    with pytest.raises(Refused, match=r"model\.path"):
        FromSafetensors(skeleton, 0)


def test_pickled_weights_are_not_read_and_the_way_out_is_said(tmp_path):
    model = stock("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"no \*\.safetensors.*save_pretrained"):
        weights_of(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"model.norm.weight": "model-00009.safetensors"}}',
        '{"weight_map": ["model.safetensors"]}',
        '["weight_map"]',
        "{}",
        "{",
    ],
)
def test_a_broken_index_is_a_sentence(tmp_path, index):
    stock("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match="safetensors cannot be read"):
        weights_of(tmp_path)


def test_a_broken_file_is_a_sentence(tmp_path):
    stock("llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Refused, match="safetensors cannot be read"):
        weights_of(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    stock("llama").save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    with pytest.raises(Refused, match="cannot be read"):
        weights_of(folder)


def test_a_config_that_is_none_or_unknown_is_a_sentence(tmp_path):
    with pytest.raises(Refused, match=r"config\.json"):
        build_skeleton(Pretrained(path=str(tmp_path)), VOCABULARY, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(Refused, match=r"'bloom' is not supported; supported are .*llama"):
        build_skeleton(Pretrained(path=str(tmp_path)), VOCABULARY, tmp_path)

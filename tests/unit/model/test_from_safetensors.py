"""Pretrained folders: whatever their files look like, the right weights or a sentence."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from trainer.errors import Refused
from trainer.model.decoders import Gpt2, Llama
from trainer.model.encoders import Bert, Roberta
from trainer.model.pretrained import EncoderDecoder, Pretrained
from trainer.model.seq2seq import T5, Bart
from trainer.model.skeleton import build_skeleton
from trainer.model.weights import FromSafetensors, FromSeed
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
    return FromSafetensors(build_skeleton(Pretrained(path=str(folder)), "causal_lm", VOCABULARY, {"": folder}), 0)


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
def test_what_does_not_fit_is_named(tmp_path, name, change, said):
    stock(name).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    skeleton = build_skeleton(Pretrained(path=str(tmp_path)), "causal_lm", VOCABULARY, {"": tmp_path})
    with pytest.raises(Refused) as refused:
        FromSafetensors(skeleton, 0)
    (problem,) = refused.value.problems
    for words in [*said, f"model.path={tmp_path}"]:
        assert words in problem


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
        build_skeleton(Pretrained(path=str(tmp_path)), "causal_lm", VOCABULARY, {"": tmp_path})
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(Refused, match=r"'bloom' is not supported; supported are .*llama"):
        build_skeleton(Pretrained(path=str(tmp_path)), "causal_lm", VOCABULARY, {"": tmp_path})


def saved(folder, preset, cls, **fields):
    """A stock model of transformers with values that nobody would find by guessing, saved."""
    torch.manual_seed(len(str(cls)))
    config = preset.build_config(VOCABULARY)
    config.update(fields)
    model = cls.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(folder)
    return dict(model.named_parameters())


def opened(folder, task, labels=None, kind=None):
    preset = Pretrained(path=str(folder))
    skeleton = build_skeleton(preset, task, VOCABULARY, preset.fetch(), labels, kind)
    return skeleton, FromSafetensors(skeleton, 0)


def assert_filled(skeleton, weights, stored, new):
    """What is stored comes from the folder, by whatever name; what is new is what a fresh model of this seed has."""
    drawn = FromSeed(skeleton, 0)
    assert sorted(weights.new) == sorted(new)
    for name, _ in skeleton.model.named_parameters():
        expected = drawn.fill(name) if name in new else stored[name]
        assert torch.equal(weights.fill(name), expected), name


ENCODERS = {
    "bert": Bert(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24),
    "roberta": Roberta(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24),
}
NEW = {
    ("bert", "masked_lm"): [
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    ],
    ("bert", "classification"): ["classifier.weight", "classifier.bias"],
    ("roberta", "masked_lm"): [
        "lm_head.bias",
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
    ],
    ("roberta", "classification"): [f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")],
}
CLASS_NAMES = {"labels": ("a", "b", "c"), "kind": "class"}


@pytest.mark.parametrize(("family", "task"), NEW)
def test_an_encoder_that_was_saved_alone_gets_a_new_head(tmp_path, family, task):
    stored = saved(tmp_path, ENCODERS[family], AutoModel)
    assert any(name.startswith("encoder.") for name in load_file(tmp_path / "model.safetensors"))
    skeleton, weights = opened(tmp_path, task, **(CLASS_NAMES if task == "classification" else {}))
    assert_filled(skeleton, weights, {f"{family}.{name}": value for name, value in stored.items()}, NEW[family, task])


@pytest.mark.parametrize("family", ENCODERS)
def test_a_model_with_its_head_is_read_whole(tmp_path, family):
    stored = saved(tmp_path, ENCODERS[family], AutoModelForMaskedLM)
    assert_filled(*opened(tmp_path, "masked_lm"), stored, [])


def test_a_head_of_another_task_makes_way(tmp_path):
    """From masked language modelling to classification; the pooler is new there too."""
    stored = saved(tmp_path, ENCODERS["bert"], AutoModelForMaskedLM)
    pooler = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    assert_filled(*opened(tmp_path, "classification", **CLASS_NAMES), stored, NEW["bert", "classification"] + pooler)


@pytest.mark.parametrize(("labels", "new"), [(("x", "y", "z"), []), (("x", "y"), NEW["bert", "classification"])])
def test_a_classifier_is_kept_where_there_are_as_many_classes(tmp_path, labels, new):
    stored = saved(tmp_path, ENCODERS["bert"], AutoModelForSequenceClassification, num_labels=3)
    assert_filled(*opened(tmp_path, "classification", labels, "class"), stored, new)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_gets_a_classifier(tmp_path, name):
    model = stock(name)
    model.save_pretrained(tmp_path)
    assert_filled(*opened(tmp_path, "classification", **CLASS_NAMES), dict(model.named_parameters()), ["score.weight"])


def test_what_no_task_is_new_to_is_still_missed(tmp_path):
    saved(tmp_path, ENCODERS["bert"], AutoModel)
    rewrite(tmp_path, without("encoder.layer.1.output.dense.weight"))
    with pytest.raises(Refused, match=r"hold no 'bert.encoder.layer.1.output.dense.weight'"):
        opened(tmp_path, "classification", **CLASS_NAMES)


@pytest.mark.parametrize("preset", [T5(num_layers=2, hidden_size=16, num_heads=2), Bart(num_layers=2, hidden_size=16, num_heads=2)])
def test_encoder_decoders_are_read_back(tmp_path, preset):
    stored = saved(tmp_path, preset, AutoModelForSeq2SeqLM)
    assert_filled(*opened(tmp_path, "seq2seq"), stored, [])


def test_a_bias_behind_the_head_that_is_not_zero_is_refused(tmp_path):
    saved(tmp_path, Bart(num_layers=1, hidden_size=16, num_heads=2), AutoModelForSeq2SeqLM)
    rewrite(tmp_path, altered("final_logits_bias", torch.ones(1, VOCABULARY.size)))
    with pytest.raises(Refused, match=r"'final_logits_bias' is not zero"):
        opened(tmp_path, "seq2seq")


class TestTwoEncodersJoined:
    def opened(self, reads, writes):
        preset = EncoderDecoder(encoder=str(reads), decoder=str(writes))
        skeleton = build_skeleton(preset, "seq2seq", VOCABULARY, preset.fetch())
        return skeleton, FromSafetensors(skeleton, 0)

    def new(self, skeleton):
        return [name for name, _ in skeleton.model.named_parameters() if ".crossattention." in name]

    @pytest.mark.parametrize("reader", [AutoModel, AutoModelForMaskedLM])
    def test_each_half_is_its_folders(self, tmp_path, reader):
        """The reader with or without a head, the writer with its own; nothing but what joins them is new."""
        first = saved(tmp_path / "reads", ENCODERS["bert"], reader)
        second = saved(tmp_path / "writes", replace(ENCODERS["bert"], num_layers=1), AutoModelForMaskedLM)
        skeleton, weights = self.opened(tmp_path / "reads", tmp_path / "writes")
        stored = {f"encoder.{name.removeprefix('bert.')}": value for name, value in first.items()}
        stored |= {f"decoder.{name}": value for name, value in second.items()}
        assert len(self.new(skeleton)) == 10
        assert_filled(skeleton, weights, stored, self.new(skeleton))

    def test_a_writer_without_a_head_gets_one(self, tmp_path):
        saved(tmp_path, ENCODERS["bert"], AutoModel)
        skeleton, weights = self.opened(tmp_path, tmp_path)
        assert sorted(weights.new) == sorted(self.new(skeleton) + [f"decoder.{name}" for name in NEW["bert", "masked_lm"]])

    def test_what_joins_different_widths_is_new(self, tmp_path):
        saved(tmp_path / "reads", ENCODERS["bert"], AutoModel)
        saved(tmp_path / "writes", replace(ENCODERS["bert"], hidden_size=32), AutoModelForMaskedLM)
        skeleton, weights = self.opened(tmp_path / "reads", tmp_path / "writes")
        joins = ["enc_to_dec_proj.weight", "enc_to_dec_proj.bias"]
        assert sorted(weights.new) == sorted(self.new(skeleton) + joins)
        assert weights.fill("enc_to_dec_proj.weight").shape == (32, 16)

    def test_what_a_half_lacks_is_named_with_its_folder(self, tmp_path):
        saved(tmp_path / "reads", ENCODERS["bert"], AutoModel)
        saved(tmp_path / "writes", ENCODERS["bert"], AutoModelForMaskedLM)
        rewrite(tmp_path / "writes", without("bert.embeddings.LayerNorm.weight"))
        with pytest.raises(Refused, match=rf"{tmp_path / 'writes'}: its safetensors hold no 'decoder.bert.embeddings.LayerNorm.weight'"):
            self.opened(tmp_path / "reads", tmp_path / "writes")

"""The skeleton of every family and task: the class that transformers has for it, on meta, with nothing that the loss never reaches."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.unit.objective.corpora import VOCABULARY, packed, padded, take
from tests.unit.objective.pairs import MODELS, SHAPE, WIDE, Pair, model_of
from trainer.errors import Refused
from trainer.model.encoders import Bert
from trainer.model.families import FAMILIES
from trainer.model.lookup import family_of
from trainer.model.pretrained import EncoderDecoder, Pretrained
from trainer.model.skeleton import CLASSES, build_skeleton, task_of
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import LABELS, Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq

CELLS = {
    ("llama", "causal_lm"): "LlamaForCausalLM",
    ("llama", "classification"): "LlamaForSequenceClassification",
    ("gpt2", "causal_lm"): "GPT2LMHeadModel",
    ("gpt2", "classification"): "GPT2ForSequenceClassification",
    ("bert", "masked_lm"): "BertForMaskedLM",
    ("bert", "classification"): "BertForSequenceClassification",
    ("roberta", "masked_lm"): "RobertaForMaskedLM",
    ("roberta", "classification"): "RobertaForSequenceClassification",
    ("t5", "seq2seq"): "T5ForConditionalGeneration",
    ("bart", "seq2seq"): "BartForConditionalGeneration",
    ("encoder-decoder", "seq2seq"): "EncoderDecoderModel",
}
OBJECTIVES = {"causal_lm": CausalLM(), "masked_lm": MaskedLM(), "seq2seq": Seq2Seq(), "classification": Classification()}


def skeleton_of(family, task, folder, labels=("a", "b", "c"), kind="class"):
    model = model_of(family, folder)
    classes = {"labels": labels, "label_kind": kind} if task == "classification" else {}
    return build_skeleton(model, task, VOCABULARY, model.fetch(), **classes)


def test_every_family_and_task_is_tried_here():
    families = {model_type: set(family.heads) for model_type, family in FAMILIES.items()}
    tried = {name: {task for family, task in CELLS if family == name} for name, _ in CELLS}
    assert tried == {name: tasks for name, tasks in families.items() if name in tried}
    untried = {name for name in families if name not in tried}
    assert {family_of(name).name for name in untried} == {"Llama-like"}


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_it_is_transformers_class_on_meta(family, task, tmp_path):
    skeleton = skeleton_of(family, task, tmp_path)
    assert type(skeleton.model).__name__ == CELLS[family, task] and skeleton.model.config.architectures == [CELLS[family, task]]
    assert {tensor.device.type for tensor in (*skeleton.model.parameters(), *skeleton.model.buffers())} == {"meta"}
    assert {parameter.dtype for parameter in skeleton.model.parameters()} == {torch.float32}
    stock = CLASSES[task].from_config(skeleton.model.config)
    unused = [f"{path}." for path in skeleton.family.unused]
    theirs = {name: parameter.shape for name, parameter in stock.named_parameters() if not name.startswith(tuple(unused))}
    assert {name: parameter.shape for name, parameter in skeleton.model.named_parameters()} == theirs
    assert skeleton.num_parameters == sum(shape.numel() for shape in theirs.values())
    before, head = chain.from_iterable(skeleton.family.before), skeleton.head
    for path in (*skeleton.family.blocks, *before, head.linear, head.block, head.bias):
        assert path is None or path == "final_logits_bias" or skeleton.model.get_submodule(path) is not None
    assert skeleton.family.longest(skeleton.model.config) == (None if family == "t5" else 64)


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_the_loss_reaches_every_parameter(family, task, tmp_path):
    """Else DDP would wait for gradients that never come."""
    pair = Pair(model_of(family, tmp_path), OBJECTIVES[task], labels=("a", "b", "c") if task == "classification" else None)
    samples = (packed if task in ("causal_lm", "masked_lm") else padded)(pair.objective, 40)
    batch = pair.collate(take(samples, np.arange(len(samples))))
    trained = {name for name, _ in skeleton_of(family, task, tmp_path).model.named_parameters()}
    pair.term(batch).sum.backward()
    assert {name for name, parameter in pair.scorer.model.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("family", ["llama", "bert", "roberta", "t5", "bart", "gpt2"])
@pytest.mark.parametrize("task", CLASSES)
def test_a_task_that_a_family_cannot_do_is_refused(family, task, tmp_path):
    if (family, task) not in CELLS:
        with pytest.raises(Refused, match=rf"objective: the model is a .*, which is trained as .* here, not as {task}"):
            skeleton_of(family, task, tmp_path)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", LABELS.values())
def test_labels_are_in_the_config_as_transformers_spells_them(family, kind, tmp_path):
    names = None if kind == "number" else ("bad", "good")
    config = skeleton_of(family, "classification", tmp_path, names, kind).model.config
    assert (
        config.problem_type
        == {
            "class": "single_label_classification",
            "classes": "multi_label_classification",
            "number": "regression",
        }[kind]
    )
    assert config.id2label == ({0: "value"} if kind == "number" else {0: "bad", 1: "good"})
    assert config.num_labels == len(config.id2label) and config.label2id == {name: id for id, name in config.id2label.items()}
    assert config.pad_token_id == VOCABULARY.pad


def test_a_pretrained_decoder_finds_a_rows_end_by_the_tokenizers_padding(tmp_path):
    config = MODELS["llama"].build_config(VOCABULARY)
    config.pad_token_id = 40  # a token of the text here
    config.save_pretrained(tmp_path)
    pair = Pair(Pretrained(path=str(tmp_path)), Classification("regression"))
    samples = padded(pair.objective, 40)
    losses = [pair.loss(pair.collate(take(samples, np.arange(15), widths={"text": width}))) for width in (40, 56)]
    assert pair.config.pad_token_id == VOCABULARY.pad and losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_a_saved_config_says_what_it_was_for(family, task, tmp_path):
    config = skeleton_of(family, task, tmp_path).model.config
    config.save_pretrained(tmp_path / "saved")
    assert task_of(AutoConfig.from_pretrained(tmp_path / "saved")) == task


@pytest.mark.parametrize("named", [["BertModel"], ["BertForQuestionAnswering"], None])
def test_a_config_without_a_task_is_a_sentence(named):
    config = MODELS["bert"].build_config(VOCABULARY)
    config.architectures = named
    with pytest.raises(Refused, match=r"config\.json names .*, which is not a model for any of the tasks causal_lm"):
        task_of(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*MODELS, "encoder-decoder"])
def test_the_attention_that_is_asked_for_is_used_in_every_part(family, attention, tmp_path):
    model = replace(model_of(family, tmp_path), attention=attention)
    task = next(task for name, task in CELLS if name == family.split()[0])
    skeleton = build_skeleton(model, task, VOCABULARY, model.fetch())
    used = {module.config._attn_implementation for module in skeleton.model.modules() if hasattr(module, "config")}
    assert used == {attention}


class TestEncoderDecoder:
    def test_the_decoder_becomes_one_and_knows_the_tokenizer(self, tmp_path):
        config = skeleton_of("encoder-decoder", "seq2seq", tmp_path).model.config
        assert config.decoder.is_decoder and config.decoder.add_cross_attention and not config.encoder.is_decoder
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
        assert config.vocab_size == VOCABULARY.size and (config.encoder.num_hidden_layers, config.decoder.num_hidden_layers) == (2, 1)

    def test_one_folder_serves_both_halves(self, tmp_path):
        model_of("encoder-decoder", tmp_path)
        model = EncoderDecoder(encoder=str(tmp_path / "reads"))
        assert model.fetch() == {"encoder.": tmp_path / "reads", "decoder.": tmp_path / "reads"}
        tensors = dict(build_skeleton(model, "seq2seq", VOCABULARY, model.fetch()).model.named_parameters())
        assert "encoder.embeddings.word_embeddings.weight" in tensors and "decoder.bert.embeddings.word_embeddings.weight" in tensors

    def test_other_families_are_refused(self, tmp_path):
        model_of("encoder-decoder", tmp_path)
        MODELS["roberta"].build_config(VOCABULARY).save_pretrained(tmp_path / "roberta")
        model = EncoderDecoder(encoder=str(tmp_path / "reads"), decoder=str(tmp_path / "roberta"))
        with pytest.raises(Refused, match=r"the decoder is a roberta; an encoder-decoder is made of two BERTs"):
            build_skeleton(model, "seq2seq", VOCABULARY, model.fetch())

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_halves_of_different_widths_are_joined_too(self, tmp_path):
        for name, width in (("narrow", 16), ("wide", 32)):
            config = Bert(**{**SHAPE, "hidden_size": width}, **WIDE).build_config(VOCABULARY)
            CLASSES["masked_lm"].from_config(config).save_pretrained(tmp_path / name)
        pair = Pair(EncoderDecoder(encoder=str(tmp_path / "narrow"), decoder=str(tmp_path / "wide")), Seq2Seq())
        batch = pair.collate(take(padded(Seq2Seq(), 40), np.arange(15)))
        mask = (torch.arange(40) < batch.inputs["lengths"][:, None]).long()
        theirs = pair.their_loss(input_ids=batch.inputs["input_ids"], attention_mask=mask, labels=batch.labels)
        assert pair.loss(batch) == pytest.approx(theirs, rel=1e-6)


def test_a_folder_of_an_unknown_family_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert"}))
    with pytest.raises(Refused, match=r"'albert' is not supported; supported are bart, bert, encoder-decoder"):
        build_skeleton(Pretrained(path=str(tmp_path)), "masked_lm", VOCABULARY, {"": tmp_path})


def test_classes_in_another_order_than_the_folders_are_refused(tmp_path):
    """A head that was trained would take one class for another."""
    first = build_skeleton(Bert(num_layers=1, hidden_size=16, num_heads=2), "classification", VOCABULARY, {}, ("bad", "good"), "class")
    first.model.config.save_pretrained(tmp_path)
    build_skeleton(Pretrained(path=str(tmp_path)), "classification", VOCABULARY, {"": tmp_path}, ("bad", "good"), "class")
    with pytest.raises(Refused, match=r"counts its classes as bad, good, but data.label in sorted order is good, bad"):
        build_skeleton(Pretrained(path=str(tmp_path)), "classification", VOCABULARY, {"": tmp_path}, ("good", "bad"), "class")

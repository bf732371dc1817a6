"""Tokenizers trained here and brought along."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from trainer.data.tokenizer import copy_tokenizer, find_tokenizer, hash_files, load_tokenizer, same_vocabulary, train_tokenizer
from trainer.errors import Refused

TEXTS = ["def f(x):\n    return x + 1\n", "import os\n\nfor name in os.listdir('.'):\n    print(name)\n"] * 5
HARD = ["  def f(x):\n\treturn 'é😀' , . !\r\n", "", " ", "a\x00b\ufeff", "don 't  stop   ", "日本語 <|eos|> <|bos|>"]


@pytest.fixture
def trained(tmp_path):
    train_tokenizer(TEXTS, 290, tmp_path / "trained")
    return tmp_path / "trained"


def test_training_is_deterministic(trained, tmp_path):
    train_tokenizer(iter(TEXTS), 290, tmp_path / "again")
    assert hash_files(trained) == hash_files(tmp_path / "again")


def test_every_text_comes_back(trained):
    tokenizer, vocabulary = load_tokenizer(trained)
    for text in HARD:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert {vocabulary.bos, vocabulary.eos, vocabulary.pad}.isdisjoint(ids), "text that spells a special token is text"
    assert vocabulary.size == 290
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (0, 1, 2)


def test_transformers_loads_it_and_agrees(trained):
    ours, vocabulary = load_tokenizer(trained)
    theirs = AutoTokenizer.from_pretrained(trained)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (vocabulary.bos, vocabulary.eos, vocabulary.pad)
    assert len(theirs) == vocabulary.size
    for text in HARD[:-1]:
        ids = theirs(text)["input_ids"]
        assert ids == [vocabulary.bos, *ours.encode(text, add_special_tokens=False).ids]
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_transformers_saves_it_with_the_same_vocabulary(trained, tmp_path):
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path / "saved")
    assert same_vocabulary(trained, tmp_path / "saved")
    train_tokenizer(["other text entirely"] * 3, 290, tmp_path / "other")
    assert not same_vocabulary(trained, tmp_path / "other")


def named(trained, tmp_path, config: dict, model_config: dict | None = None):
    """A folder as found in the wild: cuts and pads by itself, special tokens named in one place or another."""
    folder = tmp_path / "named"
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_config:
        (folder / "config.json").write_text(json.dumps(model_config))
    return folder


@pytest.mark.parametrize(
    ("config", "model_config"),
    [({"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}, None), ({}, {"bos_token_id": 0, "eos_token_id": [1, 2]})],
)
def test_a_copy_loads_by_itself_and_never_cuts(trained, tmp_path, config, model_config):
    copy_tokenizer(find_tokenizer(str(named(trained, tmp_path, config | {"auto_map": {"x": "code.py"}}, model_config))), tmp_path / "copy")
    tokenizer, vocabulary = load_tokenizer(tmp_path / "copy")
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (0, 1, None)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0], add_special_tokens=False).ids) == TEXTS[0]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 1)
    assert "auto_map" not in json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("config", "model_config", "sentence"),
    [
        ({"bos_token": "<s>"}, None, r"bos_token='<s>', which tokenizer.json does not contain"),
        ({}, {"eos_token_id": 320}, r"eos_token_id=320, which is outside the vocabulary"),
    ],
)
def test_special_ids_outside_the_vocabulary_are_refused(trained, tmp_path, config, model_config, sentence):
    with pytest.raises(Refused, match=sentence):
        copy_tokenizer(named(trained, tmp_path, config, model_config), tmp_path / "copy")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"has no tokenizer\.json"):
        find_tokenizer(str(tmp_path))
    with pytest.raises(Refused, match=r"neither a folder here nor a hub id"):
        find_tokenizer(str(tmp_path / "missing" / "folder"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match=r"cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_mask_and_sentinels_follow_the_other_special_tokens(tmp_path):
    train_tokenizer(TEXTS, 400, tmp_path / "all", ("sentinels", "mask"))
    ours, vocabulary = load_tokenizer(tmp_path / "all")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "all")
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.mask) == (0, 1, 2, 3)
    assert (theirs.mask_token, theirs.mask_token_id) == ("<|mask|>", 3)
    assert theirs.convert_ids_to_tokens(list(vocabulary.sentinels)) == [f"<extra_id_{number}>" for number in range(100)]
    assert tuple(sorted(theirs.all_special_ids)) == vocabulary.special == tuple(range(104))
    text = "a <extra_id_5> b <|mask|>"
    assert set(vocabulary.special).isdisjoint(ours.encode(text, add_special_tokens=False).ids), "text that spells a special token is text"
    copy_tokenizer(tmp_path / "all", tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy")[1] == vocabulary


def write(folder, tokenizer: Tokenizer, config: dict | None = None):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def word_level(tokens: list[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return tokenizer


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
        None,
    ],
)
def test_cls_and_sep_frame_a_document_where_there_is_no_bos_and_eos(tmp_path, config):
    folder = write(tmp_path / "bert", word_level([*BERT, "a", "b"], BERT), config)
    vocabulary = load_tokenizer(folder)[1]
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.mask) == (2, 3, 0, 4)
    assert vocabulary.special == (0, 1, 2, 3, 4)
    copy_tokenizer(folder, tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy")[1] == vocabulary
    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id, theirs.pad_token_id) == (2, 3, 4, 0)
    assert theirs.bos_token_id is None


def test_bos_and_eos_come_before_cls_and_sep(tmp_path):
    tokens = ["<s>", "</s>", "[CLS]", "[SEP]"]
    config = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = load_tokenizer(write(tmp_path / "both", word_level([*tokens, "a"], tokens), config))[1]
    assert (vocabulary.bos, vocabulary.eos) == (0, 1)


def test_sentinels_are_sorted_by_number_wherever_they_stand(tmp_path):
    """As T5 has them: no bos, sentinels at the end, the last one first."""
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(12))]
    tokenizer = word_level(["<pad>", "</s>", "<unk>", "a", "b"], ["<pad>", "</s>", "<unk>", *sentinels])
    config = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}, "additional_special_tokens": sentinels}
    vocabulary = load_tokenizer(write(tmp_path / "t5", tokenizer, config))[1]
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (None, 1, 0)
    assert vocabulary.sentinels == tuple(range(16, 4, -1))
    assert vocabulary.special == (0, 1, 2, *range(5, 17))


def test_tokens_that_only_a_file_calls_special_are_special(tmp_path):
    tokenizer = word_level(["a", "b", "<turn>", "<end>"], [])
    config = {"additional_special_tokens": ["<turn>", {"content": "<end>"}, "<absent>"]}
    assert load_tokenizer(write(tmp_path / "chat", tokenizer, config))[1].special == (2, 3)

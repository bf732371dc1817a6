"""Word starts of tokenizers of each kind, made here."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.data.words import word_starts

TEXTS = ["the walking man was talking\n\tand walking, unwalkable paths\n", "talking walks and the unknown walker"] * 5


def starts(folder) -> tuple[Tokenizer, np.ndarray]:
    tokenizer, vocabulary = load_tokenizer(folder)
    begins = word_starts(folder, vocabulary)
    assert begins.dtype == bool
    assert begins.shape == (vocabulary.size,)
    assert begins[list(vocabulary.special)].all()
    return tokenizer, begins


def words(folder, text: str) -> list[str]:
    """The text cut where a word begins, in the tokenizer's own spelling."""
    tokenizer, begins = starts(folder)
    found: list[str] = []
    for id in tokenizer.encode(text, add_special_tokens=False).ids:
        if begins[id] or not found:
            found.append("")
        found[-1] += tokenizer.id_to_token(id)
    return found


def save(tokenizer: Tokenizer, folder):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def wordpiece(folder, prefix: str = "##"):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=prefix))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=prefix)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, continuing_subword_prefix=prefix, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return save(tokenizer, folder)


def unigram(folder):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [AddedToken(token, special=True) for token in ("<pad>", "</s>", "<unk>")]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return save(tokenizer, folder)


def llama(folder):
    """As Llama's: blanks become a mark in the normalizer, unknown letters become bytes."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.train_from_iterator([" ".join(text.split()) for text in TEXTS], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return save(tokenizer, folder)


def test_byte_level(tmp_path):
    train_tokenizer(TEXTS, 300, tmp_path / "byte", ())
    assert words(tmp_path / "byte", "walking talks\n\tunheard of,é x") == ["walking", "Ġtalks", "Ċ", "ĉunheard", "Ġof,Ã©", "Ġx"]


@pytest.mark.parametrize("prefix", ["##", "@@"])
def test_word_piece(tmp_path, prefix):
    found = words(wordpiece(tmp_path / "wordpiece", prefix), "walking unwalk, the")
    assert [word.replace(prefix, "") for word in found] == ["walking", "unwalk", ",", "the"]


def test_unigram_with_marked_blanks(tmp_path):
    assert words(unigram(tmp_path / "unigram"), "walking unwalk the") == ["▁walking", "▁unwalk", "▁the"]


def test_marked_blanks_by_normalizer(tmp_path):
    assert words(llama(tmp_path / "llama"), "walking é\nunwalk the") == ["▁walking", "▁<0xC3><0xA9>", "<0x0A>unwalk", "▁the"]


def test_where_words_are_not_marked_every_token_is_one(tmp_path):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=60, end_of_word_suffix="</w>", show_progress=False))
    assert starts(save(tokenizer, tmp_path / "suffix"))[1].all()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert starts(save(tokenizer, tmp_path / "words"))[1].all()

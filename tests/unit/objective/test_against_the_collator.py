"""Masked batches agree in distribution with those of transformers' DataCollatorForLanguageModeling, on real text."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.data.words import word_starts
from trainer.objective.masked_lm import MaskedLM
from trainer.types import IGNORE, Context, Rows, Samples

WIDTH = 64
EPOCHS = 6


def train_wordpiece(texts, folder):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


@pytest.fixture(scope="module", params=["byte-level", "WordPiece"])
def text(request, corpus_folder, tmp_path_factory):
    """Rows between bos and eos, uneven in length, as the data layer makes them and as transformers' tokenizers do.

    The texts are plain words with blanks between them: what else begins a word is for each tokenizer to say, and the two say different
    things of punctuation.
    """
    folder = tmp_path_factory.mktemp("tokenizer") / "folder"
    words = re.findall("[a-z]+", " ".join(path.read_text() for path in sorted(corpus_folder.iterdir())).lower())
    texts = [" ".join(words[begin : begin + 12 + begin % 15]) for begin in range(0, 36_000, 30)]
    if request.param == "byte-level":
        train_tokenizer(texts, 400, folder, special_tokens=("mask",))
    else:
        train_wordpiece(texts, folder)
    tokenizer, vocabulary = load_tokenizer(folder)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = np.full((len(texts), WIDTH), vocabulary.fill)
    offsets = np.zeros((len(texts), WIDTH, 2), np.int64)
    lengths = np.array([min(len(encoding), WIDTH - 2) for encoding in encoded])
    for row, (encoding, length) in enumerate(zip(encoded, lengths, strict=True)):
        tokens[row, : length + 2] = [vocabulary.bos, *encoding.ids[:length], vocabulary.eos]
        # Without the blank before a word, as the tokenizers of GPT-2 and RoBERTa tell it: the collator knows words by the gaps.
        offsets[row, 1 : length + 1] = [(begin + (texts[row][begin] == " "), end) for begin, end in encoding.offsets[:length]]
    starts = np.zeros(tokens.shape, bool)
    starts[:, 0] = True
    rows = Rows(tokens, np.tile(np.arange(WIDTH), (len(texts), 1)), starts, lengths + 2)
    return SimpleNamespace(
        rows=rows,
        offsets=offsets,
        special=np.isin(tokens, vocabulary.special),
        context=Context(vocabulary, 5, None, word_starts(folder, vocabulary)),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )


def ours(text, objective):
    """What is seen and what is wanted, (EPOCHS * B, W) each, -100 where nothing is."""
    ids = np.arange(len(text.rows.tokens))
    seen, wanted = [], []
    for epoch in range(EPOCHS):
        batch = objective.collate(Samples(ids, np.full_like(ids, epoch), {"text": text.rows}), text.context)
        labels = np.full(text.rows.tokens.size, IGNORE)
        labels[batch.places.numpy()] = batch.labels.numpy()
        seen.append(batch.inputs["input_ids"].numpy())
        wanted.append(labels.reshape(text.rows.tokens.shape))
    return np.concatenate(seen), np.concatenate(wanted)


def theirs(text, **options):
    collator = DataCollatorForLanguageModeling(text.tokenizer, seed=7, **options)
    examples = [
        {"input_ids": tokens, "special_tokens_mask": special, "offset_mapping": offsets}
        for tokens, special, offsets in zip(
            text.rows.tokens.tolist(), text.special.astype(int).tolist(), text.offsets.tolist(), strict=True
        )
    ]
    batches = [collator.torch_call([dict(example) for example in examples]) for _ in range(EPOCHS)]
    return tuple(np.concatenate([batch[key].numpy() for batch in batches]) for key in ("input_ids", "labels"))


def same_share(ours, theirs, total):
    """Whether two binomial counts out of ``total`` each may come from one share: within 4.5 deviations of their difference."""
    share = (ours + theirs) / (2 * total)
    return abs(ours - theirs) <= 4.5 * math.sqrt(2 * total * share * (1 - share))


def kinds(text, seen, wanted):
    """Where tokens are chosen, and of these where hidden, replaced and left, (4, EPOCHS * B, W)."""
    chosen = wanted != IGNORE
    tokens = np.tile(text.rows.tokens, (EPOCHS, 1))
    assert np.array_equal(wanted[chosen], tokens[chosen]) and np.array_equal(seen[~chosen], tokens[~chosen])
    hidden = chosen & (seen == text.context.vocabulary.mask)
    left = chosen & (seen == tokens)
    return np.stack([chosen, hidden, chosen & ~hidden & ~left, left])


@pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), pytest.param((0.4, 0.3, 0.6), marks=pytest.mark.slow)], ids=str)
def test_tokens(text, shares):
    probability, masked, random = shares
    mine = kinds(text, *ours(text, MaskedLM(*shares)))
    other = kinds(text, *theirs(text, mlm_probability=probability, mask_replace_prob=masked, random_replace_prob=random))
    special = np.tile(text.special, (EPOCHS, 1))
    num_text = int((~special).sum())
    assert num_text > 100_000 and not mine[:, special].any() and not other[:, special].any()
    for each, their_each in zip(mine, other, strict=True):
        assert same_share(int(each.sum()), int(their_each.sum()), num_text)
        for slot in np.flatnonzero((~special).sum(0) > 500):
            assert same_share(int(each[:, slot].sum()), int(their_each[:, slot].sum()), int((~special[:, slot]).sum())), slot
    tokens = np.tile(text.rows.tokens, (EPOCHS, 1))
    common = [token for token, count in enumerate(np.bincount(tokens[~special])) if count > 1000]
    assert len(common) > 20
    for token in common:
        alike = tokens == token
        assert same_share(int(mine[0][alike].sum()), int(other[0][alike].sum()), int(alike.sum())), token


def test_whole_words(text):
    """Their whole words are always hidden, never replaced or left."""
    mine, _, replaced, left = kinds(text, *ours(text, MaskedLM(0.15, 1.0, 0.0, whole_word=True)))
    other, *_ = kinds(text, *theirs(text, whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0))
    assert not replaced.any() and not left.any()
    words, _ = DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask(text.offsets, text.special)
    words = np.tile(np.where(words < 0, -1, words + 1000 * np.arange(len(words))[:, None]), (EPOCHS, 1))
    words = np.where(words < 0, -1, words + 10**7 * (np.arange(len(words)) // len(text.rows.tokens))[:, None])
    _, first, of_word, lengths = np.unique(words, return_index=True, return_inverse=True, return_counts=True)
    of_word = of_word.reshape(words.shape)
    for chosen in (mine, other):
        assert np.array_equal(chosen, chosen.ravel()[first][of_word]), "a word is chosen as a whole, and their words are ours"
    assert (lengths[1:] > 1).mean() > 0.3
    for length in range(1, 6):
        alike = np.flatnonzero((lengths == length) & (np.unique(words) >= 0))
        assert alike.size > 2000
        assert same_share(int(mine.ravel()[first[alike]].sum()), int(other.ravel()[first[alike]].sum()), alike.size), length
    num_text = int((words >= 0).sum())
    assert abs(mine.sum() / num_text - 0.15) < 0.01 and abs(other.sum() / num_text - 0.15) < 0.01

"""Small made-up corpora for each objective: uneven documents under a vocabulary with everything that an objective may ask for."""

import numpy as np

from trainer.data.rows import PackedRows, PaddedRows
from trainer.data.samples import SampleSet
from trainer.types import Context, Vocabulary

TEXT = (8, 90)
"""Ids of text, from and up to; what lies outside is special."""
SENTINELS = tuple(range(90, 100))
VOCABULARY = Vocabulary(
    size=100, bos=0, eos=1, pad=2, sha256="", mask=3, special=(0, 1, 2, 3, *SENTINELS), sentinels=SENTINELS
)  # 4 to 7 are never in a text and yet not special
WORD_STARTS = np.isin(np.arange(100), VOCABULARY.special) | (np.arange(100) % 3 == 0)
LENGTHS = (7, 3, 21, 12, 40, 5, 33, 9, 4, 16, 28, 6, 14, 3, 11)
"""Tokens of each document; bos and eos are among them."""
CLASSES = 3


def context(seed=11, decoder_start=2):
    return Context(VOCABULARY, seed, decoder_start, WORD_STARTS)


def document(rng, length):
    return [VOCABULARY.bos, *rng.integers(*TEXT, length - 2).tolist(), VOCABULARY.eos]


def stream(lengths=LENGTHS, seed=0):
    """Documents one after the other, and where each begins."""
    rng = np.random.default_rng(seed)
    tokens = np.array([token for length in lengths for token in document(rng, length)], np.uint16)
    return tokens, np.cumsum([0, *lengths[:-1]]).astype(np.int64)


def labels(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    match kind:
        case "class":
            return rng.integers(0, CLASSES, count)
        case "classes":
            return rng.integers(0, 2, (count, CLASSES)).astype(np.float32)
        case "number":
            return rng.normal(0, 2, count).astype(np.float32)


def packed(objective, sequence_length, lengths=LENGTHS):
    """Rows of several documents, the last one not full."""
    (window,) = objective.needs(sequence_length, None).fields.values()
    return SampleSet({"text": PackedRows(*stream(lengths), window, VOCABULARY.fill)})


def padded(objective, sequence_length, target_length=None, lengths=LENGTHS):
    """One document per row and field."""
    needs = objective.needs(sequence_length, target_length)
    rows = {
        name: PaddedRows(*stream(lengths[place:] + lengths[:place], place), window, VOCABULARY.fill, VOCABULARY.eos)
        for place, (name, window) in enumerate(needs.fields.items())
    }
    return SampleSet(rows, labels(needs.label, len(lengths)) if needs.label else None)


def samples_for(objective, sequence_length=40):
    """As a run would have them: packed where the objective allows it."""
    make = packed if objective.needs(sequence_length, None).packs else padded
    return make(objective, sequence_length)


def take(samples, ids, epoch=0, widths=None):
    ids = np.asarray(ids, np.int64)
    return samples.take(ids, np.full_like(ids, epoch), widths)

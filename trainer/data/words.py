"""Which tokens begin a word, read from how the tokenizer marks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.types import Vocabulary

_BYTE_LEVEL_SPACES = tuple("ĠĊĉčċČ")
"""Blank, line feed, tab, carriage return, vertical tab and form feed, as byte-level tokenizers spell these bytes."""
_BYTE_SPACES = tuple(f"<0x{byte:02X}>" for byte in b" \n\t\r\v\f")
"""The same as a vocabulary with byte fallback spells them."""


def word_starts(folder: Path, vocabulary: Vocabulary) -> np.ndarray:
    """Tells the ids that begin a word; whatever follows up to the next such id belongs to that word.

    Special tokens and ids without a token begin a word. So does every token of a tokenizer that marks words in no known way:

    - WordPiece and its like: a token without the prefix that marks a continuation (``##``).
    - Byte-level BPE: a token that begins with white space.
    - SentencePiece: a token that begins with its mark for a blank (``▁``), and the bytes that are white space.

    Args:
        folder: holds ``tokenizer.json``.
        vocabulary: of that tokenizer.

    Returns:
        bool (vocabulary size,).
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    begins = np.ones(vocabulary.size, bool)
    continuation, starts = _marks(content)
    for token, id in _tokens(content["model"]):
        if continuation:
            begins[id] = not token.startswith(continuation)
        elif starts:
            begins[id] = token.startswith(starts)
    begins[[token["id"] for token in content.get("added_tokens", ()) if token["special"]]] = True
    begins[list(vocabulary.special)] = True
    return begins


def _marks(content: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The prefix of tokens that go on with a word, or else the prefixes of those that begin one; neither: unknown."""
    model = content["model"]
    if prefix := model.get("continuing_subword_prefix"):
        return prefix, ()
    if model.get("end_of_word_suffix"):
        return None, ()
    parts = list(_parts(content.get("pre_tokenizer"))) + list(_parts(content.get("decoder")))
    for part in parts:
        if part["type"] == "ByteLevel":
            return None, _BYTE_LEVEL_SPACES
        if part["type"] == "Metaspace":
            return None, (part["replacement"], *_BYTE_SPACES)
        if part["type"] == "Replace" and part.get("content") == " " and (mark := part["pattern"].get("String")):
            return None, (mark, *_BYTE_SPACES)
    return None, ()


def _parts(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A component, or those it is a sequence of, at any depth."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
    for name in ("pretokenizers", "decoders"):
        for part in component.get(name, ()):
            yield from _parts(part)


def _tokens(model: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The (token, id) pairs of a model without what was added to it; Unigram lists tokens with their scores in the order of ids."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((token, id) for id, (token, _) in enumerate(vocabulary))

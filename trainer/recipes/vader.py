"""Sentences with the mean of about twenty people's ratings of their sentiment, from the sdist of vaderSentiment (MIT).

C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.errors import Refused
from trainer.recipes.fetch import Package, fetched
from trainer.recipes.once import build_once

PACKAGE = Package(
    name="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    num_bytes=2_466_783,
)
PARTS = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
"""Part to file: 10,605 sentences of film reviews, 3,708 of product reviews, 5,190 of editorials, and 4,200 tweets."""

_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def vader(cache: Path, part: str = "movie") -> Path:
    """JSON lines of ``{"text", "label", "score"}``: a sentence, ``positive`` or ``negative``, and its mean rating, -4 to 4.

    A sentence is ``positive`` when its mean rating is above 0. The few with exactly 0 (37 of the film reviews) are ``negative``.

    Args:
        cache: folder of all recipes.
        part: one of ``PARTS``.

    Raises:
        Refused: there is no such part, or the package cannot be fetched.
    """
    if part not in PARTS:
        raise Refused(f"The VADER ratings have no part {part!r}; choose one of {', '.join(PARTS)}.")
    return build_once(cache / f"vader-{PACKAGE.version}", _build) / f"{part}.jsonl"


def parse(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Records of tab-separated lines of id, mean rating and text."""
    for line in lines:
        if line.strip():
            _, score, text = line.rstrip("\r\n").split("\t")
            yield {"text": text.strip(), "label": "positive" if float(score) > 0 else "negative", "score": float(score)}


def _build(folder: Path) -> dict[str, Any]:
    with fetched(PACKAGE, folder) as sdist, tarfile.open(sdist) as outer:
        (folder / "LICENSE").write_bytes(_read(outer, "vaderSentiment-3.3.2/LICENSE.txt"))
        with tarfile.open(fileobj=io.BytesIO(_read(outer, _INNER))) as inner:
            for part, name in PARTS.items():
                text = _read(inner, f"hutto_ICWSM_2014/{name}").decode("utf-8")
                with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as out:
                    # Not splitlines(): it also cuts at characters that may stand inside a sentence.
                    out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in parse(text.split("\n")))
    return PACKAGE.record()


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None, f"{name} is a file in the pinned sdist"
    return member.read()

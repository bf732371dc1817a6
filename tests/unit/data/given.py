"""A corpus of records that a test writes down."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.config import Data, TokenizerConfig
from trainer.data.fingerprint import StatIndex
from trainer.data.sources import Skipped
from trainer.types import Needs, Record, Window


@dataclass(frozen=True)
class Given:
    """Records as they are; a text that is ``BAD`` cannot be read."""

    root: str
    content: tuple[Record, ...]

    def digest(self, index: StatIndex) -> str:
        return hashlib.sha256(repr(self.content).encode()).hexdigest()

    def num_bytes(self) -> int:
        return sum(len(text) for record in self.content for text in record.texts.values())

    def records(self, skipped: Skipped) -> Iterator[Record]:
        for record in self.content:
            if "BAD" in record.texts.values():
                skipped.add(record.name, "bad")
            else:
                yield record


@dataclass
class GivenData(Data):
    """The parts of a mix, or one under an empty name."""

    content: dict[str, list[Record]] = field(default_factory=dict)

    def open(self, needs: Needs) -> dict[str, Given]:
        return {part: Given(f"part {part}", tuple(records)) for part, records in self.content.items()}

    def shares(self) -> dict[str, tuple[float, float]]:
        return {part: (0.0, 0.0) if part == "unused" else (1.0, 1.0) for part in self.content}


PAIRS = Needs({"source": Window(32, 32), "target": Window(16, 16)}, packs=False)
TEXTS = Needs({"text": Window(32, 32)}, packs=False)


def given(tmp_path: Path, content: dict[str, list[Record]] | list[Record], **changes) -> GivenData:
    """A data config over records, with a cache of its own and a small tokenizer."""
    parts = {"": content} if isinstance(content, list) else content
    settings = {"validation_fraction": 0.2, "tokenizer": TokenizerConfig(vocab_size=300), "cache_dir": str(tmp_path / "cache")}
    return GivenData(content=parts, **settings | changes)


def pair(source: str, target: str, **more) -> Record:
    return Record(name=f"{source}/{target}", texts={"source": source, "target": target}, **more)


def text(content: str, **more) -> Record:
    return Record(name=content, texts={"text": content}, **more)

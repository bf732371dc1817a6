"""The data preset for a mix: several sources, each with its share of the training stream."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from trainer.data.config import Data, DebianDescriptions, PythonStdlib, Text, Vader
from trainer.data.record_config import Csv, Hub, Jsonl, Parquet
from trainer.errors import Refused
from trainer.schema import setting

if TYPE_CHECKING:
    from trainer.data.fingerprint import StatIndex
    from trainer.data.sources import Skipped
    from trainer.protocols import Source
    from trainer.types import Needs, Record

MOST_PARTS = 32
"""With more, the mix would not keep its shares to 0.5 % of 1,000 samples (``trainer.data.mixing.MixOrder``)."""

_OWN = (PythonStdlib, Text, Jsonl, Csv, Parquet, Hub, Vader, DebianDescriptions)
_COMMON = tuple(field.name for field in fields(Data))


def kind_of(source: type[Data]) -> str:
    """The name of a data option as ``kind``: ``DebianDescriptions`` is ``debian_descriptions``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", source.__name__).lower()


@dataclass
class Part:
    """One source of a mix; each kind adds the keys that its data option has beside those of every corpus."""

    kind: str = setting("???", f"the data option that reads it, whose own keys are the part's: {', '.join(sorted(map(kind_of, _OWN)))}")
    weight: float = setting(
        1.0,
        "its share of the samples, in any unit: rows of equal size where they are packed, so a share of the tokens; else records",
        minimum=0,
    )
    final_weight: float | None = setting(
        None, "the share at the end, to which weight goes in a straight line over train.steps; None: it stays", minimum=0
    )


_WEIGHTS = tuple(field.name for field in fields(Part))
SOURCES: dict[str, type[Data]] = {}
"""What can be a part, by its kind."""
KINDS: dict[str, type[Part]] = {}
"""The dataclass of a part of each kind."""


def as_corpus(part: Part, mix: Data) -> Data:
    """A part as a corpus of its own, with what every corpus has from the mix.

    Except ``validation_fraction``, which the mix applies to whichever parts bring no held-out records of their own.
    """
    common = {name: getattr(mix, name) for name in _COMMON if name != "validation_fraction"}
    own = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in _WEIGHTS}
    return SOURCES[part.kind](**own, **common)


def add_kind(kind: str, source: type[Data]) -> None:
    """Lets a data option be a part of a mix.

    Args:
        kind: its name.
        source: its dataclass. One that has a key of ``Part`` itself, or that is a mix, cannot be a part and is left out.
    """
    hints = get_type_hints(source)
    own = [field for field in fields(source) if field.name not in _COMMON]
    if any(field.name in _WEIGHTS for field in own) or issubclass(source, Mix):
        return
    told = next(field for field in fields(Part) if field.name == "kind")
    declared: list[tuple[str, Any, Any]] = [("kind", str, setting(kind, told.metadata["help"]))]
    for field in own:
        copied: Any = dataclasses.field(default=field.default, default_factory=field.default_factory, metadata=field.metadata)
        declared.append((field.name, hints[field.name], copied))
    namespace = {"__module__": __name__, "__doc__": source.__doc__}
    SOURCES[kind] = source
    KINDS[kind] = dataclasses.make_dataclass(f"{source.__name__}Part", declared, bases=(Part,), namespace=namespace)


@dataclass
class Mix(Data):
    """Several sources in one stream, each with its share, which may change over training; data.parts.NAME.KEY are the own keys of a part's kind."""

    parts: dict[str, Part] = setting({}, "the sources, by a name of your own", sections=(Part, "kind", KINDS))

    def sources(self) -> dict[str, Data]:
        """See ``Data.sources``."""
        return {f"data.parts.{name}": as_corpus(part, self) for name, part in self._known()}

    def _known(self) -> list[tuple[str, Part]]:
        """The parts whose kind is known, by name; the order of all that follows."""
        return [(name, part) for name, part in sorted(self.parts.items()) if type(part) is KINDS.get(part.kind)]

    def open(self, needs: Needs) -> dict[str, Source]:
        """Every part's records, by its name."""
        opened: dict[str, Source] = {}
        problems: list[str] = []
        for name, part in self._known():
            try:
                with _speaking_of(name):
                    own = as_corpus(part, self).open(needs)
                if len(own) != 1:
                    raise Refused(
                        f"data.parts.{name}.kind={part.kind} brings {len(own)} sources of its own, and a part of a mix has one: "
                        f"leave the mix out with data={part.kind}, or name another kind."
                    )
                opened[name] = _PartSource(name, next(iter(own.values())))
            except Refused as refused:
                problems += refused.problems
        if problems:
            raise Refused(problems)
        return opened

    def lacks(self, needs: Needs) -> str | None:
        """See ``Data.lacks``."""
        found = {key: lacks for key, source in self.sources().items() if (lacks := source.lacks(needs))}
        return ", ".join(f"{lacks} in {key}" for key, lacks in found.items()) or None

    def shares(self) -> dict[str, tuple[float, float]]:
        """See ``Data.shares``."""
        return {
            name: (part.weight, part.weight if part.final_weight is None else part.final_weight)
            for name, part in sorted(self.parts.items())
        }

    @property
    def holds_out(self) -> bool:
        """See ``Data.holds_out``: a part may bring held-out files of its own."""
        own = (dataclasses.replace(source, validation_fraction=0.0) for source in self.sources().values())
        return super().holds_out or any(source.holds_out for source in own)

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        if not self.parts:
            yield (
                "data=mix has no part: name two or more, each with what reads it, such as "
                "data.parts.NAME.kind=jsonl data.parts.NAME.path=FILES data.parts.NAME.weight=51."
            )
        elif len(self.parts) == 1:
            ((name, part),) = self.parts.items()
            yield f"data=mix has one part, {name}: add another, or leave the mix out with data={part.kind}."
        elif len(self.parts) > MOST_PARTS:
            yield f"data=mix has {len(self.parts)} parts, at most {MOST_PARTS} keep their shares in every 1,000 samples: join some."
        if self.parts and not any(start for start, _ in self.shares().values()):
            yield "data.parts have no weight at the beginning: set data.parts.NAME.weight of at least one above 0."
        elif self.parts and not any(end for _, end in self.shares().values()):
            yield "data.parts have no weight at the end: set data.parts.NAME.final_weight of at least one above 0."
        for name in sorted(self.parts.keys() - {name for name, _ in self._known()}):
            yield f"data.parts.{name}.kind={self.parts[name].kind} is not one of {', '.join(sorted(KINDS))}."
        for name, part in self._known():
            if getattr(part, "streaming", False):
                yield (
                    f"data.parts.{name}.streaming=true does not go with data=mix, which finds every sample of every part at once to keep its "
                    "shares exact: leave it out."
                )
                continue
            yield from (_in_part(name, sentence) for sentence in as_corpus(part, self).problems())


for _source in _OWN:
    add_kind(kind_of(_source), _source)


@dataclass(frozen=True)
class _PartSource:
    """A part's records, whose refusals name the part's keys."""

    name: str
    source: Source

    @property
    def root(self) -> str:
        return self.source.root

    def digest(self, index: StatIndex) -> str:
        with _speaking_of(self.name):
            return self.source.digest(index)

    def num_bytes(self) -> int:
        return self.source.num_bytes()

    def records(self, skipped: Skipped) -> Iterator[Record]:
        with _speaking_of(self.name):
            yield from self.source.records(skipped)


@contextmanager
def _speaking_of(name: str) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise Refused([_in_part(name, sentence) for sentence in refused.problems]) from refused


def _in_part(name: str, sentence: str) -> str:
    """A sentence of a corpus of its own, with the keys as they are when it is a part of a mix."""
    own = {field.name for kind in KINDS.values() for field in fields(kind) if field.name not in _WEIGHTS}
    keys, kinds = "|".join(sorted(own)), "|".join(sorted(KINDS))
    sentence = re.sub(rf"(?<![\w./=-])data\.(?=({keys})\b)", f"data.parts.{name}.", sentence)
    return re.sub(rf"(?<![\w./=-])data=(?=({kinds})\b)", f"data.parts.{name}.kind=", sentence)

"""What is read while training: shards of a set, dealt to the data ranks, each record once an epoch, from any place that was noted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trainer.data.order import permuted
from trainer.data.records import Placed, RecordFiles
from trainer.data.templates import Columns

Place = dict[str, Any]
"""Where a data rank is in an epoch, as JSON: its how manieth shard (``turn``), where in it (``at``), and how many rows of shared
shards have gone by (``seen``)."""


class Shards(Protocol):
    """A set in pieces, each of which is read from its beginning or from a noted place."""

    @property
    def root(self) -> str:
        """The set in words, for messages."""
        ...

    @property
    def columns(self) -> Columns:
        """Which columns make a record."""
        ...

    @property
    def num_shards(self) -> int:
        """How many pieces there are, in one fixed order."""
        ...

    def settings(self) -> list[Any]:
        """JSON that differs where the set or the way in which it is read differs, as far as that is known without reading it."""
        ...

    def read_on(self, shard: int, place: Any = None) -> Iterator[Placed]:
        """The rows of a piece, the broken ones among them, from behind a place that it gave before."""
        ...


@dataclass(frozen=True)
class FileShards:
    """Files, each a shard."""

    files: RecordFiles

    @property
    def root(self) -> str:
        """See ``Shards.root``."""
        return self.files.root

    @property
    def columns(self) -> Columns:
        """See ``Shards.columns``."""
        return self.files.columns

    @property
    def num_shards(self) -> int:
        """See ``Shards.num_shards``."""
        return len(self.files.files)

    def settings(self) -> list[Any]:
        """See ``Shards.settings``: names and sizes stand for what the files hold."""
        read = [f"{key}={value}" for key, value in vars(self.files).items() if key not in ("root", "files")]
        sizes = [[name, path.stat().st_size if path.is_file() else None] for name, path, _ in self.files.files]
        return [type(self.files).__name__, read, sizes]

    def read_on(self, shard: int, place: Any = None) -> Iterator[Placed]:
        """See ``Shards.read_on``."""
        name, path, _ = self.files.files[shard]
        return self.files.read_on(name, path, place)


@dataclass(frozen=True)
class Dealer:
    """One data rank's rows.

    As many shards as the ranks can share out evenly are read by one rank each; those that are left over are read by all ranks, which
    take turns row by row. So all shards are used however many ranks there are, and no row is read twice or left out.

    Attributes:
        shards: the set.
        rank, size: this data rank's place among those that share the set.
        seed: of the order of shards, which is another in each epoch; None: their own.
    """

    shards: Shards
    rank: int
    size: int
    seed: int | None

    def rows(self, epoch: int, place: Place | None = None) -> Iterator[tuple[Place, Placed]]:
        """Yields this rank's rows of an epoch from behind a place, each with the place behind it."""
        turn, at, seen = (place["turn"], place["at"], place["seen"]) if place else (0, None, 0)
        for number, (shard, shared) in list(enumerate(self._turns(epoch)))[turn:]:
            for row in self.shards.read_on(shard, at):
                seen += shared
                if not shared or (seen - 1) % self.size == self.rank:
                    yield {"turn": number, "at": row.place, "seen": seen}, row
            at = None

    def _turns(self, epoch: int) -> list[tuple[int, bool]]:
        """The shards that this rank reads, in order, and whether the others read them too."""
        count = self.shards.num_shards
        order = np.arange(count)
        if self.seed is not None:
            order = permuted(order, count, [f"isotrain shards {self.seed} {epoch}"], np.zeros(count, np.int64))
        even = count - count % self.size
        own = [(shard, False) for shard in order[:even][self.rank :: self.size].tolist()]
        return own + [(shard, True) for shard in order[even:].tolist()]

"""Data sets of the hub, read over the network while training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.fingerprint import StatIndex, hash_settings
from trainer.data.records import Placed, Row, to_records
from trainer.data.sources import Skipped
from trainer.data.tables import class_name, first_line, hub_errors, require_splits, top_level
from trainer.data.templates import BadRecord, Columns
from trainer.errors import TrainingFailed
from trainer.types import Record


@dataclass(frozen=True)
class HubShards:
    """A split of a data set of the hub; a source of records too, for what is held out.

    Attributes:
        root: its name, in words.
        split: which one.
        rows: ``datasets.IterableDataset``, with its files as shards.
        classes: columns whose numbers stand for names (``datasets.ClassLabel``).
        files: what each of its files is known by: an address with the commit, or a name and size.
        columns: which columns make a record.
    """

    root: str
    split: str
    rows: Any
    classes: dict[str, Any]
    files: tuple[Any, ...]
    columns: Columns

    @property
    def num_shards(self) -> int:
        """See ``Shards.num_shards``."""
        return self.rows.num_shards

    def settings(self) -> list[Any]:
        """See ``Shards.settings``."""
        return ["hub", self.split, str(self.columns), list(self.files) or self.root]

    def read_on(self, shard: int, place: Any = None) -> Iterator[Placed]:
        """See ``Shards.read_on``: a place is the number of a row and the state that ``datasets`` keeps.

        Raises:
            TrainingFailed: the network, or a file, gives no more.
        """
        rows = self.rows.shard(self.num_shards, shard)
        number, state = place or (0, None)
        if state is not None:
            rows.load_state_dict(state)
        try:
            for row in rows:
                number += 1
                named = row | {column: class_name(kind, row[column]) for column, kind in self.classes.items()}
                yield Placed([number, rows.state_dict()], f"{self.split}:shard {shard}, row {number}", named)
        except Exception as error:  # builders, file systems and the network all speak through it
            raise TrainingFailed(
                f"{self.root} cannot be read on behind row {number} of shard {shard} of {self.split} ({first_line(error)}). "
                "Run the same command again: it goes on from the newest checkpoint."
            ) from error

    def digest(self, index: StatIndex) -> str:
        """See ``Source.digest``."""
        return hash_settings({"hub": self.settings()})

    def num_bytes(self) -> int:
        """Not known before it is read."""
        return 0

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """See ``Source.records``."""

        def good() -> Iterator[tuple[str, Row, str | None]]:
            for shard in range(self.num_shards):
                for _, name, row in self.read_on(shard):
                    assert not isinstance(row, BadRecord), "the library gives rows or fails"
                    yield name, row, None

        return to_records(self.columns, good(), skipped, self.root)


def stream_hub(name: str, config: str | None, splits: list[str], revision: str | None, columns: Columns) -> list[HubShards]:
    """Opens splits of a data set without fetching them; see ``trainer.data.tables.open_hub``.

    Args:
        name: ``OWNER/NAME`` or a folder.
        config: which of its configurations; None: the only one.
        splits: what to read: to train on, and perhaps to hold out.
        revision: branch, tag or commit; None: the newest.
        columns: which columns make a record.

    Raises:
        Refused: it cannot be had, or has no such configuration, split or column.
    """
    with hub_errors(name, config):
        import datasets

        builder = datasets.load_dataset_builder(name, config, revision=revision)
        found = builder.as_streaming_dataset()
    require_splits(name, splits, found)
    files = builder.config.data_files or {}
    return [_shards(f"hub data set {name}", split, found[split], files.get(split, ()), columns) for split in splits]


def _shards(root: str, split: str, rows: Any, files: Any, columns: Columns) -> HubShards:
    names = rows.column_names
    if names is not None:
        columns.check(names, f"{root} ({split})")
        rows = rows.select_columns(top_level(columns, names))
    classes = {column: kind for column, kind in (rows.features or {}).items() if hasattr(kind, "int2str")}
    return HubShards(root, split, rows, classes, tuple(_known_by(file) for file in files), columns)


def _known_by(file: str) -> Any:
    """The address of a remote file, which holds its commit; name and size of one that is here."""
    path = Path(file)
    return [path.name, path.stat().st_size] if path.is_file() else file

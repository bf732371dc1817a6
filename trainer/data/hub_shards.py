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
        files: its files: a name below the set's folder and a path, of one that is here; an address with the commit, of a remote one.
        chosen: which configuration and revision were asked for.
        columns: which columns make a record.
    """

    root: str
    split: str
    rows: Any
    classes: dict[str, Any]
    files: tuple[tuple[str, Path] | str, ...]
    chosen: tuple[str | None, str | None]
    columns: Columns

    @property
    def num_shards(self) -> int:
        """See ``Shards.num_shards``."""
        return self.rows.num_shards

    def settings(self) -> list[Any]:
        """See ``Shards.settings``: names and sizes stand for what files hold that are here."""
        return self._settings([file if isinstance(file, str) else [file[0], file[1].stat().st_size] for file in self.files])

    def _settings(self, files: list[Any]) -> list[Any]:
        # A builder that names no files is known by its name and by what was asked for.
        return ["hub", self.split, str(self.columns), self.chosen[0], files or [self.root, self.chosen[1]]]

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
        """See ``Source.digest``: by content where the files are here, by address and commit where they are not."""
        files = [file if isinstance(file, str) else [file[0], index.digest(file[1])] for file in self.files]
        return hash_settings({"hub": self._settings(files)})

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
    opened = []
    for split in splits:
        known = tuple(_known_by(Path(name), file) for file in files.get(split, ()))
        opened.append(_shards(f"hub data set {name}", split, found[split], known, (config, revision), columns))
    return opened


def _shards(
    root: str, split: str, rows: Any, files: tuple[tuple[str, Path] | str, ...], chosen: tuple[str | None, str | None], columns: Columns
) -> HubShards:
    names = rows.column_names
    if names is not None:
        columns.check(names, f"{root} ({split})")
        rows = rows.select_columns(top_level(columns, names))
    classes = {column: kind for column, kind in (rows.features or {}).items() if hasattr(kind, "int2str")}
    return HubShards(root, split, rows, classes, files, chosen, columns)


def _known_by(folder: Path, file: str) -> tuple[str, Path] | str:
    """Of a file that is here, its name below the set's folder, the same on every machine, and its path; else its address."""
    path = Path(file)
    if not path.is_file():
        return file
    place, inside = path.absolute(), folder.expanduser().resolve()  # a file may be a link to elsewhere, as in the hub's cache
    return (place.relative_to(inside) if place.is_relative_to(inside) else place).as_posix(), path

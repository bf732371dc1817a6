"""Records in tables that the extra isotrain[data] reads: parquet files, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from trainer.command_line.suggest import did_you_mean, nearest
from trainer.data.fingerprint import StatIndex
from trainer.data.records import Placed, RecordFiles, Row, opened, to_records, with_broken
from trainer.data.sources import Skipped, digest_files
from trainer.data.templates import BadRecord, Columns
from trainer.errors import Refused
from trainer.types import Record

SUFFIXES = (".parquet", ".pq")
"""What a folder given as ``data.path`` contributes."""

_ROWS_AT_ONCE = 256


class ParquetFiles(RecordFiles):
    """Parquet, read some rows at a time and only in the columns that are needed, without a copy in another cache."""

    def rows(self, name: str, path: Path, skipped: Skipped) -> Iterator[tuple[str, Row]]:
        """See ``RecordFiles.rows``; a row is called ``FILE:row NUMBER``."""
        return self._rows_behind(0, name, path, skipped)

    def read_on(self, name: str, path: Path, place: Any = None) -> Iterator[Placed]:
        """See ``RecordFiles.read_on``; a place is the number of a row, and only the group of rows in which it lies is read again."""
        first = place or 0
        found = with_broken(lambda broken: self._rows_behind(first, name, path, broken))
        yield from (Placed(number, label, row) for number, (label, row) in enumerate(found, first + 1))

    def _rows_behind(self, first: int, name: str, path: Path, skipped: Skipped) -> Iterator[tuple[str, Row]]:
        """All rows but the first ones."""
        need("pyarrow", "data=parquet")
        import pyarrow
        from pyarrow import parquet

        with opened(path) as stream:
            try:
                file = parquet.ParquetFile(stream)
            except pyarrow.ArrowException as error:
                raise Refused(
                    f"{path} is no parquet file, or a damaged one ({first_line(error)}). Fetch it again, or name another."
                ) from None
            names = file.schema_arrow.names
            self.columns.check(names, str(path))
            try:
                batches = _batches_behind(file, first, top_level(self.columns, names))
                for number, row in _rows(batches, skipped, name, first):
                    yield f"{name}:row {number}", row
            except pyarrow.ArrowException as error:
                raise Refused(f"{path} cannot be read to its end ({first_line(error)}). Fetch it again, or name another.") from None


@dataclass(frozen=True)
class HubRows:
    """One or two splits of a data set.

    Attributes:
        root: its name.
        splits: what a split is called there, what it is here, and its rows (``datasets.Dataset``).
        columns: which columns make a record.
    """

    root: str
    splits: tuple[tuple[str, str | None, Any], ...]
    columns: Columns

    def digest(self, index: StatIndex) -> str:
        """SHA-256 over the columns and over the files in which ``datasets`` keeps the rows."""
        files = [(f"{name} as {split} {number}", path) for name, split, rows in self.splits for number, path in enumerate(_cached(rows))]
        return digest_files(f"hub {self.columns}", files, index)

    def num_bytes(self) -> int:
        """Size of the files in which ``datasets`` keeps the rows."""
        return sum(path.stat().st_size for _, _, rows in self.splits for path in _cached(rows))

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Yields a record for each row that can be used; a row is called ``SPLIT:row NUMBER``.

        Raises:
            Refused: a column is missing, there are no rows, or more are bad than ``skipped`` allows.
        """
        return to_records(self.columns, self._rows(skipped), skipped, self.root)

    def _rows(self, skipped: Skipped) -> Iterator[tuple[str, Row, str | None]]:
        for name, split, rows in self.splits:
            self.columns.check(rows.column_names, f"{self.root} ({name})")
            chosen = rows.select_columns(top_level(self.columns, rows.column_names))
            classes = {column: kind for column, kind in chosen.features.items() if hasattr(kind, "int2str")}
            batches = (batch for table in chosen.with_format("arrow").iter(_ROWS_AT_ONCE) for batch in table.to_batches())
            for number, row in _rows(batches, skipped, name):
                yield f"{name}:row {number}", row | {column: class_name(kind, row[column]) for column, kind in classes.items()}, split


def open_hub(name: str, config: str | None, splits: dict[str, str | None], revision: str | None, columns: Columns) -> HubRows:
    """Fetches a data set of the hub, or finds it in the cache of ``datasets``; or reads a local folder of one.

    Args:
        name: ``OWNER/NAME`` or a folder.
        config: which of its configurations; None: the only one.
        splits: what a split is called there, and what it is here.
        revision: branch, tag or commit; None: the newest.
        columns: which columns make a record.

    Raises:
        Refused: it cannot be had, or has no such configuration or split.
    """
    with hub_errors(name, config):
        import datasets

        found = datasets.load_dataset(name, config, revision=revision, keep_in_memory=False)
    require_splits(name, list(splits), found)
    return HubRows(f"hub data set {name}", tuple((there, here, found[there]) for there, here in splits.items()), columns)


@contextmanager
def hub_errors(name: str, config: str | None) -> Iterator[None]:
    """Says in a sentence why a data set of the hub cannot be had; see ``open_hub``."""
    need("datasets", "data=hub")
    import datasets

    try:
        yield
    except datasets.exceptions.DatasetNotFoundError:
        raise Refused(
            f"data.name={name} is not a data set of the hub that can be reached from here, and no folder. "
            "Check the name, log in where it is gated (hf auth login), or read your own files with data=jsonl data.path=FILES."
        ) from None
    except Exception as error:  # the library documents no narrower set: builders, file systems and the network all speak through it
        remedy = "Check data.name, data.config and data.revision."
        if isinstance(error, ConnectionError):
            remedy = "Fetch it once where there is a network and copy the cache folder (HF_HOME), or read your own files with data=jsonl."
        raise Refused(
            f"data.name={name}{f' data.config={config}' if config else ''} cannot be read ({first_line(error)}). {remedy}"
        ) from error


def require_splits(name: str, splits: list[str], found: Collection[str]) -> None:
    """Raises ``Refused`` unless a data set has these splits: the one to train on, and perhaps the one to hold out."""
    for key, split in zip(("data.split", "data.validation_split"), splits, strict=False):
        if split not in found:
            near = nearest(split, found)
            raise Refused(f"{key}={split}: {name} has the splits {', '.join(found)}{did_you_mean(near and f'{key}={near}')}")


def need(module: str, option: str) -> None:
    """Raises ``Refused`` unless a package of the extra isotrain[data] is there."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise Refused(f"{option} needs the package {module}, which is not installed: pip install 'isotrain[data]'.")


def top_level(columns: Columns, names: list[str]) -> list[str]:
    """The file's columns in which those that are read lie."""
    return list(dict.fromkeys(column if column in names else column.partition(".")[0] for column in columns.names))


def _batches_behind(file: Any, first: int, columns: list[str]) -> Iterator[Any]:
    """The rows of a parquet file but its first ones, as Arrow record batches; groups of rows that lie before are not read."""
    if not first:
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=columns)
        return
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups = [group for group, end in enumerate(accumulate(sizes)) if end > first]
    too_many = first - sum(sizes[: groups[0]]) if groups else 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns) if groups else ():
        yield batch.slice(too_many)
        too_many = max(too_many - batch.num_rows, 0)


def _rows(batches: Iterator[Any], skipped: Skipped, name: str, number: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number, counted on from ``number``, and columns of each row of Arrow record batches."""
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # text that is not UTF-8, a date outside the calendar, too long a time: find the row
            rows = [_one_row(batch.slice(place, 1)) for place in range(batch.num_rows)]
        for row in rows:
            number += 1
            if isinstance(row, BadRecord):
                skipped.add(f"{name}:row {number}", row.reason, row.detail)
            else:
                yield number, row


def _one_row(batch: Any) -> dict[str, Any] | BadRecord:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord("not UTF-8", f"byte {error.start}")
    except (ValueError, OverflowError) as error:
        return BadRecord("a value that cannot be read", first_line(error))


def class_name(kind: Any, value: int | None) -> str | None:
    """The name of a numbered class; the hub writes -1 for none."""
    return None if value is None or value < 0 else kind.int2str(value)


def _cached(rows: Any) -> list[Path]:
    return [Path(file["filename"]) for file in rows.cache_files]


def first_line(error: Exception) -> str:
    """What an exception says, as a part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

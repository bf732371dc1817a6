"""Files that hold many records: a bad record costs that record, a bad file is said at once."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from trainer.data.fingerprint import StatIndex
from trainer.data.sources import Skipped, digest_files
from trainer.data.templates import BadRecord, Columns, absent_columns, unknown_column
from trainer.errors import Refused
from trainer.types import Record

COMPRESSED = (".gz", ".bz2", ".xz")
"""What a file's name may end in, after what says its format."""

LONGEST = 64 << 20
"""Bytes of a record; a longer one is bad, so that a file without line ends does not fill the memory."""
_OTHER_FORMATS = (
    (b"\x1f\x8b", "is compressed with gzip: give it a name that ends in .gz"),
    (b"BZh", "is compressed with bzip2: give it a name that ends in .bz2"),
    (b"\xfd7zXZ\0", "is compressed with xz: give it a name that ends in .xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstandard, which is not read: unpack it with unzstd"),
    (b"PK\3\4", "is a zip archive: unpack it"),
    (b"PAR1", "is a parquet file: read it with data=parquet"),
    (b"\xff\xfe", "is UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row = Mapping[str, Any]


class Placed(NamedTuple):
    """A row as a stream reads it.

    Attributes:
        place: where its file is to be read on behind it; JSON.
        name: file and line.
        row: its columns, or what is wrong with it.
    """

    place: Any
    name: str
    row: Row | BadRecord


@dataclass(frozen=True)
class RecordFiles:
    """Files that hold rows with columns.

    Attributes:
        root: where the files are, in words for messages and to name their index.
        files: name, path and split of each; the name is the same on every machine.
        columns: which columns make a record.
    """

    root: str
    files: tuple[tuple[str, Path, str | None], ...]
    columns: Columns

    def digest(self, index: StatIndex) -> str:
        """SHA-256 over how rows are read, over the names, contents and splits of all files."""
        settings = [type(self).__name__, *(f"{key}={value}" for key, value in vars(self).items() if key not in ("root", "files"))]
        settings += [f"{name}: {split}" for name, _, split in self.files]
        return digest_files("\0".join(settings), [(name, path) for name, path, _ in self.files], index)

    def num_bytes(self) -> int:
        """Size of all files that are there, for the progress bar."""
        return sum(path.stat().st_size for _, path, _ in self.files if path.is_file())

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Yields a record for each row that can be used.

        Raises:
            Refused: a file cannot be read, lacks a column, or holds nothing; or more rows are bad than ``skipped`` allows.
        """
        rows = ((label, row, split) for name, path, split in self.files for label, row in self.rows(name, path, skipped))
        return to_records(self.columns, rows, skipped, self.root)

    def rows(self, name: str, path: Path, skipped: Skipped) -> Iterator[tuple[str, Row]]:
        """Yields the name and the columns of each row of one file; tells ``skipped`` of those that are broken."""
        raise NotImplementedError

    def read_on(self, name: str, path: Path, place: Any = None) -> Iterator[Placed]:
        """Yields the rows of one file, the broken ones among them, from behind a place that it gave before.

        This reads the file again up to there; a format whose places can be found goes there at once.
        """
        found = with_broken(lambda broken: self.rows(name, path, broken))
        yield from (Placed(number, label, row) for number, (label, row) in enumerate(found, 1) if number > (place or 0))


def with_broken(read: Callable[[Skipped], Iterable[tuple[str, Row]]]) -> Iterator[tuple[str, Row | BadRecord]]:
    """Yields rows, and what ``read`` tells its ``Skipped`` of broken ones, in the order of the file."""
    broken = _Broken()
    for label, row in read(broken):
        yield from broken.take()
        yield label, row
    yield from broken.take()


class _Broken(Skipped):
    """Keeps what it is told until it is taken; the limit is what may lie between two rows."""

    def __init__(self) -> None:
        super().__init__(limit=100_000)
        self._faults: list[tuple[str, BadRecord]] = []

    def add(self, name: str, reason: str, detail: str = "") -> None:
        self._faults.append((name, BadRecord(reason, detail)))
        if len(self._faults) > self.limit:
            raise Refused(f"More than {self.limit:,} bad records stand in a row up to {name} ({reason}). Repair or remove them.")

    def take(self) -> list[tuple[str, BadRecord]]:
        """What it was told since the last time."""
        faults, self._faults = self._faults, []
        return faults


class _Waiting(NamedTuple):
    """A row without a column that no row has had so far."""

    label: str
    reason: str
    detail: str
    absent: str


def to_records(columns: Columns, rows: Iterable[tuple[str, Row, str | None]], skipped: Skipped, root: str) -> Iterator[Record]:
    """Turns rows into records.

    A row that lacks a column is one bad record, but a column that no row has is a wrong setting: what to call it is decided when
    the first row with the column comes, at the limit, or at the end.

    Args:
        columns: which columns make a record.
        rows: name, columns and split of each.
        skipped: is told of those that cannot be used.
        root: where the rows come from, for messages.

    Raises:
        Refused: no row has a column, there is no row, or more are bad than ``skipped`` allows.
    """
    unseen = set(columns.names)
    waiting: list[_Waiting] = []
    first_row: dict[str, list[str]] = {}  # an unseen column: the columns of the first row that waits for it
    num_rows = 0
    for label, row, split in rows:
        num_rows += 1
        if unseen and (left := set(absent_columns(row, unseen))) != unseen:
            unseen = left
            for earlier in waiting:
                if earlier.absent not in unseen:
                    skipped.add(earlier.label, earlier.reason, earlier.detail)
            waiting = [earlier for earlier in waiting if earlier.absent in unseen]
        try:
            record = columns.record(label, row, split)
        except BadRecord as bad:
            if bad.absent is None or bad.absent not in unseen:
                skipped.add(label, bad.reason, bad.detail)
                continue
            # Not the exception itself, which holds the row.
            waiting.append(_Waiting(label, bad.reason, bad.detail, bad.absent))
            first_row.setdefault(bad.absent, list(row))
            if len(skipped.reasons) + len(waiting) > skipped.limit:
                break
        else:
            yield record
    if waiting:
        absent = waiting[0].absent
        template = next(template for template in columns.templates if absent in template.columns)
        raise unknown_column(template, absent, first_row[absent], f"{root} ({waiting[0].label})")
    if num_rows == 0 and not skipped.reasons:
        raise Refused(f"{root} holds no records: nothing is in it. Check data.path.")


def format_suffix(path: Path) -> str:
    """What a file's name ends in, in lower case, before what says how it is compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, unpacked by what its name ends in; a fault of the whole file, then or while it is read, is one sentence.

    Raises:
        Refused: the file cannot be read, or not to its end.
    """
    import fsspec

    packed = "infer" if path.suffix.lower() in COMPRESSED else None
    try:
        with fsspec.filesystem("file").open(str(path.absolute()), "rb", compression=packed) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Refused(f"{path} cannot be read to its end ({reason}). Repair or fetch it again, or leave it out of data.path.") from error


def read_lines(stream: IO[bytes], path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields number and content of each line; None for one that is too long to be held.

    Raises:
        Refused: the file is of another format.
    """
    yield from ((number, line) for number, _, line in lines_behind(stream, path))


def lines_behind(stream: IO[bytes], path: Path, number: int = 0, offset: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """As ``read_lines``, from behind line ``number``, which ends at byte ``offset``; yields each line's number, end and content."""
    if offset:
        stream.seek(offset)
    while line := stream.readline(LONGEST + 1):
        number += 1
        offset += len(line)
        if number == 1:
            _refuse_other_formats(line, path)
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) <= LONGEST:
            yield number, offset, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
            offset += len(line)
        yield number, offset, None


def _refuse_other_formats(start: bytes, path: Path) -> None:
    for magic, sentence in _OTHER_FORMATS:
        if start.startswith(magic):
            raise Refused(f"{path} {sentence}.")


def too_long() -> BadRecord:
    """The fault of a record that is not held in memory."""
    return BadRecord(f"longer than {LONGEST >> 20} MiB")

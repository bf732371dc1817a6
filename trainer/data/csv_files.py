"""CSV: cells between delimiters, with quotes around those that hold delimiters or line ends."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.records import COMPRESSED, LONGEST, RecordFiles, Row, format_suffix, opened, read_lines, too_long
from trainer.data.sources import Skipped
from trainer.data.templates import BadRecord
from trainer.errors import Refused

SUFFIXES = tuple(f"{name}{packed}" for name in (".csv", ".tsv", ".tab") for packed in ("", *COMPRESSED))
"""What a folder given as ``data.path`` contributes."""


@dataclass(frozen=True)
class CsvFiles(RecordFiles):
    """Cells between delimiters, as RFC 4180 has them. Blank lines are no records.

    Attributes:
        delimiter: one character; None: a tab in files whose names end in ``.tsv`` or ``.tab``, else a comma.
        quote: one character; None: quotes are text.
        skip_rows: lines to leave out, counted from 1.
        names: of the columns; empty: the first line that is not left out holds them.
    """

    delimiter: str | None = None
    quote: str | None = '"'
    skip_rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def rows(self, name: str, path: Path, skipped: Skipped) -> Iterator[tuple[str, Row]]:
        """See ``RecordFiles.rows``; a row is called ``FILE:LINE`` by its first line."""
        # The module's own limit, 128 KiB for the whole process, is less than one long document.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
        delimiter = self.delimiter or ("\t" if format_suffix(path) in (".tsv", ".tab") else ",")
        with opened(path) as stream:
            lines = _CsvLines(read_lines(stream, path), frozenset(self.skip_rows))
            if self.quote is None:
                reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
            else:
                reader = csv.reader(lines, delimiter=delimiter, quotechar=self.quote, strict=True)
            header = list(self.names) or _header(lines, reader, path)
            if not header:
                return
            self._check(header, delimiter, path)
            while True:
                try:
                    cells = lines.next_row(reader)
                    if cells is None:
                        return
                    row = _named(cells, header)
                except BadRecord as bad:
                    skipped.add(f"{name}:{lines.first}", bad.reason, bad.detail)
                else:
                    yield f"{name}:{lines.first}", row

    def _check(self, header: list[str], delimiter: str, path: Path) -> None:
        try:
            self.columns.check(header, str(path), " If its first line is no header, name the columns with data.columns.")
        except Refused:
            others = [other for other in ",;\t|" if other in header[0]] if len(header) == 1 else []
            if not others:
                raise
            shown = others[0].replace("\t", "\\t")
            raise Refused(
                f"{path} has one column, {header[0]!r}, when cut at {delimiter!r}: did you mean data.delimiter='{shown}'?"
            ) from None


class _CsvLines:
    """Hands lines to a CSV reader and can take them back: after a broken record, reading goes on at its second line.

    Otherwise one quote without its other half would swallow all that follows.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes | None]], left_out: frozenset[int]):
        self._lines, self._left_out = lines, left_out
        self._returned: deque[tuple[int, bytes | None]] = deque()
        self._taken: list[tuple[int, bytes | None]] = []
        self._size = 0

    @property
    def first(self) -> int:
        """The number of the line with which the last record began."""
        return self._taken[0][0]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = self._returned.popleft() if self._returned else next(item for item in self._lines if item[0] not in self._left_out)
        self._taken.append(item)
        line = item[1]
        self._size += LONGEST if line is None else len(line)
        if line is None or self._size > LONGEST:
            raise too_long()
        # Bytes that are not UTF-8 pass through, so that they are found in the record to which they belong.
        return line.decode("utf-8", "surrogateescape")

    def next_row(self, reader: Iterator[list[str]]) -> list[str] | None:
        """The cells of the next record that is not blank; None at the end.

        Raises:
            BadRecord: it is broken.
        """
        while True:
            self._taken, self._size = [], 0
            try:
                cells = next(reader, None)
            except csv.Error as error:
                self._return()
                raise BadRecord("broken CSV", str(error)) from None
            except BadRecord:
                self._return()
                raise
            if cells is None or any(cells) or len(cells) > 1:
                return cells

    def _return(self) -> None:
        self._returned.extendleft(reversed(self._taken[1:]))


def _header(lines: _CsvLines, reader: Iterator[list[str]], path: Path) -> list[str]:
    """The names in the first line; none of an empty file.

    Raises:
        Refused: the line is broken.
    """
    try:
        cells = lines.next_row(reader) or []
        _check_utf8(cells)
    except BadRecord as bad:
        raise Refused(
            f"{path} has a header that cannot be read ({bad.reason}{f': {bad.detail}' if bad.detail else ''}). Repair it."
        ) from None
    return [cell.strip() for cell in cells]


def _named(cells: list[str], header: list[str]) -> Row:
    if len(cells) != len(header):
        raise BadRecord("too many cells" if len(cells) > len(header) else "too few cells", f"{len(cells)} instead of {len(header)}")
    _check_utf8(cells)
    return dict(zip(header, cells, strict=True))


def _check_utf8(cells: list[str]) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raise BadRecord("not UTF-8") from None

"""JSON: an object a line, or an array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from trainer.data.records import (
    BYTE_ORDER_MARK,
    COMPRESSED,
    Placed,
    RecordFiles,
    Row,
    format_suffix,
    lines_behind,
    opened,
    read_lines,
    too_long,
)
from trainer.data.sources import Skipped
from trainer.data.templates import BadRecord
from trainer.errors import Refused

SUFFIXES = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson", ".json") for packed in ("", *COMPRESSED))
"""What a folder given as ``data.path`` contributes."""

LONGEST_ARRAY = 256 << 20
"""Bytes of a JSON array, which has to be held in memory whole."""


class JsonFiles(RecordFiles):
    """An object a line, or in a file called ``.json``, one array of objects. Blank lines are no records."""

    def rows(self, name: str, path: Path, skipped: Skipped) -> Iterator[tuple[str, Row]]:
        """See ``RecordFiles.rows``; a row is called ``FILE:LINE``."""
        with opened(path) as stream:
            if _is_array(stream, path):
                yield from _good(_array(name, path, stream), skipped)
                return
            yield from _good(((f"{name}:{number}", line) for number, line in read_lines(stream, path)), skipped)

    def read_on(self, name: str, path: Path, place: Any = None) -> Iterator[Placed]:
        """See ``RecordFiles.read_on``; a place is a line's number and end, to which a file that is not compressed leaps."""
        with opened(path) as stream:
            if _is_array(stream, path):
                yield from super().read_on(name, path, place)
                return
            for number, end, line in lines_behind(stream, path, *(place or ())):
                try:
                    row: Row | BadRecord | None = _object(line)
                except BadRecord as bad:
                    row = bad
                if row is not None:
                    yield Placed([number, end], f"{name}:{number}", row)


class _Repeated(dict):
    """An object in which a key stands twice, or which holds such an object, also in a list."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) or any(map(_repeats, found.values())):
        return _Repeated(found)
    return found


def _repeats(value: Any) -> bool:
    return type(value) is _Repeated or (type(value) is list and any(map(_repeats, value)))


def _good(items: Iterable[tuple[str, Any]], skipped: Skipped) -> Iterator[tuple[str, Row]]:
    """The objects among raw lines and parsed values."""
    for label, item in items:
        try:
            value = _object(item)
        except BadRecord as bad:
            skipped.add(label, bad.reason, bad.detail)
        else:
            if value is not None:
                yield label, value


def _object(item: Any) -> Row | None:
    """The object in a raw line or a parsed value; None for a blank line.

    Raises:
        BadRecord: it holds none, or is None because it was too long to be held.
    """
    value = _parse(item) if isinstance(item, bytes) else item
    if item is None:
        raise too_long()
    if value is None:
        return None
    if type(value) is _Repeated:
        raise BadRecord("repeated key")
    if not isinstance(value, dict):
        raise BadRecord("not an object")
    return value


def _parse(line: bytes) -> Any:
    """The JSON of one line; None for a blank one."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"byte {error.start}") from None
    if not text.strip():
        return None
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise BadRecord("broken JSON", f"{error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise BadRecord("broken JSON", "nested too deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise BadRecord("broken JSON", str(error).partition(";")[0]) from None
    return () if value is None else value


def _is_array(stream: IO[bytes], path: Path) -> bool:
    """Whether a file holds one array, as only one called ``.json`` may.

    Raises:
        Refused: it begins as an array of objects, and its name says an object a line.
    """
    start = stream.read(1 << 12).removeprefix(BYTE_ORDER_MARK).lstrip()
    stream.seek(0)
    if format_suffix(path) == ".json":
        return start.startswith(b"[")
    if re.match(rb"\[\s*\{", start):
        raise Refused(f"{path} begins as one JSON array of objects, but its name says an object a line. If it is an array: call it .json.")
    return False


def _array(name: str, path: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yields the items of one array.

    Raises:
        Refused: it is too large to be held, or broken: nothing says where the next item begins.
    """
    raw = stream.read(LONGEST_ARRAY + 1)
    if len(raw) > LONGEST_ARRAY:
        raise Refused(
            f"{path} is one JSON array of more than {LONGEST_ARRAY >> 20} MiB. Write it as lines, which need not be held in memory: "
            f"jq -c '.[]' {path} > {path}l, then set data.path."
        )
    try:
        items = json.loads(raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"{path} is one JSON array and broken ({error}). Repair it, or write it as lines, where a bad record can be skipped."
        ) from None
    yield from ((f"{name}:item {number}", () if item is None else item) for number, item in enumerate(items, 1))

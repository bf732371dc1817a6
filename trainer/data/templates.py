"""How the columns of a row become a record: a column by its name, or a template with columns in braces. Nothing in it runs code."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.command_line.suggest import did_you_mean, nearest
from trainer.errors import Refused
from trainer.types import Record

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\x24": "$", r"\\": "\\"}
_NAMED_COLUMNS = 20
_LONGEST_NAME = 1000
_FLOAT32_MAX = 3.4028234663852886e38
"""The largest number that a label is stored as."""


class BadRecord(Exception):
    """One record cannot be used.

    Args:
        reason: the same words for the same fault, so that records can be counted by it.
        detail: what differs from record to record.
        absent: the column that the row does not have at all.
    """

    def __init__(self, reason: str, detail: str = "", absent: str | None = None):
        super().__init__(reason)
        self.reason, self.detail, self.absent = reason, detail, absent


@dataclass(frozen=True)
class Template:
    r"""A column's name, or text with columns in braces: ``title``, ``meta.title``, ``Summarise: {title}\n{body}``.

    Dots reach into nested columns, unless a column has the whole name. Of a template, ``{{`` and ``}}`` are braces, ``\n`` is a new
    line, ``\t`` a tab and ``\\`` a backslash, since a command line has no other way to write them; ``\x24`` is a dollar, because one
    before a brace is refused as an interpolation of the config wherever it is written.

    Attributes:
        key: the config key, for messages.
        written: as the user wrote it.
        parts: literal text, each followed by a column or by None.
        plain: whether it is a column's name and nothing else.
    """

    key: str
    written: str
    parts: tuple[tuple[str, str | None], ...]
    plain: bool

    @classmethod
    def parse(cls, key: str, written: str) -> Template:
        """Reads what a config key says.

        Raises:
            Refused: it names no column, its braces do not match, or it asks for more than a column.
        """
        if not written.strip():
            raise Refused(f"{key} is empty: name a column, or write a template such as '{{title}} {{body}}'.")
        if "{" not in written and "}" not in written:
            return cls(key, written, (("", written),), plain=True)
        unescaped = re.sub(r"\\(?:[nt\\]|x24)", lambda match: _ESCAPES[match[0]], written)
        try:
            found = list(string.Formatter().parse(unescaped))
        except ValueError as error:
            raise Refused(f"{key}={written} is no template ({error}): write {{column}}, and {{{{ for a brace.") from None
        for _, column, form, conversion in found:
            if column is not None and (form or conversion or not column.strip() or set(column) & set("[]{}")):
                raise Refused(f"{key}={written} is no template: braces hold the name of a column and nothing else, such as {{title}}.")
        parts = tuple((literal, column) for literal, column, _, _ in found)
        if all(column is None for _, column in parts):
            raise Refused(f"{key}={written} names no column: write one in braces, such as {{title}}.")
        return cls(key, written, parts, plain=False)

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return [column for _, column in self.parts if column is not None]

    def value(self, row: Mapping[str, Any]) -> Any:
        """What a row holds: the column as it is, or the template's text.

        Raises:
            BadRecord: a column is missing, or cannot be written into a template.
        """
        if self.plain:
            return _look_up(row, self.written)
        return self.text(row)

    def text(self, row: Mapping[str, Any]) -> str:
        """The text that a row gives. In a template, numbers are written out and columns may be empty or null, but not all of them.

        Raises:
            BadRecord: a column is missing or is no text, or the text is blank or holds what no tokenizer can read.
        """
        written, blank = [], True
        for literal, column in self.parts:
            written.append(literal)
            if column is not None:
                text = _as_text(_look_up(row, column), column, in_template=not self.plain)
                blank = blank and not text.strip()
                written.append(text)
        if blank:
            raise BadRecord(f"blank {_quoted(self.columns)}")
        return _check_text("".join(written), self.columns)

    def check(self, names: Collection[str], file: str, hint: str = "") -> None:
        """Compares with the columns that a file has.

        Args:
            names: of the columns.
            file: its name, for messages.
            hint: one more sentence for the user, with a space before it.

        Raises:
            Refused: it reads another, or one that the file has twice.
        """
        known = list(names)
        for column in self.columns:
            if column not in known and column.partition(".")[0] not in known:
                raise unknown_column(self, column, known, file, hint)
            if known.count(column) > 1:
                raise Refused(f"{self.key}={self.written}: {file} has {known.count(column)} columns called {column}. Rename all but one.")


def unknown_column(template: Template, column: str, names: Collection[str], file: str, hint: str = "") -> Refused:
    """The refusal of a column that a file does not have; ``hint`` is one more sentence."""
    known = list(dict.fromkeys(name.encode("utf-8", "backslashreplace").decode() for name in names))
    near = nearest(column, known) or next((name for name in known if name.lower().strip() == column.lower().strip()), None)
    shown = ", ".join(known[:_NAMED_COLUMNS]) + (f" and {len(known) - _NAMED_COLUMNS} more" if len(known) > _NAMED_COLUMNS else "")
    meant = near and f"{template.key}={near if template.plain else template.written.replace('{' + column, '{' + near)}"
    question = did_you_mean(meant) if meant else f". Set {template.key} to one of them, or to a template of several."
    return Refused(f"{template.key}={template.written}: {file} has no column {column}; it has {shown or 'none'}{question}{hint}")


@dataclass(frozen=True)
class Columns:
    """Which columns make a record.

    Attributes:
        texts: by field, as in ``Needs.fields``.
        label: of the label; None: records have none.
        label_kind: as in ``Needs.label``.
        label_separator: what stands between the labels in one text; None: it is one label.
        group: of the records that are held out together; None: each for itself.
    """

    texts: dict[str, Template]
    label: Template | None = None
    label_kind: str | None = None
    label_separator: str | None = None
    group: Template | None = None

    @property
    def templates(self) -> list[Template]:
        """All of them."""
        return [*self.texts.values(), *(template for template in (self.label, self.group) if template)]

    @property
    def names(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys(column for template in self.templates for column in template.columns))

    def check(self, names: Collection[str], file: str, hint: str = "") -> None:
        """Raises ``Refused`` unless a file with these columns has all that are read; see ``Template.check``."""
        for template in self.templates:
            template.check(names, file, hint)

    def record(self, name: str, row: Mapping[str, Any], split: str | None) -> Record:
        """One row as a record.

        Raises:
            BadRecord: a text or the label is missing or cannot be used.
        """
        texts = {field: template.text(row) for field, template in self.texts.items()}
        label = self._label(self.label, row) if self.label else None
        return Record(name, texts, label, self._group(self.group, row, texts) if self.group else None, split)

    def _group(self, template: Template, row: Mapping[str, Any], texts: Mapping[str, str]) -> str:
        """The group, as text; a record without one is its own, and its first text stands for it."""
        value = template.value(row)
        if value is not None and not isinstance(value, str | int | float):
            raise BadRecord(f"{_quoted(template.columns)} is no group", f"it is {_kind(value)}")
        return next(iter(texts.values())) if value is None or not str(value).strip() else str(value)

    def _label(self, template: Template, row: Mapping[str, Any]) -> str | list[str] | float:
        value, named = template.value(row), _quoted(template.columns)
        if value is None:
            raise BadRecord(f"without {named}", "it is null")
        if self.label_kind == "number":
            return _as_number(value, named)
        if self.label_kind == "class":
            return _as_class(value, named)
        values = value if isinstance(value, list | tuple) else self._split_label(value)
        return list(dict.fromkeys(_as_class(item, named) for item in values))

    def _split_label(self, value: Any) -> list[Any]:
        if not isinstance(value, str) or self.label_separator is None:
            return [value]
        return [part for part in value.split(self.label_separator) if part.strip()]


def absent_columns(row: Mapping[str, Any], columns: Collection[str]) -> Iterator[str]:
    """Those that a row does not have."""
    for column in columns:
        try:
            _look_up(row, column)
        except BadRecord:
            yield column


def _look_up(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise BadRecord(f"without {column!r}", absent=column)
        value = value[name]
    return value


def _as_text(value: Any, column: str, in_template: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and in_template:
        return ""
    if value is None:
        raise BadRecord(f"without {column!r}", "it is null")
    if in_template and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise BadRecord(f"{column!r} is not text", f"it is {value}")
        return str(value)
    raise BadRecord(f"{column!r} is not text", f"it is {_kind(value)}")


def _check_text(text: str, columns: list[str]) -> str:
    if "\0" in text:
        raise BadRecord("NUL character", f"in {_quoted(columns)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord("half a character", f"a lone surrogate in {_quoted(columns)}") from None
    return text


def _as_number(value: Any, named: str) -> float:
    """A number that float32 holds as a finite one, from a number or from text such as a CSV cell."""
    number = math.nan
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise BadRecord(f"{named} is not a number", f"it is {_shortened(value)}") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = _to_float(value)
    else:
        raise BadRecord(f"{named} is not a number", f"it is {_kind(value)}")
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise BadRecord(f"{named} is not a finite number", f"it is {number}" + (", beyond 32 bits" if math.isfinite(number) else ""))
    return number


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number with more than 308 digits
        return math.inf


def _as_class(value: Any, named: str) -> str:
    """A class's name: text without the space around it; ``1`` for 1 and 1.0; ``true`` for True."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRecord(f"{named} is not a finite number", f"it is {value}")
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise BadRecord(f"{named} is no class", f"it is {_kind(value)}")
    if not value.strip():
        raise BadRecord(f"blank {named}")
    if len(value) > _LONGEST_NAME:
        raise BadRecord(f"{named} is no class", f"it has {len(value):,} characters")
    return _check_text(value.strip(), [named.strip("'")])


def _kind(value: Any) -> str:
    """What a value is, in words of JSON."""
    if isinstance(value, bool):
        return "true or false"
    kinds = ((Mapping, "an object"), (list | tuple, "a list"), (int | float, "a number"), (bytes, "bytes"), (type(None), "null"))
    return next((words for kind, words in kinds if isinstance(value, kind)), type(value).__name__)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:27] + "...")


def _quoted(columns: list[str]) -> str:
    return " and ".join(repr(column) for column in columns)

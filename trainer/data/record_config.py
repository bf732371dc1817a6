"""Data presets for what has columns: files of records, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.data.config import Data, blank_paths, missing
from trainer.data.stream_config import Streamed
from trainer.errors import Refused
from trainer.schema import setting

if TYPE_CHECKING:
    from trainer.data.shards import Shards
    from trainer.data.templates import Columns
    from trainer.protocols import Source
    from trainer.types import Needs


@dataclass
class Records(Streamed):
    """What every corpus of records with columns has: which column, or which template of several, is what."""

    text: str = setting(
        "text",
        "the text: a column, or a template such as '{title}\\n{body}' ({meta.title}: nested, {{: a brace)",
        aliases=("text_column", "dataset_text_field", "text_field"),
    )
    source: str = setting("source", "what a seq2seq objective reads: a column or a template", aliases=("source_column", "input_column"))
    target: str = setting("target", "what it is to write: a column or a template", aliases=("target_column", "summary_column"))
    label: str = setting(
        "label", "the class, the classes (a list) or the number to predict: a column or a template", aliases=("label_column",)
    )
    label_separator: str | None = setting("|", "what stands between the classes of one text, where a record has several; None: it is one")
    group: str | None = setting(
        None, "a column; records that are equal in it are held out together; None: each for itself, equal texts together"
    )

    def lacks(self, needs: Needs) -> str | None:
        """See ``Data.lacks``; that a file has the columns shows when it is read."""
        return missing(needs, {"text", "source", "target"}, {"class", "classes", "number"})

    def _columns(self, needs: Needs) -> Columns:
        """Which columns make the records that an objective reads.

        Raises:
            Refused: a template cannot be read.
        """
        from trainer.data.templates import Columns, Template

        named = self._named()
        label, group = needs.label and Template.parse(*named["label"]), self.group and Template.parse(*named["group"])
        texts = {field: Template.parse(*named[field]) for field in needs.fields}
        # What is not read must not decide which corpus it is.
        separator = self.label_separator if needs.label == "classes" else None
        return Columns(texts, label or None, needs.label, separator or None, group or None)

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``: every template is read, used or not."""
        from trainer.data.templates import Template

        yield from super().problems()
        for key, written in self._named().values():
            try:
                Template.parse(key, written)
            except Refused as refused:
                yield from refused.problems

    def _named(self) -> dict[str, tuple[str, str]]:
        """Config key and value of each column, by field."""
        named = {"text": self.text, "source": self.source, "target": self.target, "label": self.label, "group": self.group}
        return {field: (f"data.{field}", written) for field, written in named.items() if written is not None}


@dataclass
class FileRecords(Records):
    """What every corpus of records in files has."""

    path: str = setting(
        "???", "a file, a folder (the files below it, by suffix) or a glob pattern", aliases=("train_file", "data_files", "dataset_path")
    )
    validation_path: str | None = setting(
        None,
        "held-out files of your own, named as path is; their texts are left out of training; None: a validation_fraction of path",
        aliases=("validation_file", "eval_file"),
    )

    @property
    def holds_out(self) -> bool:
        """See ``Data.holds_out``."""
        return self.validation_path is not None or super().holds_out

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        yield from super().problems()
        yield from blank_paths(self, "path", "validation_path")
        yield from _held_out_twice(self, "validation_path", self.validation_path)

    def stream(self, needs: Needs) -> tuple[Shards, Source | None]:
        """See ``Streamed.stream``: a shard is a file of ``path``."""
        from trainer.data.records import RecordFiles
        from trainer.data.shards import FileShards

        (files,) = self.open(needs).values()
        assert isinstance(files, RecordFiles)
        train = tuple((name, path, None) for name, path, split in files.files if split != "validation")
        held_out = tuple((name, path, None) for name, path, split in files.files if split == "validation")
        return FileShards(replace(files, files=train)), replace(files, files=held_out) if held_out else None

    def found(self, suffixes: Sequence[str], holding: str) -> tuple[str, tuple[tuple[str, Path, str | None], ...]]:
        """What ``trainer.data.records.RecordFiles`` takes: the root, and name, path and split of each file.

        Raises:
            Refused: nothing is there.
        """
        from trainer.data.sources import find_files, named_files

        folder, paths = find_files("data.path", self.path, suffixes, holding)
        root = str((paths[0] if len(paths) == 1 else folder).absolute())
        if self.validation_path is None:
            return root, tuple((name, path, None) for name, path in named_files(folder, paths))
        held_out_root, held_out = find_files("data.validation_path", self.validation_path, suffixes, holding)
        if both := {path.resolve() for path in held_out} & {path.resolve() for path in paths}:
            raise Refused(f"data.path and data.validation_path both hold {min(both)}. Take it out of one of them.")
        files = [(name, path, "train") for name, path in named_files(folder, paths)]
        prefix = "validation"
        while any(name.startswith(f"{prefix}/") for name, _, _ in files):  # a folder may have one of its own
            prefix += " held out"
        return root, (*files, *((f"{prefix}/{name}", path, "validation") for name, path in named_files(held_out_root, held_out)))


@dataclass
class Jsonl(FileRecords):
    """JSON: an object a line (.jsonl, .ndjson, .json), or a .json file that is one array of objects; also .gz, .bz2, .xz."""

    def open(self, needs: Needs) -> dict[str, Source]:
        """The files that ``path`` and ``validation_path`` name."""
        from trainer.data.json_files import SUFFIXES, JsonFiles

        return {"": JsonFiles(*self.found(SUFFIXES, "JSON"), self._columns(needs))}


@dataclass
class Csv(FileRecords):
    """Cells between delimiters, with quotes around those that hold delimiters or line ends (.csv, .tsv, .tab); also .gz, .bz2, .xz."""

    delimiter: str | None = setting(
        None, "the character between cells, \\t for a tab; None: a tab in .tsv and .tab files, else a comma", aliases=("sep", "separator")
    )
    quote: str | None = setting('"', "the character around cells that hold delimiters; None: quotes are text", aliases=("quotechar",))
    skip_rows: list[int] = setting(
        [], "lines to leave out, counted from 1, such as more lines of a header", minimum=1, aliases=("skiprows",)
    )
    columns: list[str] = setting([], "names of the columns, where no line holds them; []: the first line does", aliases=("column_names",))

    def open(self, needs: Needs) -> dict[str, Source]:
        """The files that ``path`` and ``validation_path`` name."""
        from trainer.data.csv_files import SUFFIXES, CsvFiles

        found, columns = self.found(SUFFIXES, "CSV"), self._columns(needs)
        return {"": CsvFiles(*found, columns, self._delimiter(), self.quote, tuple(self.skip_rows), tuple(self.columns))}

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        yield from super().problems()
        for key, value in (("data.delimiter", self._delimiter()), ("data.quote", self.quote)):
            if value is not None and (len(value) != 1 or value in " \r\n\0" or not value.isascii()):
                yield f"{key}={value!r} is not one character, such as ',' or '\\t'."
        if self.quote is not None and self.quote == self._delimiter():
            yield f"data.quote and data.delimiter are both {self.quote!r}: choose two."
        if wrong := [number for number in self.skip_rows if number < 1]:
            yield f"data.skip_rows={self.skip_rows} holds {wrong[0]}, but must be at least 1: lines are counted from 1."
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            yield f"data.columns names {', '.join(twice)} twice: give every column its own name."

    def _delimiter(self) -> str | None:
        return "\t" if self.delimiter == "\\t" else self.delimiter


@dataclass
class Parquet(FileRecords):
    """Parquet files (.parquet, .pq); needs isotrain[data]."""

    def open(self, needs: Needs) -> dict[str, Source]:
        """The files that ``path`` and ``validation_path`` name."""
        from trainer.data.tables import SUFFIXES, ParquetFiles

        return {"": ParquetFiles(*self.found(SUFFIXES, "parquet"), self._columns(needs))}


@dataclass
class Hub(Records):
    """A data set of the Hugging Face hub, or a local folder of one; no code of it is run; needs isotrain[data]."""

    name: str = setting("???", "OWNER/NAME on the hub, or a folder", aliases=("dataset_name", "dataset"))
    config: str | None = setting(
        None, "which of its configurations (subsets); None: the only one", aliases=("dataset_config_name", "subset", "name_config")
    )
    split: str = setting("train", "the split to train on", aliases=("train_split", "dataset_train_split"))
    validation_split: str | None = setting(
        None,
        "the split to hold out; its texts are left out of training; None: a validation_fraction of split",
        aliases=("eval_split", "dataset_test_split"),
    )
    revision: str | None = setting(None, "branch, tag or commit; None: the newest")
    held_out_key: ClassVar[str] = "validation_split"

    @property
    def holds_out(self) -> bool:
        """See ``Data.holds_out``."""
        return self.validation_split is not None or super().holds_out

    def open(self, needs: Needs) -> dict[str, Source]:
        """The splits, fetched or from the cache."""
        from trainer.data.tables import open_hub

        splits: dict[str, str | None] = {self.split: None}
        if self.validation_split is not None:
            splits = {self.split: "train", self.validation_split: "validation"}
        return {"": open_hub(self.name, self.config, splits, self.revision, self._columns(needs))}

    def stream(self, needs: Needs) -> tuple[Shards, Source | None]:
        """See ``Streamed.stream``: shards are the set's own."""
        from trainer.data.hub_shards import stream_hub

        splits = [self.split, *([self.validation_split] if self.validation_split is not None else [])]
        train, *held_out = stream_hub(self.name, self.config, splits, self.revision, self._columns(needs))
        return train, held_out[0] if held_out else None

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        yield from super().problems()
        for key, meant in (
            ("name", "OWNER/NAME on the hub, or a folder"),
            ("split", "such as train"),
            ("validation_split", "or leave it out"),
        ):
            if (value := getattr(self, key)) is not None and not value.strip():
                yield f"data.{key} is empty: name one, {meant}."
        yield from _held_out_twice(self, "validation_split", self.validation_split)
        if self.split == self.validation_split:
            yield f"data.split and data.validation_split are both {self.split}: hold out another, or leave data.validation_split out."


def _held_out_twice(data: Data, key: str, value: str | None) -> Iterator[str]:
    default = next(field.default for field in fields(Data) if field.name == "validation_fraction")
    if value is not None and data.validation_fraction != default:
        yield (
            f"data.{key}={value} is what is held out, so data.validation_fraction={data.validation_fraction:g} would have no effect: "
            "leave one of them out."
        )

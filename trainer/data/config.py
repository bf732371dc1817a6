"""Data presets: where text comes from and how it becomes rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.schema import setting

if TYPE_CHECKING:
    from trainer.data.templates import Template
    from trainer.protocols import Source
    from trainer.types import Needs


@dataclass
class TokenizerConfig:
    """Which tokenizer; it owns the vocabulary and the special ids."""

    path: str | None = setting(
        None,
        "a folder with tokenizer.json, or a hub id; None: the pretrained model's own, or a byte-level BPE trained on this corpus",
        aliases=("tokenizer_name_or_path", "tokenizer_path"),
    )
    vocab_size: int = setting(4096, "entries of a tokenizer trained here, special tokens included", minimum=300, maximum=1_000_000)


@dataclass
class Data:
    """What every corpus has."""

    sequence_length: int = setting(
        128, "tokens per row", minimum=2, aliases=("max_length", "block_size", "seq_len", "max_seq_length", "context_length")
    )
    target_length: int | None = setting(
        None, "tokens per row of the target, where the objective reads one; None: the same", minimum=2, aliases=("max_target_length",)
    )
    packing: bool | None = setting(
        None,
        "join documents and cut the stream into full rows; false: one record per row, padded; None: as the objective allows",
    )
    too_long: str = setting("truncate", "what becomes of a record that is longer than a padded row", choices=("truncate", "skip", "refuse"))
    group_by_length: bool = setting(False, "batches of records of similar length, in a random order; padded rows only")
    validation_fraction: float = setting(
        0.01, "share of documents held out, chosen by content hash before packing; 0: none", minimum=0, below=1
    )
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "the tokenizer")
    cache_dir: str | None = setting(None, "where prepared corpora are kept; None: $XDG_CACHE_HOME/isotrain or ~/.cache/isotrain")
    prepare_timeout: float = setting(3600.0, "seconds a rank waits for another that prepares the same corpus", above=0)
    workers: int = setting(
        0,
        "loader processes per rank; 0: the training process loads",
        minimum=0,
        maximum=64,
        aliases=("num_workers", "dataloader_num_workers"),
    )
    max_bad: int = setting(100, "records that may be skipped as broken or unusable before the corpus is refused; 0: none", minimum=0)

    def open(self, needs: Needs) -> dict[str, Source]:
        """Where the records come from, by part; one part has the name ``""``. Each corpus brings its own.

        Args:
            needs: what the objective reads; ``lacks`` has found nothing missing.

        Raises:
            Refused: nothing is there, or it cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} is a data config without open()")

    def lacks(self, needs: Needs) -> str | None:
        """What the objective reads and this corpus has not, in words; None: nothing. A corpus of plain text has ``text``."""
        return missing(needs, {"text"}, set())

    def sources(self) -> dict[str, Data]:
        """The corpora that this one is made of, by the config key where each is set."""
        return {"data": self}

    def shares(self) -> dict[str, tuple[float, float]]:
        """How much of the training stream each part of ``open`` is, at its beginning and at its end; any unit."""
        return {"": (1.0, 1.0)}

    @property
    def holds_out(self) -> bool:
        """Whether there is a validation split."""
        return self.validation_fraction > 0

    def problems(self) -> Iterator[str]:
        """What these settings make impossible by themselves, one sentence each. Part of the static gate: reads no file."""
        return iter(())

    @property
    def recipes_dir(self) -> Path:
        """Where recipes keep what they fetch."""
        from trainer.recipes.fetch import cache_folder

        return Path(self.cache_dir).expanduser() / "recipes" if self.cache_dir else cache_folder()


@dataclass
class PythonStdlib(Data):
    """The source code of the running Python's standard library without its tests: real text, no download.

    A document is a file. An objective with a target gets functions and the first line of their docstring, one with a class gets
    functions and the package they come from.
    """

    def open(self, needs: Needs) -> dict[str, Source]:
        """The library's ``*.py`` files, or their functions."""
        from trainer.data.functions import Functions
        from trainer.data.sources import python_stdlib

        files = python_stdlib()
        return {"": files if "text" in needs.fields and needs.label is None else Functions(files, packages=needs.label is not None)}

    def lacks(self, needs: Needs) -> str | None:
        """See ``Data.lacks``."""
        return missing(needs, {"text", "source", "target"}, {"class"})


@dataclass
class Text(Data):
    """The user's own UTF-8 text files."""

    path: str = setting(
        "???",
        "a file, a folder (the text and source files below it, by suffix) or a glob pattern",
        aliases=("train_file", "data_files", "dataset_path"),
    )
    document: str = setting("file", "what one document is", choices=("file", "line", "paragraph"))

    def open(self, needs: Needs) -> dict[str, Source]:
        """The files that ``path`` names."""
        from trainer.data.sources import text_files

        return {"": text_files(self.path, self.document)}

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        yield from blank_paths(self, "path")


@dataclass
class Vader(Data):
    """Sentences whose sentiment about twenty people rated (VADER, MIT): text, class positive or negative, or the mean rating."""

    part: str = setting("movie", "which sentences", choices=("movie", "amazon", "nyt", "tweets"))

    def open(self, needs: Needs) -> dict[str, Source]:
        """The sentences, fetched once."""
        from trainer.recipes.vader import vader

        label = {"class": "label", "number": "score"}.get(needs.label or "")
        return {"": _recipe(vader(self.recipes_dir, self.part), needs, {"text": "text"}, label)}

    def lacks(self, needs: Needs) -> str | None:
        """See ``Data.lacks``."""
        return missing(needs, {"text"}, {"class", "number"})


@dataclass
class DebianDescriptions(Data):
    """Long descriptions of Debian's packages, and the synopses that people wrote for them; needs apt-get."""

    def open(self, needs: Needs) -> dict[str, Source]:
        """The descriptions, fetched once; those with one first paragraph are held out together."""
        from trainer.recipes.debian import debian_descriptions

        columns = {"text": "document", "source": "document", "target": "summary"}
        return {"": _recipe(debian_descriptions(self.recipes_dir), needs, columns, None, group="group")}

    def lacks(self, needs: Needs) -> str | None:
        """See ``Data.lacks``."""
        return missing(needs, {"text", "source", "target"}, set())


def _recipe(path: Path, needs: Needs, named: dict[str, str], label: str | None, group: str | None = None) -> Source:
    """The JSON lines that a recipe wrote."""
    from trainer.data.json_files import JsonFiles
    from trainer.data.templates import Columns, Template

    def column(name: str | None) -> Template | None:
        return Template.parse(path.name, name) if name else None

    texts = {field: Template.parse(path.name, named[field]) for field in needs.fields}
    return JsonFiles(str(path.parent), ((path.name, path, None),), Columns(texts, column(label), needs.label, None, column(group)))


def missing(needs: Needs, texts: set[str], labels: set[str]) -> str | None:
    """What an objective reads beside these texts and kinds of label, in words; None: nothing."""
    words = [f"a {field}" for field in needs.fields if field not in texts]
    kinds = {"class": "a label", "classes": "any number of labels per record", "number": "a number as label"}
    if needs.label is not None and needs.label not in labels:
        words.append(kinds[needs.label])
    return " and ".join(words) or None


def blank_paths(data: Data, *keys: str) -> Iterator[str]:
    """A sentence for each of these keys that is set to nothing."""
    for key in keys:
        if (value := getattr(data, key)) is not None and not value.strip():
            yield f"data.{key} is empty: name a file, a folder or a glob pattern."

"""Data presets: where text comes from and how it becomes packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.schema import setting

if TYPE_CHECKING:
    from trainer.data.sources import Files


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
        128, "tokens per packed row", minimum=2, aliases=("max_length", "block_size", "seq_len", "max_seq_length", "context_length")
    )
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
    max_bad: int = setting(100, "documents that may be skipped as unreadable or not UTF-8 before the corpus is refused", minimum=0)

    def source(self) -> Files:
        """Where the documents come from: an object with the methods of ``trainer.data.sources.Files``; each corpus brings its own."""
        raise NotImplementedError(f"{type(self).__name__} is a data config without source()")


@dataclass
class PythonStdlib(Data):
    """The source code of the running Python's standard library without its tests: real text, no download. A document is a file."""

    def source(self) -> Files:
        """The library's ``*.py`` files."""
        from trainer.data.sources import python_stdlib

        return python_stdlib()


@dataclass
class Text(Data):
    """The user's own UTF-8 text files."""

    path: str = setting(
        "???",
        "a file, a folder (the text and source files below it, by suffix) or a glob pattern",
        aliases=("train_file", "data_files", "dataset_path"),
    )
    document: str = setting("file", "what one document is", choices=("file", "line", "paragraph"))

    def source(self) -> Files:
        """The files that ``path`` names."""
        from trainer.data.sources import text_files

        return text_files(self.path, self.document)

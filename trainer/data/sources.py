"""Where documents come from: files on this machine, read in one fixed order, with what cannot be read counted and named."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.fingerprint import StatIndex
from trainer.errors import Refused
from trainer.types import Record

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = frozenset(
    {
        ".txt",
        ".md",
        ".rst",
        ".tex",
        ".html",
        ".xml",
        ".csv",
        ".json",
        ".jsonl",
        ".py",
        ".c",
        ".h",
        ".cpp",
        ".java",
        ".js",
        ".ts",
        ".go",
        ".rs",
        ".sh",
    }
)
"""What a folder given as ``data.path`` contributes; anything else is named by a glob pattern."""

_CUT = {"file": "file", "line": "line", "paragraph": "paragraph 2"}
"""How documents are cut, as digests name it: another number where other text comes out of the same files."""

_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_NAMED_IN_LOG = 3


@dataclass
class Skipped:
    """The records that one pass over a corpus could not use.

    Attributes:
        limit: the most that may be skipped (``data.max_bad``).
        reasons: record name to what is wrong with it; never more than the limit and one.
        kinds: how many were skipped for each reason, details left out.
    """

    limit: int
    reasons: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, reason: str, detail: str = "") -> None:
        """Counts one record.

        Args:
            name: file and line, different for every record.
            reason: the same words for the same fault.
            detail: what differs from record to record.

        Raises:
            Refused: it is one more than the limit allows.
        """
        self.reasons[name] = f"{reason}: {detail}" if detail else reason
        self.kinds[reason] += 1
        if len(self.reasons) > self.limit:
            raise Refused(
                f"The corpus has more than data.max_bad={self.limit} bad records ({self.summary()}), such as {self.sample()}. "
                "Repair or remove them, or raise data.max_bad to go on without them."
            )

    def summary(self) -> str:
        """How many of each kind, the most frequent first."""
        return ", ".join(f"{number} {reason}" for reason, number in self.kinds.most_common())

    def sample(self) -> str:
        """The first few, in words."""
        named = [f"{name} ({reason})" for name, reason in list(self.reasons.items())[:_NAMED_IN_LOG]]
        return ", ".join(named) + (", ..." if len(self.reasons) > len(named) else "")

    def log(self) -> None:
        """Says once how many were skipped for what, and which first."""
        if self.reasons:
            logger.warning(
                "Skipped %d bad record(s): %s (data.max_bad=%d). The first: %s",
                len(self.reasons),
                self.summary(),
                self.limit,
                self.sample(),
            )


@dataclass(frozen=True)
class Files:
    """Documents in files.

    Attributes:
        root: where the files are, in words for messages and to name their index.
        files: (name, path) of each file; the name is the same on every machine and gives the order.
        document: what one document is: a whole ``file``, a ``line`` or a ``paragraph`` (lines between blank ones,
            joined by line feeds and without one at the end, so that equal paragraphs are equal texts wherever they stand).
    """

    root: str
    files: tuple[tuple[str, Path], ...]
    document: str = "file"

    def digest(self, index: StatIndex) -> str:
        """SHA-256 over the names and contents of all files and over how they are cut."""
        return digest_files(_CUT[self.document], self.files, index)

    def num_bytes(self) -> int:
        """Size of all files that can be read, for the progress bar."""
        return sum(path.stat().st_size for _, path in self.files if path.is_file())

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Yields each document that is not blank, as the text ``text``.

        Raises:
            Refused: more documents are unreadable than ``skipped`` allows.
        """
        for name, path in self.files:
            try:
                for number, raw in enumerate(_cut(path, self.document), 1):
                    label = name if self.document == "file" else f"{name}:{self.document} {number}"
                    try:
                        text = raw.decode("utf-8")
                    except UnicodeDecodeError as error:
                        skipped.add(label, "not UTF-8", f"byte {error.start}")
                        continue
                    if text.strip():
                        yield Record(label, {"text": text})
            except OSError as error:
                skipped.add(name, "unreadable", error.strerror or str(error))


def digest_files(settings: str, files: Sequence[tuple[str, Path]], index: StatIndex) -> str:
    """SHA-256 over how files are read and over the name and content of each."""
    total = hashlib.sha256(settings.encode())
    for name, path in files:
        total.update(f"\0{name}\0{index.digest(path)}".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def python_stdlib() -> Files:
    """The running Python's standard library without tests and installed packages.

    Raises:
        Refused: this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    library = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _NOT_LIBRARY]
        library += [Path(folder, name) for name in names if name.endswith(".py")]
    if not library:
        raise Refused(
            f"data=python_stdlib finds no *.py below {root}: this Python has no library sources. Use data=text data.path=YOUR_FILES."
        )
    return _files(root, library)


def text_files(pattern: str, document: str) -> Files:
    """The text files that a file, a folder or a glob pattern names; see ``find_files``.

    Args:
        pattern: ``data.path``.
        document: see ``Files``.
    """
    root, paths = find_files("data.path", pattern, TEXT_SUFFIXES, "text")
    return _files(root, paths, document)


def find_files(key: str, pattern: str, suffixes: Collection[str], holding: str) -> tuple[Path, list[Path]]:
    """What a file, a folder or a glob pattern names.

    Args:
        key: the config key, for messages.
        pattern: its value. Of a folder, the files below it count that end in one of ``suffixes``; hidden ones do not.
        suffixes: in lower case, with the dot.
        holding: what the files should hold, for messages.

    Returns:
        The folder that all are below, and the files, each once.

    Raises:
        Refused: nothing is there.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        root = path
        found = [item for item in path.rglob("*") if item.name.lower().endswith(tuple(suffixes)) and not _is_hidden(item.relative_to(path))]
    elif path.exists():
        root, found = path.parent, [path]
    else:
        found = [Path(item) for item in glob.glob(str(path), recursive=True)]
        root = Path(os.path.commonpath([item.parent for item in found])) if found else path
    found = sorted({item for item in found if not item.is_dir()})  # a pattern with two ** comes to a file in several ways
    if not found:
        looked_for = (
            f"files that end in {', '.join(sorted(suffixes))}" if path.is_dir() else "a file or folder, or files that match the pattern"
        )
        example = next((suffix for suffix in (".txt", ".jsonl", ".csv", ".parquet") if suffix in suffixes), "")
        raise Refused(
            f"{key}={pattern} holds no {holding}: it was searched for {looked_for}. "
            f"Name a file, a folder, or a glob pattern such as 'corpus/**/*{example}'."
        )
    return root, found


def named_files(root: Path, paths: Iterable[Path]) -> tuple[tuple[str, Path], ...]:
    """Files by their name below ``root``, which is the same on every machine, in the order of the names."""
    return tuple(sorted((path.relative_to(root).as_posix(), path) for path in paths))


def _files(root: Path, paths: list[Path], document: str = "file") -> Files:
    return Files(str(root.absolute()), named_files(root, paths), document)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _cut(path: Path, document: str) -> Iterator[bytes]:
    """The raw documents of one file, without holding more than one of them."""
    if document == "file":
        yield path.read_bytes()
        return
    with path.open("rb") as lines:
        if document == "line":
            yield from (line.rstrip(b"\r\n") for line in lines)
            return
        paragraph: list[bytes] = []
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield _joined(paragraph)
                paragraph = []
        if paragraph:
            yield _joined(paragraph)


def _joined(lines: list[bytes]) -> bytes:
    """A paragraph as the same bytes, however its lines end and whether or not the last one does."""
    return b"".join(lines).replace(b"\r\n", b"\n").rstrip(b"\r\n")

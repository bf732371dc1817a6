"""Where documents come from: files on this machine, read in one fixed order, with what cannot be read counted and named."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.fingerprint import StatIndex
from trainer.errors import Refused

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

_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_NAMED_IN_LOG = 3


@dataclass
class Skipped:
    """The documents that one pass over a corpus could not read.

    Attributes:
        limit: the most that may be skipped (``data.max_bad``).
        reasons: document name to what is wrong with it.
    """

    limit: int
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Counts one document.

        Raises:
            Refused: it is one more than the limit allows.
        """
        self.reasons[name] = reason
        if len(self.reasons) > self.limit:
            raise Refused(
                f"The corpus has more than data.max_bad={self.limit} unreadable documents: {self.sample()}. "
                "Repair or remove them, convert them to UTF-8, or raise data.max_bad."
            )

    def sample(self) -> str:
        """The first few, in words."""
        named = [f"{name} ({reason})" for name, reason in list(self.reasons.items())[:_NAMED_IN_LOG]]
        return ", ".join(named) + (", ..." if len(self.reasons) > len(named) else "")

    def log(self) -> None:
        """Says once how many were skipped, and which first."""
        if self.reasons:
            logger.warning("Skipped %d unreadable document(s) (data.max_bad=%d): %s", len(self.reasons), self.limit, self.sample())


@dataclass(frozen=True)
class Files:
    """Documents in files.

    Attributes:
        root: where the files are, in words for messages and to name their index.
        files: (name, path) of each file; the name is the same on every machine and gives the order.
        document: what one document is: a whole ``file``, a ``line`` or a ``paragraph`` (lines between blank ones).
    """

    root: str
    files: tuple[tuple[str, Path], ...]
    document: str = "file"

    def digest(self, index: StatIndex) -> str:
        """SHA-256 over the names and contents of all files and over how they are cut."""
        total = hashlib.sha256(self.document.encode())
        for name, path in self.files:
            total.update(f"\0{name}\0{index.digest(path)}".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def num_bytes(self) -> int:
        """Size of all files that can be read, for the progress bar."""
        return sum(path.stat().st_size for _, path in self.files if path.is_file())

    def documents(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of each document that is not blank.

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
                        skipped.add(label, f"not UTF-8 at byte {error.start}")
                        continue
                    if text.strip():
                        yield label, text
            except OSError as error:
                skipped.add(name, error.strerror or str(error))


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
    """A file, a folder or a glob pattern.

    Args:
        pattern: of a folder, files below it with a suffix in ``TEXT_SUFFIXES`` count, hidden ones do not.
        document: see ``Files``.

    Raises:
        Refused: nothing is there.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        root, found = (
            path,
            [item for item in path.rglob("*") if item.suffix.lower() in TEXT_SUFFIXES and not _is_hidden(item.relative_to(path))],
        )
    elif path.exists():
        root, found = path.parent, [path]
    else:
        found = [Path(item) for item in glob.glob(str(path), recursive=True)]
        root = Path(os.path.commonpath([item.parent for item in found])) if found else path
    found = [item for item in found if not item.is_dir()]
    if not found:
        looked_for = (
            f"files that end in {', '.join(sorted(TEXT_SUFFIXES))}"
            if path.is_dir()
            else "a file or folder, or files that match the pattern"
        )
        raise Refused(
            f"data.path={pattern} holds no text: it was searched for {looked_for}. Name a file, a folder, or a glob pattern such as 'corpus/**/*.txt'."
        )
    return _files(root, found, document)


def _files(root: Path, paths: list[Path], document: str = "file") -> Files:
    return Files(str(root.absolute()), tuple(sorted((path.relative_to(root).as_posix(), path) for path in paths)), document)


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
                yield b"".join(paragraph)
                paragraph = []
        if paragraph:
            yield b"".join(paragraph)

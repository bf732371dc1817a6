"""The functions of Python source files as records: what each does, or which package it comes from. Nothing is imported or run."""

from __future__ import annotations

import ast
import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.data.fingerprint import StatIndex
from trainer.data.sources import Files, Skipped, digest_files
from trainer.types import Record

CLASS_SIZE = 50
"""A package or module with fewer functions is no class: its held-out share would say nothing."""
_LINES = 3
"""A shorter function says too little of where it comes from."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Functions:
    """Functions and methods, but not the functions inside them; of equal ones the first.

    Described (``packages`` False): source without its docstring, to the docstring's first line. The functions of a file are held out
    together, because they are often written after each other's pattern; files of one package go separate ways.

    Placed (``packages`` True): source of at least three lines, to the top-level package or module that it comes from, where that has
    ``CLASS_SIZE`` of them. Whole files cannot be held out here, since many a class is one file; the methods of one class are.

    Attributes:
        files: Python sources.
        packages: which of the two.
    """

    files: Files
    packages: bool
    _library: list[Record] = field(default_factory=list, repr=False, compare=False)
    _faults: list[tuple[str, str]] = field(default_factory=list, repr=False, compare=False)

    @property
    def root(self) -> str:
        """Where the files are."""
        return self.files.root

    def digest(self, index: StatIndex) -> str:
        """SHA-256 over the task, over Python's version, which decides what is a function, and over all files."""
        settings = f"functions 1, packages={self.packages}, {CLASS_SIZE}, {_LINES}, {sys.version_info[:2]}"
        return digest_files(settings, self.files.files, index)

    def num_bytes(self) -> int:
        """Size of all files that can be read."""
        return self.files.num_bytes()

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Yields ``source`` and ``target``, or ``text`` and its class; tells ``skipped`` of files that are no Python."""
        if not self._library:  # parsing takes seconds, and preparing reads several times
            self._faults.clear()
            self._library.extend(self._unequal(self._placed() if self.packages else self._described()))
        for name, reason in self._faults:
            skipped.add(name, "not Python", reason)
        sizes = Counter(record.label for record in self._library)
        yield from (record for record in self._library if not self.packages or sizes[record.label] >= CLASS_SIZE)

    def _described(self) -> Iterator[Record]:
        for file, name, node, lines in self._functions():
            docstring = (ast.get_docstring(node) or "").strip()
            source = _without_docstring(node, lines)
            if docstring and source.strip():
                first = docstring.splitlines()[0].strip()
                yield Record(f"{file}:{node.lineno} {name}", {"source": source, "target": first}, group=file)

    def _placed(self) -> Iterator[Record]:
        for file, name, node, lines in self._functions():
            if (node.end_lineno or 0) - node.lineno + 1 >= _LINES:
                package = file.split("/")[0].removesuffix(".py")
                text = _source(node, lines)
                yield Record(f"{file}:{node.lineno} {name}", {"text": text}, package, group=f"{file} {name.split('.')[0]}")

    def _functions(self) -> Iterator[tuple[str, str, _Function, list[str]]]:
        """Yields file, qualified name, syntax tree and the file's lines of each function."""
        unreadable = Skipped(len(self.files.files))
        for document in self.files.records(unreadable):
            # Line numbers of a syntax tree count these line ends only; str.splitlines knows more.
            text = document.texts["text"].replace("\r\n", "\n").replace("\r", "\n")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of invalid escapes in somebody else's strings
                    tree = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError) as error:
                self._faults.append((document.name, str(error)))
                continue
            lines = text.removeprefix("\ufeff").split("\n")
            yield from ((document.name, name, node, lines) for name, node in _below(tree))
        self._faults.extend(unreadable.reasons.items())

    @staticmethod
    def _unequal(records: Iterator[Record]) -> Iterator[Record]:
        """Leaves out records whose input another has had: held out apart, equal ones would be known beforehand."""
        seen = set()
        for record in records:
            text = next(iter(record.texts.values()))
            key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
            if key not in seen:
                seen.add(key)
                yield record


def _below(tree: ast.Module | ast.ClassDef, path: str = "") -> Iterator[tuple[str, _Function]]:
    """Functions and methods by qualified name, also those under ``if`` and ``try``."""
    pending: list[ast.AST] = [*tree.body]
    while pending:
        node = pending.pop(0)
        if isinstance(node, _Function):
            yield path + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _below(node, f"{path}{node.name}.")
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            pending[:0] = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def _source(node: _Function, lines: list[str]) -> str:
    """The function with its decorators, moved to the left margin."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return _outdented(lines[first - 1 : node.end_lineno], node.col_offset)


def _without_docstring(node: _Function, lines: list[str]) -> str:
    """The function's source after its docstring, if it has one, has been cut out; lines that this leaves blank go too."""
    if ast.get_docstring(node) is None:
        return _source(node, lines)
    docstring = node.body[0]
    end_line = docstring.end_lineno or docstring.lineno
    # Offsets in a line count bytes.
    before = lines[docstring.lineno - 1].encode()[: docstring.col_offset].decode()
    after = lines[end_line - 1].encode()[docstring.end_col_offset :].decode()
    kept = [before + after.lstrip(" ;")] if (before + after).strip() else []
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return _outdented([*lines[first - 1 : docstring.lineno - 1], *kept, *lines[end_line : node.end_lineno]], node.col_offset)


def _outdented(lines: list[str], indent: int) -> str:
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines).rstrip()

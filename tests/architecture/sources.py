"""Reads the package's source as syntax trees: modules, and who imports whom."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One file: its path below the root, its dotted module name and its syntax tree."""

    path: str
    module: str
    num_lines: int
    tree: ast.Module


@dataclass(frozen=True)
class Import:
    """One module of the tree that a file imports; ``when`` is ``module``, ``function`` or ``typing``."""

    target: str
    line: int
    when: str


def read_sources(root: Path) -> list[Source]:
    """Every Python file of ``trainer/`` and the entry ``train.py``, sorted by path."""
    files = [*root.glob("trainer/**/*.py"), *root.glob("train.py")]
    return [_read(root, file) for file in sorted(files)]


def _read(root: Path, file: Path) -> Source:
    path = file.relative_to(root)
    text = file.read_text(encoding="utf-8")
    parts = path.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(path.as_posix(), module, len(text.splitlines()), ast.parse(text, filename=str(file)))


def imports_of(source: Source, modules: set[str]) -> Iterator[Import]:
    """What ``source`` imports out of ``modules``; for ``from package import name`` the submodule where there is one."""
    for node, when in _walk(source.tree, "module"):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name in modules and name != source.module:
                yield Import(name, node.lineno, when)


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.module.split(".") if source.path.endswith("__init__.py") else source.module.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)


def _walk(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node below ``node`` with the moment at which it runs."""
    for child in ast.iter_child_nodes(node):
        inner = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = "function"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = "typing"
        yield child, inner
        yield from _walk(child, inner)

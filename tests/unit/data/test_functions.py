"""Functions of Python files as records."""

import ast
from pathlib import Path

import pytest

from trainer.data.config import PythonStdlib
from trainer.data.fingerprint import StatIndex
from trainer.data.functions import CLASS_SIZE, Functions
from trainer.data.sources import Files, Skipped
from trainer.types import Needs, Record, Window

ROW = Window(8, 8)
SOURCE = '''
"""Module."""
import os

@decorated
def one(a):
    """  Do one thing.

    At length.
    """
    return a  # é

def short(): "Say it."; return 1

async def later(
    a,
):
    # first
    "Wait."
    def inner():
        """Not on its own."""
    return """
text at the margin"""

def silent():
    return 2

class Thing:
    """A thing."""

    def method(self):
        """Be é a method."""

        if self:
            return 1

    class Part:
        def method(self):
            """Be é a method."""

            if self:
                return 1

if os.name == "posix":
    try:
        def here():
            """Only here.\\n\\nMore."""
            return 3
    except ImportError:
        pass
'''


@pytest.fixture
def library(tmp_path) -> Files:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "a.py").write_text(SOURCE, newline="\r\n")
    return Files(str(tmp_path), (("pack/a.py", tmp_path / "pack" / "a.py"),))


def test_each_described_function_gives_its_code_and_the_first_line_of_its_docstring(library):
    records = list(Functions(library, packages=False).records(Skipped(0)))
    assert {record.group for record in records} == {"pack/a.py"}
    assert [(record.name, record.texts["source"], record.texts["target"]) for record in records] == [
        ("pack/a.py:6 one", "@decorated\ndef one(a):\n    return a  # é", "Do one thing."),
        ("pack/a.py:13 short", "def short(): return 1", "Say it."),
        (
            "pack/a.py:15 later",
            'async def later(\n    a,\n):\n    # first\n    def inner():\n        """Not on its own."""\n    return """\ntext at the margin"""',
            "Wait.",
        ),
        ("pack/a.py:31 Thing.method", "def method(self):\n\n    if self:\n        return 1", "Be é a method."),
        ("pack/a.py:46 here", "def here():\n    return 3", "Only here."),
    ], "functions inside functions, those without docstring and equal ones are left out"


def test_code_without_its_docstring_is_still_code_and_does_not_hold_it(library):
    for record in Functions(library, packages=False).records(Skipped(0)):
        tree = ast.parse(record.texts["source"])
        assert ast.get_docstring(tree.body[0]) is None  # type: ignore[arg-type]
        assert record.texts["target"] not in record.texts["source"]


def test_packages_with_few_functions_are_no_classes(tmp_path):
    sizes = {"big.py": CLASS_SIZE, "small.py": CLASS_SIZE - 1, "pack/a.py": CLASS_SIZE - 1, "pack/b.py": 1}
    files = []
    for name, size in sizes.items():
        path = Path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "".join(f"def f{number}(a):\n    b = '{name}'\n    return b\n" for number in range(size)) + "def tiny():\n    return 1\n"
        )
        files.append((name, path))
    source = Functions(Files("here", tuple(files)), packages=True)
    records = list(source.records(Skipped(0)))
    assert {record.label for record in records} == {"big", "pack"}
    assert len(records) == 2 * CLASS_SIZE
    assert records[0] == Record("big.py:1 f0", {"text": "def f0(a):\n    b = 'big.py'\n    return b"}, "big", "big.py f0")
    assert list(source.records(Skipped(0))) == records, "a second reading is the same"


def test_methods_of_one_class_are_held_out_together(library):
    groups = {record.name: record.group for record in Functions(library, packages=True)._placed()}
    assert groups["pack/a.py:31 Thing.method"] == groups["pack/a.py:38 Thing.Part.method"] == "pack/a.py Thing"
    assert groups["pack/a.py:6 one"] == "pack/a.py one"


def test_what_is_no_python_is_counted_in_every_reading(tmp_path):
    (tmp_path / "a.py").write_text("print 'old'\n")
    (tmp_path / "b.py").write_bytes(b"\xff")
    (tmp_path / "c.py").write_text("def f():\n    '''Good.'''\n    return 1\n")
    source = Functions(Files("here", tuple((name, tmp_path / name) for name in ("a.py", "b.py", "c.py"))), packages=False)
    for _ in range(2):
        skipped = Skipped(2)
        assert [record.texts["target"] for record in source.records(skipped)] == ["Good."]
        assert list(skipped.reasons) == ["a.py", "b.py"]


def test_the_digest_depends_on_the_task(library, tmp_path):
    described, placed = Functions(library, packages=False), Functions(library, packages=True)
    digests = {source.digest(StatIndex(tmp_path / "index.json")) for source in (library, described, placed)}
    assert len(digests) == 3


@pytest.mark.slow
def test_the_standard_library_gives_thousands_of_pairs_and_dozens_of_classes():
    pairs = PythonStdlib().open(Needs({"source": ROW, "target": ROW}, packs=False))[""]
    described = list(pairs.records(Skipped(0)))
    assert len(described) > 6000
    assert len({record.texts["source"] for record in described}) == len(described)
    assert len({record.group for record in described}) > 300
    placed = list(PythonStdlib().open(Needs({"text": ROW}, packs=False, label="class"))[""].records(Skipped(0)))
    assert len(placed) > 9000
    assert len({record.label for record in placed}) > 40
    assert {"json", "asyncio", "argparse"} & {str(record.label) for record in placed} == {"asyncio", "argparse"}

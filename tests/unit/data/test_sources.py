"""Documents in files."""

import logging
import os
import time
from pathlib import Path

import pytest

from trainer.data.config import Data, PythonStdlib, Text
from trainer.data.fingerprint import StatIndex
from trainer.data.sources import Files, Skipped
from trainer.errors import Refused
from trainer.protocols import Source
from trainer.types import Needs, Window

PLAIN = Needs({"text": Window(8, 9)})


def open_source(config: Data) -> Source:
    return config.open(PLAIN)[""]


def read(config: Text, limit: int = 0) -> list[tuple[str, str]]:
    return [(record.name, record.texts["text"]) for record in open_source(config).records(Skipped(limit))]


def test_the_standard_library_is_real_text_without_its_tests():
    files = open_source(PythonStdlib())
    assert isinstance(files, Files)
    names = [name for name, _ in files.files]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert not [name for name in names if "/test/" in f"/{name}" or "/tests/" in f"/{name}" or "-packages/" in name]
    assert files.num_bytes() > 5_000_000
    documents = {record.name: record.texts["text"] for record in files.records(Skipped(0))}
    assert documents["bisect.py"].startswith('"""Bisection algorithms."""')


def test_a_folder_a_glob_and_a_file(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.py", ".hidden/d.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert read(Text(path=str(tmp_path))) == [(name, f"text of {name}") for name in ("a.md", "b.txt", "sub/c.py")]
    assert read(Text(path=str(tmp_path / "*.txt"))) == [("b.txt", "text of b.txt")]
    assert read(Text(path=str(tmp_path / "**/*.p*"))) == [("image.png", "text of image.png"), ("sub/c.py", "text of sub/c.py")]
    assert read(Text(path=str(tmp_path / "image.png"))) == [("image.png", "text of image.png")]


def test_documents_may_be_lines_or_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo é\n\n  \nthree\nfour".encode())
    assert [text for _, text in read(Text(path=str(path), document="line"))] == ["one", "two é", "three", "four"]
    assert [text for _, text in read(Text(path=str(path), document="paragraph"))] == ["one\ntwo é", "three\nfour"]
    assert [text for _, text in read(Text(path=str(path), document="file"))] == ["one\r\ntwo é\n\n  \nthree\nfour"]


def test_equal_paragraphs_are_equal_texts_wherever_they_stand_and_however_their_lines_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"twin\nof mine\n\nlast")
    (tmp_path / "b.txt").write_bytes(b"last\r\n\r\ntwin\r\nof mine")
    (tmp_path / "c.txt").write_bytes(b"last\n\n\n twin\n")
    found = [text for _, text in read(Text(path=str(tmp_path), document="paragraph"))]
    assert found == ["twin\nof mine", "last", "last", "twin\nof mine", "last", " twin"]


def test_a_pattern_with_two_ways_to_a_file_reads_it_once(tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "a.txt").write_text("text")
    assert read(Text(path=str(tmp_path / "**" / "**" / "*.txt"))) == [("a.txt", "text")]


def test_blank_documents_are_no_documents(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("")
    assert read(Text(path=str(tmp_path))) == []


@pytest.mark.parametrize("path", ["missing.txt", "*.nothing", "empty"])
def test_no_files_is_refused_with_the_key(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=r"data\.path=.*holds no text"):
        open_source(Text(path=str(tmp_path / path)))


def test_bad_documents_are_counted_named_and_limited(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff line\nalso good\n\xfe\xfe\n")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    config = Text(path=str(tmp_path), document="line")
    skipped = Skipped(3)
    assert [record.texts for record in open_source(config).records(skipped)] == [{"text": "good"}, {"text": "also good"}]
    assert list(skipped.reasons) == ["a.txt:line 2", "a.txt:line 4", "gone.txt"]
    with caplog.at_level(logging.WARNING):
        skipped.log()
    assert "3 bad record(s): 2 not UTF-8, 1 unreadable" in caplog.text
    assert "a.txt:line 2 (not UTF-8: byte 4)" in caplog.text
    with pytest.raises(Refused, match=r"more than data\.max_bad=2 .*a\.txt:line 2"):
        list(open_source(config).records(Skipped(2)))


def age(path: Path, seconds: float = 60) -> None:
    """Makes a file look settled."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_digest_depends_on_names_contents_and_cut(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")

    def digest(document: str = "file") -> str:
        return Text(path=str(tmp_path), document=document).open(PLAIN)[""].digest(StatIndex(tmp_path / "index.json"))

    seen = {digest(), digest("line")}
    (tmp_path / "b.txt").write_text("2wo")
    seen.add(digest())
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    seen.add(digest())
    assert len(seen) == 4
    assert digest() == digest()


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(tmp_path):
    path, index = tmp_path / "a.txt", tmp_path / "index.json"
    path.write_text("one")
    age(path)
    first = StatIndex(index)
    digest = first.digest(path)
    first.save()
    same_stat = path.stat()
    path.write_text("two")
    os.utime(path, ns=(same_stat.st_atime_ns, same_stat.st_mtime_ns))
    assert StatIndex(index).digest(path) == digest, "size and time are the same, so it was not read"
    age(path, 30)
    assert StatIndex(index).digest(path) != digest


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    index = StatIndex(tmp_path / "index.json")
    index.digest(path)
    index.save()
    assert not (tmp_path / "index.json").exists()

"""Records in JSON and CSV files. What becomes of bad ones stands in tests/faults/bad_data.yaml."""

import bz2
import csv
import gzip
import json
import lzma
import random
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest

import trainer.data.csv_files
import trainer.data.json_files
import trainer.data.records
from trainer.config import from_yaml, load, to_yaml
from trainer.data.config import Data
from trainer.data.fingerprint import StatIndex
from trainer.data.record_config import Csv, Jsonl
from trainer.data.records import to_records
from trainer.data.sources import Skipped
from trainer.data.templates import Columns, Template
from trainer.errors import Refused
from trainer.types import Needs, Record, Window

ROW = Window(8, 8)
TEXT, PAIR = Needs({"text": ROW}), Needs({"source": ROW, "target": ROW}, packs=False)
CLASS, CLASSES = Needs({"text": ROW}, packs=False, label="class"), Needs({"text": ROW}, packs=False, label="classes")


def read(config: Data, needs: Needs = TEXT, limit: int = 0) -> list[Record]:
    return list(config.open(needs)[""].records(Skipped(limit)))


def texts(config: Data, limit: int = 0) -> list[str]:
    return [record.texts["text"] for record in read(config, limit=limit)]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_lines_become_records_named_by_file_and_line(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "one", "label": 1, "extra": [1]}, {"text": "two\n", "label": "b"}])
    assert read(Jsonl(path=path), CLASS) == [Record("a.jsonl:1", {"text": "one"}, "1"), Record("a.jsonl:2", {"text": "two\n"}, "b")]


def test_an_objective_gets_the_texts_that_it_reads(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"article": "long", "meta": {"title": "T"}, "doc": 7}])
    config = Jsonl(path=path, text="{meta.title}: {article}", source=r"Summarise:\n{article}", target="meta.title", group="doc")
    assert read(config, PAIR) == [Record("a.jsonl:1", {"source": "Summarise:\nlong", "target": "T"}, group="7")]
    assert read(config) == [Record("a.jsonl:1", {"text": "T: long"}, group="7")]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed_files(tmp_path, suffix, pack):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(b'{"text": "one"}\n{"text": "two"}'))
    (tmp_path / f"b.json{suffix}").write_bytes(pack(b'[{"text": "three"}]'))
    (tmp_path / f"c.tsv{suffix}").write_bytes(pack(b"n\ttext\n1\tfour\n"))
    assert texts(Jsonl(path=str(tmp_path))) == ["one", "two", "three"]
    assert texts(Csv(path=str(tmp_path))) == ["four"]


def test_names_end_in_any_case_and_only_their_end_counts(tmp_path):
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "B.JSON").write_text('[{"text": "two"}]')
    (tmp_path / "C.TSV").write_text("n\ttext\n1\tthree\n")
    (tmp_path / "my.tab.csv").write_text("n,text\n1,four\n")
    (tmp_path / "old.json.jsonl").write_text('[1]\n{"text": "five"}\n')
    assert texts(Jsonl(path=str(tmp_path)), limit=1) == ["one", "two", "five"]
    assert texts(Csv(path=str(tmp_path))) == ["three", "four"]


def test_an_array_that_is_called_lines_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ('[{"text": "one"}]', '\ufeff\n[\n  {"text": "one"},\n  {"text": "two"}\n]\n'):
        path.write_text(content)
        with pytest.raises(Refused, match=r"a\.jsonl begins as one JSON array .*: call it \.json\.$"):
            texts(Jsonl(path=str(path)), limit=9)
        with pytest.raises(Refused, match=r": call it \.json\.$"):
            list(Jsonl(path=str(path)).stream(TEXT)[0].read_on(0))


@pytest.mark.parametrize("inside", ['{"a": 1, "a": 2}', '[{"a": 1, "a": 2}]', '{"b": [0, [{"a": 1, "a": 2}]]}'])
def test_a_repeated_key_is_found_wherever_it_is(tmp_path, inside):
    path, skipped = tmp_path / "a.jsonl", Skipped(1)
    path.write_text(f'{{"text": "one", "meta": {inside}}}\n{{"text": "two", "meta": [{{"a": 1}}, {{"a": 1}}]}}\n')
    assert [record.texts["text"] for record in Jsonl(path=str(path)).open(TEXT)[""].records(skipped)] == ["two"]
    assert skipped.kinds == {"repeated key": 1}


def test_a_folder_gives_the_files_of_its_format_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a/z.ndjson", "c.json", ".hidden.jsonl", "notes.txt"):
        write_lines(tmp_path / name, [{"text": name}])
    (tmp_path / "empty.jsonl").write_text("")
    assert texts(Jsonl(path=str(tmp_path))) == ["a/z.ndjson", "b.jsonl", "c.json"]
    assert texts(Jsonl(path=str(tmp_path / "*.txt"))) == ["notes.txt"]


def test_a_json_file_may_be_one_array_or_lines(tmp_path):
    (tmp_path / "array.json").write_text('\ufeff \n[{"text": "one"},\n {"text": "two"}]')
    write_lines(tmp_path / "lines.json", [{"text": "three"}])
    records = read(Jsonl(path=str(tmp_path)))
    assert [record.name for record in records] == ["array.json:item 1", "array.json:item 2", "lines.json:1"]
    assert [record.texts["text"] for record in records] == ["one", "two", "three"]


def test_an_array_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.data.json_files, "LONGEST_ARRAY", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 100}]))
    with pytest.raises(Refused, match=r"one JSON array of more than .* jq -c"):
        texts(Jsonl(path=str(tmp_path)))


@pytest.mark.parametrize("rows", [0, 3], ids=["at once", "later"])
def test_a_column_that_only_some_records_lack_is_their_fault(tmp_path, rows):
    lines = [{"text": "x"}] * rows + [{"txt": "y"}] * 5 + [{"text": "z"}]
    path = write_lines(tmp_path / "a.jsonl", lines)
    assert len(texts(Jsonl(path=path), limit=5)) == rows + 1
    skipped = Skipped(5)
    list(Jsonl(path=path).open(TEXT)[""].records(skipped))
    assert skipped.kinds == {"without 'text'": 5}
    assert list(skipped.reasons) == [f"a.jsonl:{rows + number}" for number in range(1, 6)]


@pytest.mark.parametrize("limit", [0, 3, 100])
def test_a_column_that_no_record_has_is_a_wrong_setting(tmp_path, limit):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "y", "lable": 1}] * 50)
    with pytest.raises(Refused, match=r"data\.label=label: .*a\.jsonl:1\) has no column label; it has text, lable: did you mean"):
        read(Jsonl(path=path), CLASS, limit)


def test_waiting_for_a_column_takes_linear_time_and_does_not_hold_the_rows():
    class Counted(str):
        hashed = 0

        def __hash__(self) -> int:
            Counted.hashed += 1
            return super().__hash__()

    number, absent = 2000, Counted("label")
    columns = Columns({"text": Template.parse("data.text", "text")}, Template("data.label", absent, (("", absent),), True), "class")
    rows = ((f"a:{place}", {"text": "x" * 10_000 + str(place)}, None) for place in range(number))
    last = ("b:1", {"text": "y", "label": "z"}, None)
    skipped = Skipped(number)
    tracemalloc.start()
    assert [record.name for record in to_records(columns, chain(rows, [last]), skipped, "here")] == ["b:1"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert skipped.kinds == {"without 'label'": number}
    assert Counted.hashed < 30 * number
    assert peak < 4_000_000 < number * 10_000


def test_the_refusal_names_the_columns_of_the_row_that_lacks_one(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1}, {"text": "x", "id": 2}, {"text": "x", "labl": 3}])
    with pytest.raises(Refused, match=r"data\.label=label: .*a\.jsonl:2\) has no column label; it has text, id\."):
        read(Jsonl(path=path), CLASS, 9)


def test_a_group_that_no_record_has_is_a_wrong_setting(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "y", "doc_id": 1}] * 3)
    with pytest.raises(Refused, match=r"data\.group=doc-id: .* did you mean data\.group=doc_id\?"):
        read(Jsonl(path=path, group="doc-id"), limit=9)


def test_the_users_own_held_out_files(tmp_path):
    path = write_lines(tmp_path / "train" / "a.jsonl", [{"text": "one"}])
    held_out = write_lines(tmp_path / "held_out" / "a.jsonl", [{"text": "two"}, {"text": "one"}])
    records = read(Jsonl(path=path, validation_path=held_out))
    assert [(record.name, record.split) for record in records] == [
        ("a.jsonl:1", "train"),
        ("validation/a.jsonl:1", "validation"),
        ("validation/a.jsonl:2", "validation"),
    ]
    assert [record.split for record in read(Jsonl(path=path))] == [None]
    write_lines(tmp_path / "train" / "validation" / "a.jsonl", [{"text": "mine"}])
    names = [record.name for record in read(Jsonl(path=str(tmp_path / "train"), validation_path=held_out))]
    assert names == ["a.jsonl:1", "validation/a.jsonl:1", "validation held out/a.jsonl:1", "validation held out/a.jsonl:2"]
    with pytest.raises(Refused, match=r"data\.path and data\.validation_path both hold .*a\.jsonl"):
        read(Jsonl(path=str(tmp_path), validation_path=held_out))
    with pytest.raises(Refused, match=r"^data\.validation_path=.*gone\.jsonl holds no JSON"):
        read(Jsonl(path=path, validation_path=str(tmp_path / "gone.jsonl")))


def test_the_digest_depends_on_all_that_decides_records(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "one", "label": 1}])
    other = write_lines(tmp_path / "held_out" / "b.jsonl", [{"text": "two", "label": 1}])

    def digest(needs: Needs = TEXT, **settings: object) -> str:
        return Jsonl(path=path, **settings).open(needs)[""].digest(StatIndex(tmp_path / "index.json"))  # type: ignore[arg-type]

    variants = [{}, {"text": "label"}, {"text": "{text}"}, {"group": "label"}, {"validation_path": other}]
    digests = [digest(**variant) for variant in variants] + [digest(CLASS), digest(CLASS, label="text")]
    table = str(tmp_path / "a.csv")
    Path(table).write_text("text;label\na;1\n")
    for settings in ({"delimiter": ";"}, {"delimiter": ";", "quote": None}, {"delimiter": ";", "skip_rows": [2]}):
        digests.append(Csv(path=table, **settings).open(TEXT)[""].digest(StatIndex(tmp_path / "index.json")))
    assert len(set(digests)) == len(digests) == 10
    assert digest() == digests[0], "the same twice"
    assert digest(label_separator=";") == digests[0], "no label is read"
    assert digest(CLASS, label_separator=";") == digest(CLASS), "one label is read"
    assert digest(CLASSES, label_separator=";") != digest(CLASSES)
    write_lines(tmp_path / "a.jsonl", [{"text": "two", "label": 1}])
    assert digest() != digests[0]


def test_the_digest_does_not_depend_on_where_the_files_lie(tmp_path):
    digests = set()
    for folder in ("here", "there"):
        path = write_lines(tmp_path / folder / "a.jsonl", [{"text": "one"}])
        digests.add(Jsonl(path=path).open(TEXT)[""].digest(StatIndex(tmp_path / "index.json")))
    assert len(digests) == 1


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "%s"}\n' % ("x" * 1000) * 20_000)
    tracemalloc.start()
    number = sum(1 for _ in Jsonl(path=str(path)).open(TEXT)[""].records(Skipped(0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 20_000
    assert peak < 2_000_000 < path.stat().st_size


CELLS = ["plain", "two, cells", 'a "quote"', "two\nlines", "two\r\nlines", "é", " spaced ", '"', ",", "tab\there", "{brace}"]


@pytest.mark.parametrize("settings", [{}, {"delimiter": ";"}, {"delimiter": "\\t"}, {"quote": "'"}], ids=str)
def test_csv_comes_back_as_the_standard_library_wrote_it(tmp_path, settings):
    path, draw = tmp_path / "a.csv", random.Random(0)
    rows = [[draw.choice(CELLS), draw.choice(CELLS)] for _ in range(300)]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(
            file, delimiter=settings.get("delimiter", ",").replace("\\t", "\t"), quotechar=settings.get("quote", '"'), lineterminator="\r\n"
        )
        writer.writerows([["source", " target "], *rows])
    records = read(Csv(path=str(path), **settings), PAIR)
    assert [[record.texts["source"], record.texts["target"]] for record in records] == rows
    assert int(records[-1].name.removeprefix("a.csv:")) > len(rows), "named by line, and some records have two"


def test_csv_without_header_with_more_lines_of_it_and_without_quotes(tmp_path):
    path = tmp_path / "a.tab"
    path.write_text('text\tlabel\nstring\tdiscrete\n\tclass\nhe said "no\tneg\n')
    assert read(Csv(path=str(path), skip_rows=[2, 3], quote=None), CLASS) == [Record("a.tab:4", {"text": 'he said "no'}, "neg")]
    config = Csv(path=str(path), columns=["text", "label"], skip_rows=[1, 2, 3], quote=None)
    assert [record.name for record in read(config, CLASS)] == ["a.tab:4"]


@pytest.mark.parametrize("lines_between", [0, 1, 200])
def test_a_quote_without_its_other_half_costs_one_record(tmp_path, monkeypatch, lines_between):
    """Also when the reader gives up at the limit of a record's length, as it does in a large file."""
    monkeypatch.setattr(trainer.data.csv_files, "LONGEST", 4000)
    good = [f"{number},text of {number}" for number in range(lines_between + 200)]
    lines = ["id,text", *good[:lines_between], '7,"never closed', *good[lines_between:]]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    skipped = Skipped(1)
    records = list(Csv(path=str(tmp_path / "a.csv")).open(TEXT)[""].records(skipped))
    assert [record.texts["text"] for record in records] == [f"text of {number}" for number in range(lines_between + 200)]
    assert list(skipped.reasons) == [f"a.csv:{lines_between + 2}"]


def test_a_long_cell_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "word " * 100_000 + "\n")
    assert len(texts(Csv(path=str(tmp_path / "a.csv")))[0]) == 500_000


def test_a_line_that_is_too_long_is_skipped_in_pieces(tmp_path, monkeypatch):
    for module in (trainer.data.records, trainer.data.csv_files):
        monkeypatch.setattr(module, "LONGEST", 1000)
    (tmp_path / "a.csv").write_text("text\nfirst\n" + "x" * 5000 + "\nlast\n")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "last"}')
    for config in (Csv(path=str(tmp_path / "a.csv")), Jsonl(path=str(tmp_path / "a.jsonl"))):
        skipped = Skipped(1)
        assert [record.texts["text"] for record in config.open(TEXT)[""].records(skipped)] == ["first", "last"]
        assert len(skipped.reasons) == 1
        assert next(iter(skipped.kinds)).startswith("longer than")


def test_reasons_are_counted_and_sampled():
    skipped = Skipped(9)
    for number in range(4):
        skipped.add(f"a:{number}", "broken JSON", f"at {number}")
    skipped.add("b:1", "without 'text'")
    assert skipped.summary() == "4 broken JSON, 1 without 'text'"
    assert skipped.sample() == "a:0 (broken JSON: at 0), a:1 (broken JSON: at 1), a:2 (broken JSON: at 2), ..."


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data.skip_rows=[a]", "data.skip_rows=[a] is not a list of whole numbers, such as [1, 2]."),
        ("data.skip_rows=a", "data.skip_rows=a is not a list of whole numbers, such as [1, 2]."),
        ("data.skip_rows=1,2", "is not a list of whole numbers, such as [1, 2]: did you mean data.skip_rows=[1,2]?"),
        ("data.columns=id", "data.columns=id is not a list, such as [a, b]: did you mean data.columns=[id]?"),
        ("data.text=costs ${price}", "In a template of columns, write \\x24 for a dollar before a brace."),
    ],
)
def test_what_a_key_cannot_take_is_said_in_its_terms(typed, said):
    with pytest.raises(Refused) as refused:
        load(["data=csv", "data.path=x.csv", typed], None)
    assert [sentence for sentence in refused.value.problems if said in sentence], refused.value.problems


def test_a_dollar_before_a_brace_goes_through_a_runs_config_and_back():
    config = load(["data=csv", "data.path=x.csv", r"data.text=costs \x24{price}"], None)
    again = from_yaml(to_yaml(config))
    assert isinstance(again.data, Csv)
    assert Template.parse("data.text", again.data.text).text({"price": 5}) == "costs $5"

"""From columns to records."""

import pytest

from trainer.data.templates import BadRecord, Columns, Template
from trainer.errors import Refused

ROW = {"title": "A", "body": "b {x}", "stars": 4, "meta": {"title": "deep", "a.b": 1}, "meta.flat": "flat", "empty": "", "null": None}


def parse(written: str) -> Template:
    return Template.parse("data.text", written)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("title", "A"),
        ("meta.title", "deep"),
        ("meta.flat", "flat"),
        ("{title}", "A"),
        (r"{title}\n{body}", "A\nb {x}"),
        ("{title}\n{body}", "A\nb {x}"),
        (r"\\n{title}\t", "\\nA\t"),
        (r"\x24{stars} \\x24{stars}", r"$4 \x244"),
        ("{{{title}}}", "{A}"),
        ("{stars} of 5: {title}", "4 of 5: A"),
        ("{meta.title}{meta.flat}", "deepflat"),
        ("{title}{empty}{null}", "A"),
    ],
)
def test_a_column_or_a_template(written, text):
    assert parse(written).text(ROW) == text


@pytest.mark.parametrize(
    ("written", "reason", "detail"),
    [
        ("lost", "without 'lost'", ""),
        ("{title} {meta.lost}", "without 'meta.lost'", ""),
        ("null", "without 'null'", "it is null"),
        ("stars", "'stars' is not text", "it is a number"),
        ("meta", "'meta' is not text", "it is an object"),
        ("{title}{meta}", "'meta' is not text", "it is an object"),
        ("empty", "blank 'empty'", ""),
        ("Summarise: {empty}{null}", "blank 'empty' and 'null'", ""),
    ],
)
def test_what_a_row_cannot_give(written, reason, detail):
    with pytest.raises(BadRecord) as caught:
        parse(written).text(ROW)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("text", "reason"), [("a\0b", "NUL character"), ("half \ud83d", "half a character")], ids=["NUL character", "half a character"]
)
def test_text_that_no_tokenizer_reads(text, reason):
    with pytest.raises(BadRecord, match=reason):
        parse("title").text({"title": text})


@pytest.mark.parametrize(
    "written",
    ["", " ", "{", "{title", "title}", "{}", "{ }", "{title!r}", "{title:>9}", "{title[0]}", "{a{b}}", "{{title}}", "{title:{body}}"],
)
def test_a_template_that_is_none_is_refused_with_its_key(written):
    with pytest.raises(Refused, match=r"data\.text"):
        parse(written)


class Trap:
    """An object whose attributes must not be reached."""

    secret = "leaked"

    def __format__(self, form):
        return "formatted"

    def __str__(self):
        return "written"


@pytest.mark.parametrize("written", ["{trap.secret}", "{trap.__class__}", "{trap}", "trap.secret", "{title.__class__.__mro__}"])
def test_templates_reach_columns_and_nothing_else(written):
    with pytest.raises(BadRecord):
        parse(written).text({"trap": Trap(), "title": "A"})


def test_a_column_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Refused, match=r"^data\.text=titel: a\.csv has no column titel; it has id, title: did you mean data\.text=title\?$"):
        parse("titel").check(["id", "title"], "a.csv")
    with pytest.raises(Refused, match=r"did you mean data\.text=titel: \{title\}\?$"):
        parse("titel: {titel}").check(["id", "title"], "a.csv")
    with pytest.raises(Refused, match=r"it has c0, .*, c19 and 5 more\. Set data\.text to one of them"):
        parse("words").check([f"c{number}" for number in range(25)], "a.csv")
    with pytest.raises(Refused, match="2 columns called title"):
        parse("title").check(["title", "title"], "a.csv")
    parse("{title} {meta.deep}").check(["title", "meta"], "a.csv")


def label(kind: str, value: object, separator: str | None = "|") -> object:
    columns = Columns({"text": parse("text")}, Template.parse("data.label", "label"), kind, separator)
    return columns.record("r", {"text": "t", "label": value}, None).label


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("class", " pos ", "pos"),
        ("class", 1, "1"),
        ("class", 1.0, "1"),
        ("class", 0.5, "0.5"),
        ("class", True, "true"),
        ("class", "a|b", "a|b"),
        ("classes", ["b", "a", "b", 3], ["b", "a", "3"]),
        ("classes", "b| a|", ["b", "a"]),
        ("classes", "a", ["a"]),
        ("classes", "", []),
        ("classes", [], []),
        ("classes", 2, ["2"]),
        ("number", 2, 2.0),
        ("number", "-1.5e2", -150.0),
        ("number", 3.4028234663852886e38, 3.4028234663852886e38),
    ],
)
def test_labels(kind, value, expected):
    found = label(kind, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("class", None),
        ("class", ""),
        ("class", float("nan")),
        ("class", ["a"]),
        ("class", {"a": 1}),
        ("class", "x" * 1001),
        ("classes", None),
        ("classes", ["a", None]),
        ("classes", [" "]),
        ("number", "high"),
        ("number", ""),
        ("number", float("nan")),
        ("number", "inf"),
        ("number", True),
        ("number", 10**400),
        ("number", 1e39),
        ("number", "-3.5e38"),
        ("number", [1]),
    ],
)
def test_labels_that_are_none(kind, value):
    with pytest.raises(BadRecord, match="'label'"):
        label(kind, value)


def test_a_label_is_one_without_a_separator():
    assert label("classes", "a|b", separator=None) == ["a|b"]


def test_groups_and_splits():
    columns = Columns({"text": parse("text")}, group=Template.parse("data.group", "doc"))
    groups = [columns.record("r", {"text": "t", "doc": doc}, "train").group for doc in ("one", 2, None, " ")]
    assert groups == ["one", "2", "t", "t"], "a record without a group is one by itself"
    assert columns.record("r", {"text": "t", "doc": 1}, "validation").split == "validation"
    with pytest.raises(BadRecord, match="without 'doc'"):
        columns.record("r", {"text": "t"}, None)
    assert columns.names == ["text", "doc"]

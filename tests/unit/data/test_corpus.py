"""Records of several fields, labels, groups and mixes: nothing is lost, nothing leaks."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.data.given import PAIRS, TEXTS, given, pair, text
from trainer.data.prepare import Corpus, prepare
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import Refused
from trainer.types import Needs, Rows, Window


def decoded(corpus: Corpus, rows: Rows) -> list[str]:
    tokenizer, vocabulary = load_tokenizer(corpus.tokenizer_folder)
    found = []
    for ids, filled in zip(rows.tokens, rows.filled, strict=True):
        assert (ids[0], ids[filled - 1]) == (vocabulary.bos, vocabulary.eos)
        found.append(tokenizer.decode(ids[1 : filled - 1].tolist()))
    return found


def read(corpus: Corpus, split: str) -> list[tuple[str, ...]]:
    """All records of a split, one tuple of texts each."""
    samples = corpus.samples(split)
    if not len(samples):
        return []
    taken = samples.take(np.arange(len(samples)))
    return list(zip(*[decoded(corpus, rows) for rows in taken.rows.values()], strict=True))


def test_every_record_is_in_one_split_with_all_its_fields(tmp_path):
    content = [pair(f"question {number}", f"answer {number * 7}") for number in range(100)]
    corpus = prepare(given(tmp_path, content), PAIRS)
    train, held_out = read(corpus, "train"), read(corpus, "validation")
    assert sorted(train + held_out) == sorted((record.texts["source"], record.texts["target"]) for record in content)
    assert 8 <= len(held_out) <= 35
    assert corpus.counts["train"]["documents"] == len(train)
    assert corpus.counts["validation"]["bytes"] == sum(len(text) for texts in held_out for text in texts)
    files = {path.name for path in corpus.folder.glob("*.tokens")}
    assert files == {f"{split}.{field}.tokens" for split in ("train", "validation") for field in ("source", "target")}


def test_lengths_are_no_part_of_what_is_prepared(tmp_path):
    data = given(tmp_path, [pair(f"question {number}", "answer") for number in range(30)])
    longer = Needs({"source": Window(64, 64), "target": Window(64, 64)}, packs=False)
    assert prepare(data, PAIRS).folder == prepare(data, longer).folder
    assert prepare(data, PAIRS).folder != prepare(data, Needs({"source": Window(64, 65)})).folder


def test_equal_inputs_are_on_one_side_whatever_their_targets_and_sources(tmp_path):
    content = {
        part: [pair(f"question {number % 40}", f"answer {number} of {part}") for number in range(80)] for part in ("first", "second")
    }
    corpus = prepare(given(tmp_path, content, validation_fraction=0.3), PAIRS)
    train, held_out = read(corpus, "train"), read(corpus, "validation")
    assert len(train) + len(held_out) == 160
    assert {source for source, _ in train}.isdisjoint(source for source, _ in held_out)
    assert len({source for source, _ in held_out}) >= 4
    assert corpus.num_leaked == 0


@pytest.mark.parametrize("train_first", [True, False])
def test_a_training_record_whose_input_is_in_the_users_held_out_file_is_dropped(tmp_path, train_first):
    seen = {number: "qx" * 50 if number in (3, 5) else "an answer" for number in range(20)}
    train = [pair(f"question {number}", target, split="train") for number, target in seen.items()]
    held_out = [pair(f"question {number}", "qx" * 50, split="validation") for number in (3, 3, 5, 90)]
    corpus = prepare(given(tmp_path, train + held_out if train_first else held_out + train), PAIRS)
    assert sorted(source for source, _ in read(corpus, "validation")) == ["question 3", "question 3", "question 5", "question 90"]
    assert sorted(source for source, _ in read(corpus, "train")) == sorted(f"question {n}" for n in range(20) if n not in (3, 5))
    assert corpus.num_leaked == 2
    assert "answer" in tokens_of(corpus)
    assert "qx" not in tokens_of(corpus), "the tokenizer learned from what is trained on only"


def tokens_of(corpus: Corpus) -> set[str]:
    tokenizer, _ = load_tokenizer(corpus.tokenizer_folder)
    return {token.lstrip("Ġ") for token in tokenizer.get_vocab()}


def test_a_held_out_file_holds_for_all_sources_of_a_mix(tmp_path):
    content = {
        "own": [pair("shared", "x", split="validation"), *(pair(f"own {number}", "y", split="train") for number in range(9))],
        "more": [pair("shared", "z"), *(pair(f"more {number}", "z") for number in range(40))],
    }
    corpus = prepare(given(tmp_path, content), PAIRS)
    sources = [source for source, _ in read(corpus, "train")]
    assert "shared" not in sources
    held_out = [source for source, _ in read(corpus, "validation")]
    assert "shared" in held_out
    assert sorted({*sources, *held_out}) == sorted({"shared", *(f"own {n}" for n in range(9)), *(f"more {n}" for n in range(40))})


def test_a_group_is_held_out_together_and_its_texts_are_not_trained_on(tmp_path):
    content = [pair(f"question {number}", "answer", group=f"group {number % 10}") for number in range(100)]
    content += [pair(f"question {number}", "again", group=f"other {number}") for number in range(100)]
    corpus = prepare(given(tmp_path, content), PAIRS)
    train, held_out = read(corpus, "train"), read(corpus, "validation")
    assert {source for source, _ in train}.isdisjoint(source for source, _ in held_out)
    first = {int(source.split()[1]) % 10 for source, target in held_out if target == "answer"}
    assert first
    assert {number % 10 in first for number in range(100)} == {True, False}
    assert len([1 for _, target in held_out if target == "answer"]) == 10 * len(first), "whole groups"
    assert len(train) + len(held_out) + corpus.num_leaked == 200
    assert corpus.num_leaked > 0


def test_groups_for_some_records_only_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"second has a group or a split, but the first record of part  has none"):
        prepare(given(tmp_path, [text("first"), text("second", group="x")]), TEXTS)


def labelled(kind: str) -> Needs:
    return replace(TEXTS, label=kind)


def labels_by_text(corpus: Corpus) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "validation"):
        samples = corpus.samples(split)
        if len(samples):
            taken = samples.take(np.arange(len(samples)))
            found |= dict(zip(decoded(corpus, taken.rows["text"]), taken.labels, strict=True))
    return found


def test_classes_are_numbered_by_name_and_those_only_held_out_are_kept(tmp_path):
    content = [text(f"text {number}", label=name, split="train") for number, name in enumerate(["pear", "apple", "pear", "fig"])]
    content.append(text("rare", label="banana", split="validation"))
    corpus = prepare(given(tmp_path, content), labelled("class"))
    assert corpus.labels == ("apple", "banana", "fig", "pear")
    found = labels_by_text(corpus)
    assert {name: corpus.labels[place] for name, place in found.items()} == {record.name: record.label for record in content}
    assert corpus.samples("train").take(np.array([0])).labels.dtype == np.int64


def test_whole_numbers_are_sorted_by_value(tmp_path):
    content = [text(f"text {number}", label=str(number % 12 - 1)) for number in range(60)]
    assert prepare(given(tmp_path, content), labelled("class")).labels == tuple(map(str, range(-1, 11)))
    assert prepare(given(tmp_path, [*content, text("more", label="1.5")]), labelled("class")).labels[:4] == ("-1", "0", "1", "1.5")


def test_any_number_of_classes_become_zeros_and_ones(tmp_path):
    names = ("red", "green", "blue")
    content = [text(f"text {number}", label=[name for bit, name in enumerate(names) if number >> bit & 1]) for number in range(64)]
    corpus = prepare(given(tmp_path, content), labelled("classes"))
    assert corpus.labels == ("blue", "green", "red")
    found = labels_by_text(corpus)
    assert len(found) == 64
    for record in content:
        assert found[record.name].dtype == np.float32
        assert [name for name, has in zip(corpus.labels, found[record.name], strict=True) if has] == sorted(record.label)


def test_more_records_than_one_block_of_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.streams._BLOCK", 7)
    content = [text(f"text {number}", label=[f"{number % 5}", f"{number % 3}"]) for number in range(50)]
    found = labels_by_text(corpus := prepare(given(tmp_path, content), labelled("classes")))
    for record in content:
        assert {name for name, has in zip(corpus.labels, found[record.name], strict=True) if has} == set(record.label)


def test_numbers_stay_numbers(tmp_path):
    content = [text(f"text {number}", label=number / 8) for number in range(40)]
    corpus = prepare(given(tmp_path, content), labelled("number"))
    assert corpus.labels is None
    found = labels_by_text(corpus)
    assert {name: float(value) for name, value in found.items()} == {record.name: record.label for record in content}
    assert corpus.samples("train").take(np.array([0])).labels.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "label", "sentence"),
    [("class", "same", r"all records have the label 'same'.*data\.label"), ("classes", [], r"no record has a label.*data\.label")],
)
def test_nothing_to_tell_apart_is_refused(tmp_path, kind, label, sentence):
    with pytest.raises(Refused, match=sentence):
        prepare(given(tmp_path, [text(f"text {number}", label=label) for number in range(20)]), labelled(kind))


def test_a_mix_has_one_tokenizer_one_numbering_and_one_table_of_classes(tmp_path):
    content = {
        "left": [text(f"apricot {number}", label="b") for number in range(30)],
        "right": [text(f"blueberry {number}", label="a" if number % 2 else "c") for number in range(20)],
    }
    corpus = prepare(given(tmp_path, content), labelled("class"))
    assert {"apricot", "blueberry"} <= tokens_of(corpus)
    assert (corpus.folder / "train.left.text.tokens").exists()
    assert (corpus.folder / "validation.right.labels").exists()
    found = labels_by_text(corpus)
    assert {name: corpus.labels[place] for name, place in found.items()} == {
        record.name: record.label for records in content.values() for record in records
    }
    samples = corpus.samples("train")
    sizes = {part: len(own) for part, own in samples.parts.items()}
    assert list(sizes) == ["left", "right"]
    texts = [name for (name,) in read(corpus, "train")]
    assert all(name.startswith("apricot") for name in texts[: sizes["left"]])
    assert all(name.startswith("blueberry") for name in texts[sizes["left"] :])


def test_a_part_without_training_text_is_refused_by_name(tmp_path):
    with pytest.raises(Refused, match=r"No document is left to train on: of part empty"):
        prepare(given(tmp_path, {"full": [text(f"text {number}") for number in range(20)], "empty": []}), TEXTS)
    unused = prepare(given(tmp_path, {"full": [text(f"text {number}") for number in range(20)], "unused": []}), TEXTS)
    assert [len(part) > 0 for part in unused.samples("train").parts.values()] == [True, False]


def test_bad_records_are_counted_by_part_and_the_limit_is_one_for_each(tmp_path):
    content = {
        part: [*(text(f"{part} {number}") for number in range(20)), text("BAD"), replace(text("half \ud800"), name="half")]
        for part in ("a", "b")
    }
    corpus = prepare(given(tmp_path, content), TEXTS)
    assert corpus.num_bad == 4
    assert corpus.bad == {"a": 2, "b": 2}
    assert corpus.bad_kinds == {"bad": 2, "half a character": 2}
    content["b"].append(replace(text("BAD"), name="another"))
    for before in (3, 2):  # the second finds what the first has prepared, and is refused as if it had prepared it itself
        data = given(tmp_path, content, max_bad=before)
        if before == 3:
            assert prepare(data, TEXTS).bad == {"a": 2, "b": 3}
        else:
            with pytest.raises(Refused, match=r"part b has 3 bad records, more than data\.max_bad=2"):
                prepare(data, TEXTS)
    with pytest.raises(Refused, match=r"more than data\.max_bad=2 bad records"):
        prepare(given(tmp_path, content, max_bad=2, cache_dir=str(tmp_path / "fresh")), TEXTS)


def test_a_split_is_opened_once(tmp_path, monkeypatch):
    corpus = prepare(given(tmp_path, [text(f"text {number}") for number in range(20)]), TEXTS)
    train = corpus.samples("train")
    monkeypatch.setattr("trainer.data.prepare.open_stream", None)
    assert corpus.samples("train") is train
    assert corpus.samples("validation") is corpus.samples("validation")


def test_a_column_of_texts_is_no_column_of_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.streams.MOST_CLASSES", 10)
    content = [text(f"text {number}", label=f"label {number}" + "x" * 99) for number in range(20)]
    with pytest.raises(Refused, match=r"more than 10 different labels, the newest 'label 1\dx+\.\.\.': .* with data\.label, or"):
        prepare(given(tmp_path, content), labelled("class"))
    assert len(prepare(given(tmp_path, content[:10]), labelled("class")).labels) == 10


def test_records_longer_than_their_row(tmp_path):
    content = [pair("word " * number, "out " * (40 - number)) for number in range(1, 40)]
    data = given(tmp_path, content, validation_fraction=0.0)
    whole = Needs({"source": Window(400, 400), "target": Window(400, 400)}, packs=False)
    assert prepare(data, whole).samples("train").num_too_long == 0

    cut = prepare(data, PAIRS).samples("train")
    assert len(cut) == 39
    assert 0 < cut.num_too_long < 39
    kept = prepare(replace(data, too_long="skip"), PAIRS)
    assert len(kept.samples("train")) == 39 - cut.num_too_long
    assert kept.samples("train").num_too_long == cut.num_too_long
    for source, target in read(kept, "train"):
        assert source.count("word") + target.count("out") == 40, "what is kept is whole, and its fields belong together"
    with pytest.raises(
        Refused, match=rf"{cut.num_too_long} of 39 train records .* the longest source .* the longest target .*data\.target_length"
    ):
        prepare(replace(data, too_long="refuse"), PAIRS)
    with pytest.raises(Refused, match=r"data\.too_long=skip leaves no record .* all 39 .* \(number 1, 2, 3, \.\.\.\)"):
        prepare(replace(data, too_long="skip"), Needs({"source": Window(2, 2), "target": Window(2, 2)}, packs=False))


def test_packing_can_be_switched_off_and_every_record_is_then_a_row(tmp_path):
    content = [text(f"text number {number}") for number in range(60)]
    needs = Needs({"text": Window(32, 33)})
    assert prepare(given(tmp_path, content), needs).packed
    corpus = prepare(given(tmp_path, content, packing=False), needs)
    assert not corpus.packed
    assert sorted(read(corpus, "train") + read(corpus, "validation")) == sorted((record.name,) for record in content)
    packed = prepare(given(tmp_path, content, packing=True), needs)
    assert packed.folder == corpus.folder
    with pytest.raises(AssertionError):
        prepare(given(tmp_path, content, packing=True), TEXTS)


def test_text_without_a_single_token_is_left_out_and_counted(tmp_path):
    """A tokenizer without frame that drops what it does not know."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.normalizer = normalizers.Replace("x", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    content = [pair("a b", "b"), pair("a a", "xx"), pair("x", "a"), pair("b b", "b a")]
    data = given(tmp_path, content, validation_fraction=0.0)
    data.tokenizer.path = str(tmp_path / "tokenizer")
    corpus = prepare(data, PAIRS)
    assert corpus.num_empty == 2
    taken = corpus.samples("train").take(np.arange(2))
    assert [row[:filled].tolist() for row, filled in zip(taken.rows["source"].tokens, taken.rows["source"].filled, strict=True)] == [
        [0, 1],
        [1, 1],
    ]
    assert [row[:filled].tolist() for row, filled in zip(taken.rows["target"].tokens, taken.rows["target"].filled, strict=True)] == [
        [1],
        [1, 0],
    ]

"""What is written is what is read."""

import numpy as np
import pytest

from trainer.data.streams import LabelTable, LabelWriter, StreamWriter, open_labels, open_stream, stem
from trainer.errors import Refused
from trainer.types import Vocabulary


def vocabulary(size: int = 100, bos: int | None = None, eos: int | None = None) -> Vocabulary:
    return Vocabulary(size=size, bos=bos, eos=eos, pad=None, sha256="")


@pytest.mark.parametrize(("bos", "eos"), [(None, None), (90, None), (None, 91), (90, 91)])
def test_documents_come_back_in_their_frame(tmp_path, bos, eos):
    documents = [[1, 2, 3], [], [4], [5, 6], [7]]
    writer = StreamWriter(tmp_path, "train.text", vocabulary(bos=bos, eos=eos))
    for part in (documents[:2], [], documents[2:]):
        writer.append(part)
    writer.close()
    tokens, starts = open_stream(tmp_path, "train.text", 100)
    frame = [[*([bos] if bos else []), *document, *([eos] if eos else [])] for document in documents]
    assert [found.tolist() for found in np.split(tokens, starts[1:])] == frame
    assert writer.num_tokens == tokens.size
    assert (tokens.dtype, starts.dtype) == (np.uint16, np.int64)


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path):
    writer = StreamWriter(tmp_path, "train", vocabulary(70_000, eos=69_999))
    writer.append([[66_000]])
    writer.close()
    tokens, starts = open_stream(tmp_path, "train", 70_000)
    assert tokens.tolist() == [66_000, 69_999]
    assert starts.tolist() == [0]


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(Refused, match="gave token id 100 but its vocabulary ends at 99"):
        StreamWriter(tmp_path, "train", vocabulary()).append([[1], [100, 2]])


def test_an_empty_stream_can_be_read(tmp_path):
    StreamWriter(tmp_path, "validation", vocabulary()).close()
    tokens, starts = open_stream(tmp_path, "validation", 100)
    assert (tokens.size, starts.size) == (0, 0)


def test_two_splits_share_one_table_of_classes(tmp_path):
    table = LabelTable("class")
    writers = {split: LabelWriter(tmp_path / split, table) for split in ("train", "validation")}
    for split, labels in {"train": ["b", "d", "b"], "validation": ["a", "b", "c"]}.items():
        for label in labels:
            writers[split].append(label)
    for writer in writers.values():
        writer.close()
    assert table.names == ("a", "b", "c", "d")
    assert open_labels(tmp_path / "train", "class", 4).tolist() == [1, 3, 1]
    assert open_labels(tmp_path / "validation", "class", 4).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["10", "9", "-2", "+1"], ("-2", "+1", "9", "10")), (["10", "9", "x"], ("10", "9", "x")), (["1.5", "10", "2"], ("1.5", "10", "2"))],
)
def test_only_whole_numbers_are_sorted_by_value(names, expected):
    table = LabelTable("class")
    for name in names:
        table.number(name)
    assert table.names == expected


def test_more_different_labels_than_classes_can_be():
    table = LabelTable("classes", "data.parts.a.label and data.parts.b.label")
    for number in range(1 << 16):
        table.number(f"label {number}")
    assert table.number("label 7") == 7
    with pytest.raises(
        Refused, match=r"more than 65,536 different labels, the newest 'one more': .* with data\.parts\.a\.label and data\.parts\.b"
    ):
        table.number("one more")


def test_a_class_named_twice_counts_once_and_none_is_a_row_of_zeros(tmp_path):
    table = LabelTable("classes")
    writer = LabelWriter(tmp_path / "labels", table)
    for label in (["b", "a", "b"], [], ["c"]):
        writer.append(label)
    writer.close()
    assert open_labels(tmp_path / "labels", "classes", 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_labels_of_an_empty_split(tmp_path):
    for kind, shape in (("class", (0,)), ("classes", (0, 2)), ("number", (0,))):
        table = LabelTable(kind)
        if kind != "number":
            table.number("a"), table.number("b")
        LabelWriter(tmp_path / kind, table).close()
        assert open_labels(tmp_path / kind, kind, 2).shape == shape


def test_the_only_source_has_no_name_in_its_files():
    assert stem("train", "") == "train"
    assert stem("train", "finance") == "train.finance"

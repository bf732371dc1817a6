"""Shards: every file is read on from any place, every row goes to one rank, and sets of the hub are read likewise."""

import bz2
import gzip
import importlib.util
import json
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.unit.data.streamed import PADDED, write_files
from trainer.data import json_files
from trainer.data.record_config import Csv, Hub, Jsonl, Parquet
from trainer.data.shards import Dealer
from trainer.data.sources import Skipped
from trainer.data.templates import BadRecord
from trainer.errors import Refused, TrainingFailed


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


JSON_LINES = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}\n{broken\n   \n[1]\n{"text": "caf\xc3\xa9"}\n\xff\xfe\n{"text": "c"}'


def readers(folder: Path, name: str):
    """The shards of a corpus of one file of each format, with broken records where it can have them."""
    path = folder / name
    if name == "a.parquet":
        texts = pa.array([f"row {number}".encode() if number % 7 else b"\xff" for number in range(1000)], pa.binary())
        parquet.write_table(pa.table({"text": texts.view(pa.string())}), path, row_group_size=300)
    elif name == "a.csv":
        path.write_text('text,other\na,1\n"b\nmore",2\ntoo,many,cells\n\nc,3\n')
    elif name == "a.json":
        path.write_text(json.dumps([{"text": "a"}, 7, {"text": "b"}, {"text": "c"}]))
    else:
        packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(JSON_LINES))
    config = {".parquet": Parquet, ".csv": Csv}.get(path.suffix, Jsonl)(path=str(path), streaming=True)
    return config, config.stream(PADDED)[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.json", "a.csv", "a.parquet"])
def test_a_file_is_read_on_from_behind_every_row(tmp_path, name):
    _, shards = readers(tmp_path, name)
    rows = list(shards.read_on(0))
    assert len(rows) > 3 and any(isinstance(row.row, BadRecord) for row in rows)
    for number, row in enumerate(rows[:320]):
        place = json.loads(json.dumps(row.place))
        rest = list(islice(shards.read_on(0, place), 5))
        assert [(other.place, other.name, str(other.row)) for other in rest] == [
            (other.place, other.name, str(other.row)) for other in rows[number + 1 : number + 6]
        ]
    assert list(shards.read_on(0, rows[-1].place)) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_streamed_rows_are_those_that_preparing_reads(tmp_path, name):
    config, shards = readers(tmp_path, name)
    skipped = Skipped(1000)
    records = list(config.open(PADDED)[""].records(skipped))
    rows = list(shards.read_on(0))
    good = [(row.name, row.row["text"]) for row in rows if not isinstance(row.row, BadRecord)]
    assert good == [(record.name, record.texts["text"]) for record in records]
    bad = {row.name: f"{row.row.reason}: {row.row.detail}".removesuffix(": ") for row in rows if isinstance(row.row, BadRecord)}
    assert bad == skipped.reasons and bad


def test_a_file_of_nothing_but_broken_rows_does_not_fill_the_memory(tmp_path):
    (tmp_path / "a.csv").write_text("text,other\n" + "only one cell\n" * 100_001)
    with pytest.raises(Refused, match=r"More than 100,000 bad records stand in a row up to a\.csv:100002 \(too few cells\)"):
        list(Csv(path=str(tmp_path / "a.csv")).stream(PADDED)[0].read_on(0))


def test_an_uncompressed_file_is_not_read_again_up_to_the_place(tmp_path, monkeypatch):
    shards = Jsonl(path=str(write_files(tmp_path / "set", [1000]))).stream(PADDED)[0]
    place = list(shards.read_on(0))[989].place
    parsed, parse = [], json_files._parse
    monkeypatch.setattr(json_files, "_parse", lambda line: parsed.append(line) or parse(line))
    assert [row.row["n"] for row in shards.read_on(0, place)] == list(range(990, 1000))
    assert len(parsed) == 10


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [[50], [10, 1, 30], [9] * 4, [0, 5, 6, 7, 3]])
def test_ranks_share_out_every_row_once_an_epoch(tmp_path, sizes, size):
    bad = (2, 5)
    shards = Jsonl(path=str(write_files(tmp_path / "set", sizes, bad))).stream(PADDED)[0]
    for epoch in range(2):
        seen = []
        for rank in range(size):
            dealer = Dealer(shards, rank, size, seed=1)
            rows = list(dealer.rows(epoch))
            seen += [row.name for _, row in rows]
            for place, row in rows[::4]:
                rest = list(dealer.rows(epoch, json.loads(json.dumps(place))))
                assert [other.name for _, other in rest] == [other.name for _, other in rows][
                    [r.name for _, r in rows].index(row.name) + 1 :
                ]
        assert len(seen) == len(set(seen)) == sum(sizes)


def test_the_order_of_shards_differs_by_epoch_and_seed_and_is_their_own_without_a_shuffle(tmp_path):
    shards = Jsonl(path=str(write_files(tmp_path / "set", [1] * 12))).stream(PADDED)[0]

    def order(seed, epoch):
        return [row.name for _, row in Dealer(shards, 0, 1, seed).rows(epoch)]

    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(1, 0) == order(1, 0)
    assert order(None, 0) == order(None, 1) == sorted(order(1, 0))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_data_set_of_the_hub_is_read_from_any_place(tmp_path, form):
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["neg", "pos"])})
    for shard in range(3):
        rows = {"text": [f"text {number}" for number in range(shard * 300, shard * 300 + 300)], "kind": [0, 1, 1] * 100}
        data = datasets.Dataset.from_dict(rows, features=features)
        if form == "jsonl":
            data.cast_column("kind", datasets.Value("string")).to_json(tmp_path / "set" / f"train-{shard}.jsonl")
        else:
            data.to_parquet(tmp_path / "set" / f"train-{shard}.parquet", batch_size=100)
    config = Hub(name=str(tmp_path / "set"), text="{kind} {text}", streaming=True)
    shards = config.stream(PADDED)[0]
    assert shards.num_shards == 3
    rows = list(shards.read_on(1))
    assert [row.row["text"] for row in rows] == [f"text {number}" for number in range(300, 600)]
    if form == "parquet":
        assert [row.row["kind"] for row in rows[:3]] == ["neg", "pos", "pos"]
    seen, place = [], None
    for count in (1, 98, 1, 51, 100, 7, 100):  # places of places of places
        for row in islice(shards.read_on(1, place), count):
            seen.append(row)
            place = json.loads(json.dumps(row.place))
    assert [row[1:] for row in seen] == [row[1:] for row in rows]


def test_what_a_hub_set_cannot_give_in_the_middle_is_one_sentence(tmp_path):
    folder = write_files(tmp_path / "set", [300, 300])
    shards = Hub(name=str(folder), streaming=True).stream(PADDED)[0]
    (folder / "part-1.jsonl").write_text("{broken\n")
    assert len(list(shards.read_on(0))) == 300
    with pytest.raises(TrainingFailed, match=r"cannot be read on behind row 0 of shard 1 of train \(.*Run the same command again"):
        list(shards.read_on(1))


def test_a_set_without_its_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"data=hub needs the package datasets, .* pip install 'isotrain\[data\]'"):
        Hub(name=str(tmp_path), streaming=True).stream(PADDED)

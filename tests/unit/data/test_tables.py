"""Parquet files and data sets of the hub. What becomes of bad ones stands in tests/faults/bad_data.yaml."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

import trainer
from trainer.data.config import Data
from trainer.data.fingerprint import StatIndex
from trainer.data.hub_shards import HubShards
from trainer.data.record_config import Hub, Parquet
from trainer.data.sources import Skipped
from trainer.data.templates import Columns, Template
from trainer.errors import Refused
from trainer.types import Needs, Record, Window

ROW = Window(8, 8)
TEXT, PAIR = Needs({"text": ROW}), Needs({"source": ROW, "target": ROW}, packs=False)
CLASS, NUMBER = Needs({"text": ROW}, packs=False, label="class"), Needs({"text": ROW}, packs=False, label="number")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Arrow files that ``datasets`` writes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def read(config: Data, needs: Needs = TEXT, limit: int = 0) -> list[Record]:
    return list(config.open(needs)[""].records(Skipped(limit)))


def test_parquet_rows_are_numbered_across_row_groups(tmp_path):
    table = pa.table({"text": [f"text {number}" for number in range(1000)], "label": list(range(1000)), "unread": [b"\xff"] * 1000})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    records = read(Parquet(path=str(tmp_path)), NUMBER)
    assert records == [Record(f"a.parquet:row {number + 1}", {"text": f"text {number}"}, float(number)) for number in range(1000)]


def test_nested_and_dotted_columns_and_templates(tmp_path):
    rows = [{"meta": {"title": "T", "long": 1}, "meta.flat": "F", "tags": ["a", "b"], "score": 0.5, "day": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    config = Parquet(path=str(tmp_path), source="{meta.title} {score}{day}", target="meta.flat", label="tags")
    assert read(config, PAIR)[0].texts == {"source": "T 0.5", "target": "F"}
    config.text = "meta.title"
    assert read(config, Needs({"text": ROW}, packs=False, label="classes"))[0].label == ["a", "b"]


def test_only_the_needed_columns_are_read(tmp_path, monkeypatch):
    parquet.write_table(pa.table({"text": ["a"], "image": [b"x"], "label": ["c"]}), tmp_path / "a.parquet")
    asked = []
    original = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda self, size, columns: asked.append(columns) or original(self, size, columns=columns)
    )
    assert read(Parquet(path=str(tmp_path)), CLASS)[0].label == "c"
    assert asked == [["text", "label"]]


def test_a_file_that_breaks_off_inside_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [os.urandom(50).hex() for _ in range(5000)]}), path, row_group_size=500)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40_000] = bytes(40_000)
    path.write_bytes(raw)
    with pytest.raises(Refused, match=r"a\.parquet cannot be read to its end"):
        read(Parquet(path=str(path)), limit=10_000)


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.duration("s"), pa.date64()], ids=str)
def test_a_time_out_of_range_costs_its_row(tmp_path, kind):
    times = pa.array([1, 1 << 62, None], pa.int64()).view(kind)
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "when": times}), tmp_path / "a.parquet")
    skipped = Skipped(2)
    records = list(Parquet(path=str(tmp_path), text="{text}{when}").open(TEXT)[""].records(skipped))
    assert [record.texts["text"] for record in records] == ["c"]
    assert list(skipped.reasons) == ["a.parquet:row 1", "a.parquet:row 2"]
    assert skipped.kinds["a value that cannot be read"] == 1


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """A data set as the hub has it: a split per file, numbered classes with names."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    for split, labels in (("train", [0, 1, -1, 1]), ("test", [1])):
        rows = {"text": [f"{split} {number}" for number in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "data" / f"{split}-0.parquet")
    return tmp_path / "set"


def test_a_data_set_of_the_hub(hub_folder):
    skipped = Skipped(1)
    records = list(Hub(name=str(hub_folder)).open(CLASS)[""].records(skipped))
    assert records == [
        Record("train:row 1", {"text": "train 0"}, "neg"),
        Record("train:row 2", {"text": "train 1"}, "pos"),
        Record("train:row 4", {"text": "train 3"}, "pos"),
    ]
    assert skipped.reasons == {"train:row 3": "without 'label': it is null"}


def test_a_split_of_the_hub_may_be_held_out(hub_folder):
    records = read(Hub(name=str(hub_folder), validation_split="test"))
    assert [(record.texts["text"], record.split) for record in records][-2:] == [("train 3", "train"), ("test 0", "validation")]


def test_the_digest_of_a_data_set_follows_its_rows_and_columns(hub_folder, tmp_path):
    def digest(needs: Needs = TEXT, **settings: str) -> str:
        return Hub(name=str(hub_folder), **settings).open(needs)[""].digest(StatIndex(tmp_path / "index.json"))  # type: ignore[arg-type]

    digests = [digest(), digest(CLASS), digest(split="test"), digest(validation_split="test")]
    parquet.write_table(pa.table({"text": ["another"]}), hub_folder / "data" / "train-0.parquet")
    (hub_folder / "data" / "test-0.parquet").unlink()
    digests.append(digest())
    assert len(set(digests)) == 5
    assert Hub(name=str(hub_folder)).open(TEXT)[""].num_bytes() > 0


def test_a_streamed_local_set_is_digested_by_content_and_known_by_its_files_below_the_folder(tmp_path):
    def write(folder: str, first: str, second: str = "same") -> Path:
        for name, text in (("train/a.jsonl", first), ("validation/a.jsonl", second)):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(json.dumps({"text": text}) + "\n")
        return tmp_path / folder

    def held_out(folder: Path, **settings: str):
        return Hub(name=str(folder), streaming=True, **{"validation_split": "validation"} | settings).stream(TEXT)  # type: ignore[arg-type]

    def digest(folder: Path, place: int = 1) -> str:
        return held_out(folder)[place].digest(StatIndex(tmp_path / "index.json"))

    here, there = write("here", "one", "abc"), write("there", "one", "abc")
    assert held_out(here)[0].settings()[-1] == [["train/a.jsonl", 16]]
    before = digest(here)
    assert digest(there) == before, "wherever the folder lies"
    write("here", "one", "xyz")
    assert digest(here) != before, "the same size, another content"
    (there / "train" / "a.jsonl").rename(there / "train" / "b.jsonl")
    assert held_out(there)[0].settings() != held_out(here)[0].settings()


def test_a_streamed_set_without_named_files_is_known_by_what_was_asked_for():
    columns = Columns({"text": Template.parse("data.text", "text")})
    asked = [(None, None), ("big", None), (None, "v1")]
    sets = [HubShards("hub data set a/b", "train", None, {}, (), chosen, columns) for chosen in asked]
    assert len({json.dumps(shards.settings()) for shards in sets}) == 3


@pytest.mark.parametrize("key", ["name", "split", "validation_split"])
def test_a_blank_name_is_said_before_anything_is_opened(key):
    config = Hub(**{"name": "a/b"} | {key: " "})
    assert [sentence for sentence in config.problems() if sentence.startswith(f"data.{key} is empty: name one")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "tarin"}, r"data\.split=tarin: .* has the splits .*train.*: did you mean data\.split=train\?"),
        ({"validation_split": "dev"}, r"data\.validation_split=dev: .* has the splits"),
        ({"config": "big"}, r"data\.config=big cannot be read \(BuilderConfig"),
        ({"text": "txt"}, r"data\.text=txt: .* has no column txt; it has text, label: did you mean data\.text=text\?"),
    ],
)
def test_what_a_data_set_has_not_is_refused(hub_folder, settings, said):
    with pytest.raises(Refused, match=said):
        read(Hub(name=str(hub_folder), **settings))


def test_without_network_one_sentence_says_what_to_do(tmp_path):
    script = "import sys\nfrom trainer import cli\nsys.exit(cli.main(['prepare', 'data=hub', 'data.name=nobody/nothing', *sys.argv[1:]]))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(trainer.__file__).parents[1])}
    command = [sys.executable, "-c", script, f"data.cache_dir={tmp_path}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "refused, 1 problem" in result.stderr
    assert "data.name=nobody/nothing cannot be read" in result.stderr
    assert "Fetch it once where there is a network" in result.stderr


def test_without_the_extra_one_sentence_names_it(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_text("")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("datasets", "pyarrow") else find(name))
    with pytest.raises(Refused, match=r"data=parquet needs the package pyarrow, .*: pip install 'isotrain\[data\]'\.$"):
        read(Parquet(path=str(tmp_path)))
    with pytest.raises(Refused, match=r"data=hub needs the package datasets, .*: pip install 'isotrain\[data\]'\.$"):
        read(Hub(name="a/b"))


def test_no_code_of_a_data_set_is_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "train.jsonl").write_text(json.dumps({"text": "data beside the code"}) + "\n")
    with pytest.raises(Refused, match=r"cannot be read \(.*scripts are no longer supported"):
        read(Hub(name=str(folder)))
    assert not (tmp_path / "ran").exists()

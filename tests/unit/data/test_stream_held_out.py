"""What is held out beside a set that is read while training: what cannot be used of it is refused before anything begins."""

import json

import datasets
import pytest

from tests.unit.data.streamed import PADDED, streamed, write_files
from trainer.data.config import TokenizerConfig
from trainer.data.record_config import Hub
from trainer.data.streaming import open_streamed
from trainer.data.tokenizer import train_tokenizer
from trainer.errors import Refused, TrainingFailed


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer([f"text {number} of file" for number in range(100)], 300, folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("lines", "changes", "words"),
    [
        ([], {}, r"data\.validation_path=\S+held\.jsonl holds no records: nothing is in it"),
        (
            ["{broken", '{"text": " "}'],
            {"max_bad": 2},
            r"data\.validation_path=\S+held\.jsonl holds no record to measure with: 2 are bad .*validation_fraction=0",
        ),
        (["{broken", '{"text": "file"}'], {"max_bad": 0}, r"held\.jsonl has 1 bad records, more than data\.max_bad=0"),
        (
            ['{"text": "%s"}' % ("file " * 40)],
            {"too_long": "skip"},
            r"data\.too_long=skip leaves no record of data\.validation_path=\S+held\.jsonl: all 1 .*\(number 1\)",
        ),
        (
            ['{"text": "file"}', '{"text": "%s"}' % ("file " * 40)],
            {"too_long": "refuse"},
            r"1 of 2 held-out records are longer than their row \(number 2\)",
        ),
    ],
    ids=["empty", "all bad", "too many bad", "all too long", "too long"],
)
def test_held_out_records_that_cannot_be_used_are_refused_in_their_own_words(tmp_path, tokenizer, lines, changes, words):
    path, held = write_files(tmp_path / "set", [20]), tmp_path / "held.jsonl"
    held.write_text("\n".join(lines) + "\n")
    config = streamed(tmp_path, tokenizer, path, validation_fraction=0.01, validation_path=str(held), **changes)
    if "max_bad" in changes and config.max_bad == 0:  # prepared by a run with another limit
        open_streamed(streamed(tmp_path, tokenizer, path, validation_fraction=0.01, validation_path=str(held), max_bad=1), PADDED)
    with pytest.raises(Refused, match=words):
        open_streamed(config, PADDED)


def test_a_hub_that_fails_while_held_out_records_are_prepared_refuses_the_run(tmp_path, tokenizer, monkeypatch):
    path = write_files(tmp_path / "set", [40])
    (path / "test.jsonl").write_text(json.dumps({"text": "file"}) + "\n")
    (path / "part-0.jsonl").rename(path / "train.jsonl")
    config = Hub(
        name=str(path),
        validation_split="test",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
        tokenizer=TokenizerConfig(path=tokenizer),
    )

    def lost(self, skipped):
        raise TrainingFailed("hub data set X cannot be read on.")
        yield

    monkeypatch.setattr("trainer.data.hub_shards.HubShards.records", lost)
    with pytest.raises(Refused) as refusal:
        open_streamed(config, PADDED, quiet=True)
    assert refusal.value.problems == ["hub data set X cannot be read on."]


def test_what_is_kept_for_a_stream_has_the_number_of_its_format(tmp_path, tokenizer, monkeypatch):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [4]))
    before = open_streamed(config, PADDED).folder
    assert open_streamed(config, PADDED).folder == before
    monkeypatch.setattr("trainer.data.streaming.FORMAT", 999)
    assert open_streamed(config, PADDED).folder != before

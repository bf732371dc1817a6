"""Curves outside of run.dir: the points of metrics.jsonl, one run per job, going on where a session ended; and nothing lost where they cannot be kept."""

import json
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from trainer.callbacks.config import TrackConfig
from trainer.callbacks.tracking import trackers
from trainer.callbacks.wandb import WeightsAndBiases
from trainer.testing import train_curve

SECRET = "hunter2-" * 5


def records(file):
    """The records of a W&B file: a log of LevelDB's format, after a header of seven bytes."""
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(file):
    """Its id, and the loss by step."""
    run, losses = None, {}
    for record in records(file):
        if record.WhichOneof("record_type") == "run":
            run = record.run.run_id
        elif record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in items:
                losses[items["_step"]] = items["train/loss"]
    return run, losses


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_resumed_run_goes_on_in_the_same_curves(tiny, tmp_path, offline):
    """From a checkpoint that lies before the last point that was sent."""
    arguments = [*tiny, "track.tensorboard=true", "track.wandb=true", "train.log_every=2", "checkpoint.every=4", "train.steps=12"]
    train_curve([*arguments, "train.stop_after=6"], tmp_path)
    for folder in sorted((tmp_path / "checkpoints").glob("step-6")):
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
    expected = {line["step"]: line["loss"] for line in train_curve(arguments, tmp_path) if line["step"] % 2 == 0}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {event.step: event.value for event in board.Scalars("train/loss")} == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in board.Scalars("train/loss")] == sorted(expected), "no point twice"
    assert {"train/grad_norm", "train/lr", "train/tokens_per_second"} <= {*board.Tags()["scalars"]}
    sessions = [history(file) for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert len(sessions) == 2 and len({run for run, _ in sessions}) == 1
    assert sessions[0][1] | sessions[1][1] == expected


def test_phases_are_parts_of_the_steps(tiny, tmp_path):
    (*_, last) = train_curve([*tiny, "train.log_every=10"], tmp_path)
    spent = sum(last["seconds"].values())
    assert {*last["seconds"]} == {"data", "forward_backward", "optimizer"} and min(last["seconds"].values()) > 0
    targets = sum(json.loads(line)["num_targets"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[10:20]) / 10
    assert 0 < spent * last["tokens_per_second"] / targets <= 1 + 1e-6, "parts of the interval, none counted twice"


def test_secrets_stay_where_they_are(tiny, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    train_curve([*tiny, "track.tensorboard=true", "track.wandb=true", "train.steps=2", "optimizer.warmup_steps=1"], tmp_path)
    files = [file for name in ("wandb", "tensorboard") for file in (tmp_path / name).rglob("*") if file.is_file()]
    assert len(files) > 2 and not any(SECRET.encode() in file.read_bytes() for file in files)


def test_a_folder_in_the_way_costs_a_sentence_and_changes_nothing(tiny, tmp_path):
    short = [*tiny, "train.steps=2", "optimizer.warmup_steps=1"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").touch()
    curve, plain = train_curve([*short, "track.tensorboard=true"], tmp_path / "run"), train_curve(short, tmp_path / "plain")
    assert [(line["loss"], line["grad_norm"]) for line in curve] == [(line["loss"], line["grad_norm"]) for line in plain]
    said = []
    (callback,) = trackers(TrackConfig(tensorboard=True), tmp_path / "run", 0, "{}", said.append)
    callback.on_end()
    assert len(said) == 1 and said[0].startswith("TensorBoard is left out from now on; training goes on")


@pytest.mark.parametrize("key", ["short", pytest.param("x" * 40, marks=pytest.mark.slow)])
def test_without_a_way_to_the_service_the_run_is_kept(tmp_path, monkeypatch, key):
    """A key that cannot be one, and a network that is down."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = []
    tracker = WeightsAndBiases(TrackConfig(wandb=True), tmp_path, {"train": {"steps": 2}}, said.append)
    tracker.open()
    tracker.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert len(said) == 1 and said[0].startswith("W&B cannot be reached (") and str(file.parent) in said[0]
    assert history(file)[0] == (tmp_path / "wandb" / "id").read_text().strip()

"""What a run leaves to be looked at: texts that are the same however often it was stopped, and a report at each end."""

import json

import pytest

from tests.unit.report.runs import Page
from trainer.testing import last_wins, train_curve

OFTEN = ["train.steps=5", "train.evaluate_every=2", "train.evaluate_samples=4", "train.log_every=2", "sample.every_evaluation=true"]


def texts(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "sample"]


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "tensor", "pipeline", "zero1", "zero2", "zero3"))],
)
def test_texts_and_curves_do_not_depend_on_how_often_a_run_was_stopped(tiny, tmp_path, strategy):
    """Stopped between two evaluations, and taken up again from a checkpoint before the last of them."""
    ours = last_wins([*tiny, *OFTEN, f"strategy={strategy}", "train.micro_batch=4"])
    whole = train_curve(ours, tmp_path / "whole", 2)
    stopped = [*ours, "checkpoint.every=3"]
    train_curve([*stopped, "train.stop_after=4"], tmp_path / "stopped", 2)
    for file in (tmp_path / "stopped" / "checkpoints" / "step-4").glob("*.json"):
        file.unlink()
    resumed = train_curve(stopped, tmp_path / "stopped", 2)
    assert [line["loss"] for line in resumed] == [line["loss"] for line in whole]
    assert [line["step"] for line in texts(tmp_path / "stopped")] == [2, 4, 5]
    assert texts(tmp_path / "stopped") == texts(tmp_path / "whole")
    page = Page((tmp_path / "stopped" / "report.html").read_bytes())
    assert f"{strategy} x 2" in page.text and "1 to 4; taken up again after 3" in page.text and "4 to 5" in page.text
    assert len(page.paths("Loss", "resume")) == 1 and "done" in page.text


def test_writing_changes_nothing_and_is_done_once_unless_asked_for(tiny, tmp_path):
    often = [*tiny, *OFTEN]
    curve, plain = train_curve(often, tmp_path / "often"), train_curve([*often, "sample.every_evaluation=false"], tmp_path / "plain")
    assert [(line["loss"], line["grad_norm"]) for line in curve] == [(line["loss"], line["grad_norm"]) for line in plain]
    assert texts(tmp_path / "plain") == texts(tmp_path / "often")[-1:] and len(texts(tmp_path / "often")) == 3


def test_a_report_that_cannot_be_written_is_a_sentence_and_no_failure(tiny, tmp_path):
    short = [*tiny, "train.steps=2", "optimizer.warmup_steps=1"]
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert len(train_curve(short, tmp_path / "run")) == 2
    assert "IsADirectoryError" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()

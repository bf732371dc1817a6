"""``isotrain evaluate``: what a run measured at its end, measured again: on any ranks, under any strategy, out of an export, and nothing changed."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.contracts.tasks import TEXT
from trainer import cli
from trainer.testing import last_wins, run_ranks, train_curve

ROOT = Path(__file__).parents[2]
TASKS = ("bert classes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "llama", "bert")))
EXPORTS = ("t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert classes", "llama", "bert")))
SHORT = ["train.steps=4", "optimizer.warmup_steps=1", "checkpoint.every=2", "data.validation_fraction=0.1", "train.evaluate_samples=13"]


def command(*arguments):
    """On a rank: one command; returns (exit code, what it printed, what it reported)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def at_the_end(run_dir):
    """What a run measured last."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    *_, last = (line for line in lines if line.pop("kind") == "evaluate")
    return last


def evaluated(world_size, tmp_path, *arguments):
    """The metrics, as the command writes them."""
    file = tmp_path / f"{uuid.uuid4()}.json"
    answers = run_ranks(command, world_size, "evaluate", *arguments, f"to={file}")
    assert [code for code, _, _ in answers] == [0] * world_size, answers
    assert all(out == "" for _, out, _ in answers[1:]), "rank 0 speaks"
    return json.loads(file.read_text()) | {"printed": answers[0][1]}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")} | {None: folder.stat().st_mtime_ns}


@pytest.fixture(scope="module")
def runs(task, tmp_path_factory):
    """A finished run of each task on two ranks under ddp, its overrides, and what it measured at its end."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            arguments = last_wins([*task(name), "strategy=ddp", *SHORT])
            train_curve(arguments, folder / "run", 2)
            last = at_the_end(folder / "run")
            made[name] = arguments, folder, last
        return made[name]

    return run


@pytest.mark.parametrize("name", TASKS)
def test_a_checkpoint_is_as_good_as_its_run_said(runs, name, tmp_path):
    _, folder, said = runs(name)
    before = snapshot(folder)
    for ranks, strategy in ((1, "single"), (2, "fsdp"), (3, "ddp")):
        result = evaluated(ranks, tmp_path, f"checkpoint={folder / 'run'}", f"strategy={strategy}", "train.micro_batch=3")
        assert result["step"] == said["step"] == 4 and result["num_samples"] == 13
        assert result["num_targets"] == said["num_targets"]
        metrics = {name: value for name, value in said.items() if name not in ("step", "num_targets", "examples")}
        assert result["metrics"] == pytest.approx(metrics, rel=1e-5) and metrics
        assert all(re.search(rf"^{metric} +[\d.]+$", result["printed"], re.MULTILINE) for metric in metrics)
        assert f"{strategy} on {ranks} x CPU" in result["printed"]
        for example in said.get("examples", []):
            assert f"truth  {example['reference'].strip()}"[:60] in result["printed"]
    assert snapshot(folder) == before, "evaluating changes nothing"


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_as_good_as_its_checkpoint(runs, name, tmp_path):
    arguments, folder, said = runs(name)
    assert cli.main(["export", f"checkpoint={folder / 'run'}", f"to={tmp_path / 'exported'}"]) == 0
    own = [item for item in arguments if not item.startswith(("model", "strategy"))]
    result = evaluated(2, tmp_path, *own, "strategy=fsdp", "model=pretrained", f"model.path={tmp_path / 'exported'}")
    assert result["metrics"]["loss"] == pytest.approx(said["loss"], rel=1e-5)
    assert result["step"] is None and result["weights"] == str(tmp_path / "exported") and "untrained" not in result["printed"]


def test_an_earlier_checkpoint_other_values_and_other_data(runs, corpus_folder, tmp_path):
    arguments, folder, said = runs("llama")
    early = evaluated(1, tmp_path, f"checkpoint={folder / 'run/checkpoints/step-2'}")
    assert early["step"] == 2 and early["metrics"]["loss"] != said["loss"]
    more = evaluated(1, tmp_path, f"checkpoint={folder / 'run'}", "train.evaluate_samples=20")
    assert more["num_samples"] == 20 and more["num_targets"] > said["num_targets"]

    (tmp_path / "other").mkdir()
    for name in ("ast.py", "typing.py"):
        shutil.copy(corpus_folder / name, tmp_path / "other")
    other = evaluated(1, tmp_path, f"checkpoint={folder / 'run'}", f"data.path={tmp_path / 'other'}")
    assert cli.main(["export", f"checkpoint={folder / 'run'}", f"to={tmp_path / 'exported'}"]) == 0
    own = [item for item in arguments if not item.startswith(("model", "strategy", "data.path", "data.tokenizer"))]
    export = ["model=pretrained", f"model.path={tmp_path / 'exported'}", f"data.path={tmp_path / 'other'}"]
    assert other["metrics"] == pytest.approx(evaluated(1, tmp_path, *own, *export)["metrics"]), "in the checkpoint's own tokens"
    assert other["metrics"]["loss"] != said["loss"]


def test_what_a_run_began_with_may_be_gone(task, tmp_path, runs):
    _, folder, _ = runs("bert")
    shutil.copytree(folder / "run", tmp_path / "masked")
    assert cli.main(["export", f"checkpoint={tmp_path / 'masked'}", f"to={tmp_path / 'bert'}"]) == 0
    classes = [item for item in task("bert classes") if not item.startswith(("model", "data.tokenizer"))]
    tuned = last_wins([*classes, "model=pretrained", f"model.path={tmp_path / 'bert'}", *SHORT, "optimizer.lr=1e-2"])
    train_curve(tuned, tmp_path / "run")
    said = at_the_end(tmp_path / "run")
    there = evaluated(1, tmp_path, f"checkpoint={tmp_path / 'run'}")
    untrained = evaluated(1, tmp_path, *tuned)
    assert "4 tensors (bert.pooler.*, classifier.*) drawn from the seed: untrained so far" in untrained["printed"]
    assert "untrained" not in there["printed"]
    shutil.rmtree(tmp_path / "bert")
    gone = evaluated(1, tmp_path, f"checkpoint={tmp_path / 'run'}")
    assert there["metrics"] == gone["metrics"] and gone["metrics"]["loss"] == pytest.approx(said["loss"], rel=1e-5)
    assert untrained["metrics"]["loss"] != pytest.approx(gone["metrics"]["loss"], rel=1e-3)


def test_classes_must_be_those_of_the_checkpoint(runs, tmp_path):
    arguments, folder, _ = runs("bert classes")
    path = Path(next(item for item in arguments if item.startswith("data.path=")).partition("=")[2])
    records = [json.loads(line) for line in path.read_text().splitlines()]

    def write(name, **changed):
        (tmp_path / name).write_text(
            "".join(json.dumps(record | {"label": changed.get(record["label"], record["label"])}) + "\n" for record in records)
        )
        return f"data.path={tmp_path / name}"

    fewer = run_ranks(command, 2, "evaluate", f"checkpoint={folder / 'run'}", write("fewer.jsonl", ast="typing"), "strategy=ddp")
    assert [code for code, _, _ in fewer] == [2, 2] and ["isotrain: refused" in report for _, _, report in fewer] == [True, False]
    assert "tells 8 classes apart (argparse, ast, calendar, configparser, dataclasses, ...), the data has 7" in fewer[0][2]
    assert cli.main(["export", f"checkpoint={folder / 'run'}", f"to={tmp_path / 'exported'}"]) == 0
    own = [item for item in arguments if not item.startswith(("model", "strategy", "data.path"))]
    renamed = evaluated(1, tmp_path, *own, "model=pretrained", f"model.path={tmp_path / 'exported'}", write("other.jsonl", ast="ast_2"))
    assert (
        "taken by their order: argparse of the folder is argparse of the data, ast of the folder is ast_2 of the data" in renamed["printed"]
    )


def damage(checkpoint):
    (checkpoint / "config.yaml").write_text("train: {}")


def test_a_damaged_checkpoint_is_skipped_and_named(runs, tmp_path):
    _, folder, _ = runs("llama")
    shutil.copytree(folder / "run", tmp_path / "run")
    damage(tmp_path / "run/checkpoints/step-4")
    skipped = "Checkpoint step-4 cannot be used: step-4/config.yaml is damaged"
    (tmp_path / "results").mkdir()
    result = evaluated(2, tmp_path / "results", f"checkpoint={tmp_path / 'run'}", "strategy=fsdp")
    assert result["step"] == 2 and skipped in result["printed"]
    ((code, out, report),) = run_ranks(command, 1, "generate", f"checkpoint={tmp_path / 'run'}", "max_new_tokens=2")
    assert code == 0 and skipped in report and skipped not in out
    ((code, out, report),) = run_ranks(command, 1, "export", f"checkpoint={tmp_path / 'run'}", f"to={tmp_path / 'exported'}")
    assert code == 0 and skipped in report and "step-2 exported" in out
    damage(tmp_path / "run/checkpoints/step-2")
    answers = run_ranks(command, 2, "evaluate", f"checkpoint={tmp_path / 'run'}", "strategy=ddp")
    assert [code for code, _, _ in answers] == [8, 8] and [report != "" for _, _, report in answers] == [True, False]
    assert "can be trusted" in answers[0][2] and "step-2" in answers[0][2] and "Traceback" not in answers[0][2]


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ["data=jsonl", "objective=masked_lm", "strategy=fsdp"],
            [
                "data=jsonl and objective=masked_lm: a checkpoint is evaluated on its own data",
                "isotrain evaluate model=pretrained model.path=",
            ],
        ),
        (
            ["model.hidden_size=64", "train.evaluate_sample=3"],
            ["model.hidden_size=64 would be another model", "did you mean train.evaluate_samples=3?"],
        ),
        (["stratgey=fsdp", "precision=bf17"], ["stratgey is not a group: did you mean strategy=fsdp?", "precision=bf17 is not an option"]),
        (
            ["train.evaluate_samples=0", "train.micro_batch=x"],
            ["train.evaluate_samples=0 is out of range", "train.micro_batch=x is not a whole number"],
        ),
        (["data.validation_fraction=0"], ["There is nothing to evaluate on"]),
    ],
)
def test_what_cannot_be_is_refused_all_at_once(runs, arguments, sentences):
    _, folder, _ = runs("llama")
    ((code, out, report),) = run_ranks(command, 1, "evaluate", f"checkpoint={folder / 'run'}", *arguments)
    assert code == 2 and out == "", report
    assert [sentence for sentence in sentences if sentence not in report] == [], report


def test_what_was_for_training_alone_binds_nobody_who_measures(task, tmp_path):
    made = ["optimizer.moments=bf16", "train.steps=1", "optimizer.warmup_steps=0", "data.validation_fraction=0.1"]
    train_curve(last_wins([*task("llama"), *made]), tmp_path / "run", 1)
    config = tmp_path / "run/checkpoints/step-1/config.yaml"
    assert evaluated(2, tmp_path, f"checkpoint={tmp_path / 'run'}", "strategy=zero3")["step"] == 1
    assert "moments: bf16" in config.read_text()


def test_a_strategy_that_does_not_fit_is_refused_once(runs):
    _, folder, _ = runs("llama")
    answers = run_ranks(command, 2, "evaluate", f"checkpoint={folder / 'run'}", "strategy=single")
    assert [code for code, _, _ in answers] == [2, 2]
    assert "did you mean strategy=ddp?" in answers[0][2] and answers[1][2] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "evaluate needs a trained model: checkpoint=RUN_OR_CHECKPOINT, or model=pretrained"),
        (["model=gpt2_tiny"], "evaluate needs a trained model"),
        (["model=pretrained"], "model.path is required"),
        (["checkpoint=x", "to=README.md"], "to=README.md exists: choose another file"),
        (["checkpoint=x", "to=nowhere/file.json"], "there is no folder nowhere"),
        (["checkpoint=x", "run.device=gpu"], "run.device=gpu is not one of cuda, cpu"),
    ],
)
def test_the_command_line_is_refused_before_torch_is_there(arguments, said):
    script = "import sys\nfrom trainer import cli\ncode = cli.main(['evaluate', *sys.argv[1:]])\nprint(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "False"] and said in done.stderr, done.stderr


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for folder, said in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no checkpoint")):
        ((code, _, report),) = run_ranks(command, 1, "evaluate", f"checkpoint={folder}", "run.device=cpu")
        assert code == 2 and said in report
    (tmp_path / "config.json").write_text("{}")
    ((code, _, report),) = run_ranks(command, 1, "evaluate", f"checkpoint={tmp_path}", "run.device=cpu")
    assert code == 2 and f"evaluate it with model=pretrained model.path={tmp_path}" in report


def state_names(*arguments):
    """On a rank: what an engine of the command keeps."""
    from tests.contracts.engines import build_job
    from trainer.assembly import build_engine

    job = build_job(arguments)
    return list(build_engine(job, learns=False).state()), [name for name, _ in job.skeleton.model.named_parameters()]


def test_nothing_but_the_model_is_kept_in_memory(tiny):
    ((kept, parameters),) = run_ranks(state_names, 1, *last_wins([*tiny, *TEXT["llama"]]))
    assert sorted(kept) == sorted(f"model.{name}" for name in parameters)

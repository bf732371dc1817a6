"""Every command line of bad_configs.yaml is refused with the keys and the suggestions that it deserves."""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from trainer import cli
from trainer.distributed.launch import ADDRESS, RANKS

CASES = yaml.safe_load(Path(__file__).with_name("bad_configs.yaml").read_text())


@dataclasses.dataclass
class Answer:
    """What a user gets for one bad command line."""

    code: int
    report: str


@pytest.fixture(scope="module")
def answers() -> dict[int, Answer]:
    """What was answered to cases asked before, by their place in CASES."""
    return {}


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Runs one case through the entry point, in this process."""

    accepted = SimpleNamespace(train=lambda *_: 0, run=lambda *_: 0)  # a case that is let through must fail, not train
    for module in ("trainer.run", "trainer.commands.prepare", "trainer.commands.generate", "trainer.commands.export"):
        monkeypatch.setitem(sys.modules, module, accepted)

    def run(case: dict) -> Answer:
        accelerates = [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"))]
        for name in (*RANKS, *ADDRESS, "LOCAL_WORLD_SIZE", *accelerates):
            monkeypatch.delenv(name, raising=False)
        world = case.get("world")
        launcher = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in (launcher if world else case.get("env", {})).items():
            monkeypatch.setenv(name, value)
        for name, text in case.get("files", {}).items():
            file = tmp_path / "mine" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.chdir(tmp_path)
        arguments = [str(tmp_path / "mine") if argument == "DIR" else str(argument) for argument in case["args"]]
        code = cli.main([case.get("command", "train"), *arguments])
        return Answer(code, capsys.readouterr().err)

    return run


@pytest.mark.parametrize("case", CASES, ids=[" ".join(map(str, case["args"]))[:60] or "environment" for case in CASES])
def test_is_refused_and_names_what_is_wrong(case, ask, answers):
    answer = answers[CASES.index(case)] = ask(case)
    assert answer.code == 2
    assert answer.report.startswith("isotrain: refused")
    assert answer.report.endswith("Nothing was started.\n")
    assert [name for name in case["names"] if name not in answer.report] == [], answer.report


def test_suggestions_are_right(ask, answers):
    wanted = [(place, case, suggestion) for place, case in enumerate(CASES) for suggestion in case.get("suggests", ())]
    reports = {place: (answers.get(place) or ask(case)).report for place, case, _ in wanted}
    missed = [(case["args"], suggestion) for place, case, suggestion in wanted if f"did you mean {suggestion}?" not in reports[place]]
    assert len(wanted) >= 50
    assert len(missed) <= 0.1 * len(wanted), missed


@pytest.mark.parametrize(("arguments", "number"), [(["train.stepz=5"], 1), (["train.stepz=5", "optimizer.lr=nan", "strategy=fsdpp"], 3)])
def test_one_line_per_problem(arguments, number, ask):
    lines = ask({"args": arguments}).report.splitlines()
    assert sum(line.startswith("  - ") for line in lines) == number
    assert len(lines) == number + 2


def test_what_follows_from_a_mistake_is_not_reported(ask):
    report = ask({"args": ["train.stepz=1000", "train.stop_after=500"]}).report
    assert "train.stop_after" not in report


def test_a_misspelt_model_does_not_make_its_keys_unknown(ask):
    report = ask({"args": ["model=gpt2_tinny", "model.dropout=0.1"]}).report
    assert report.count("  - ") == 1

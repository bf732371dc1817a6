"""``isotrain report``: which file it writes, what it says, and that it needs no torch for it."""

import subprocess
import sys

import pytest

from tests.unit.report.runs import step, write_run
from trainer import cli
from trainer.errors import DONE, REFUSED


@pytest.fixture
def runs(tmp_path):
    config = {"train": {"steps": 3}, "precision": {"compute": "fp32"}}
    first = write_run(tmp_path / "first", [step(number) for number in (1, 2, 3)], **config)
    return first, write_run(tmp_path / "second", [step(number, loss=2.5 + number) for number in (1, 2, 3)], **config)


def test_one_run_gets_its_report_anew(runs, capsys):
    assert cli.main(["report", str(runs[0])]) == DONE
    assert capsys.readouterr().out.split() == [str(runs[0] / "report.html")]
    assert b"<h1>first</h1>" in (runs[0] / "report.html").read_bytes()
    assert cli.main(["report", str(runs[0])]) == DONE, "its own file is replaced"


def test_several_runs_are_compared_beside_the_first(runs, capsys, tmp_path):
    assert cli.main(["report", *map(str, runs)]) == DONE
    *table, file = capsys.readouterr().out.splitlines()
    assert file == str(tmp_path / "compare-first-second.html")
    assert table[0].split() == ["first", "second"] and table[-1].startswith("beside the first") and "from step 1 on" in table[-1]
    assert next(line.split()[1:] for line in table if line.startswith("layout")) == ["fsdp", "x", "2", "fsdp", "x", "2"]
    assert b"fsdp x 2" in (tmp_path / "compare-first-second.html").read_bytes()


def test_another_file_may_be_named_and_is_never_replaced(runs, capsys, tmp_path):
    target = tmp_path / "mine.html"
    assert cli.main(["report", *map(str, runs), f"to={target}"]) == DONE and target.read_bytes().startswith(b"<!doctype html>")
    assert cli.main(["report", str(runs[0]), f"to={target}"]) == REFUSED
    assert "exists: choose another file" in capsys.readouterr().err
    assert cli.main(["report", str(runs[0]), f"to={tmp_path / 'nowhere' / 'x.html'}"]) == REFUSED
    assert "cannot be written (No such file or directory): choose another file with to=FILE.html." in capsys.readouterr().err


def test_a_folder_with_an_equals_sign_is_a_folder(runs, capsys, tmp_path):
    folder = runs[0].rename(tmp_path / "lr=3")
    assert cli.main(["report", str(folder)]) == DONE
    assert (folder / "report.html").exists()


def test_what_is_no_run_is_one_sentence(capsys, tmp_path):
    assert cli.main(["report", str(tmp_path)]) == REFUSED
    said = capsys.readouterr().err
    assert said.startswith("isotrain: refused, 1 problem:") and f"{tmp_path} is not the directory of a run that has begun" in said
    (tmp_path / "metrics.jsonl").mkdir()
    assert cli.main(["report", str(tmp_path)]) == REFUSED
    assert "cannot be read: Is a directory" in capsys.readouterr().err


def test_no_torch_is_imported(runs):
    code = "import sys; from trainer.cli import main; main(sys.argv[1:]); print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code, "report", *map(str, runs)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ""


def test_help_says_how_it_is_called(capsys):
    assert cli.main(["report", "--help"]) == DONE
    assert "isotrain report RUN RUN ..." in capsys.readouterr().out

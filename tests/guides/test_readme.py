"""README.md and docs/ say what is: their commands pass the gates, what they name exists, and their tables are those of the code."""

import json
import pkgutil
import re
import shlex
from dataclasses import fields

import pytest

from tests.guides.pages import ROOT, blocks, check_command, commands, links, spans, table
from trainer import cli, errors
from trainer.config import Config, folders, load, schemas
from trainer.errors import Refused
from trainer.schema import leaves
from trainer.strategy.support import markdown_matrix
from trainer.testing import train_curve
from trainer.types import StepRecord

README, CHECKPOINTS = ROOT / "README.md", ROOT / "docs/checkpoints.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
WITH_COMMANDS = [page for page in PAGES if commands(page) and not page.name.startswith("adding-a")]  # which have tests of their own


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_command_passes_the_gates(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = {"runs/demo"}  # every page may use the run that README begins with
    for words in commands(page):
        try:
            check_command(words, made)
        except (Refused, AssertionError, SystemExit) as error:
            raise AssertionError(f"{shlex.join(words)}: {error}") from error


def test_readme_shows_the_commands_used_most():
    shown = [shlex.join(words) for words in commands(README)]
    for part in ("make train", "make test", "+strategy=fsdp", "data=text", "model=pretrained", "isotrain prepare", "isotrain generate"):
        assert any(part in command for command in shown), part
    for part in ("isotrain export", "train.stop_after", "--help", "--help strategy", "--cfg job", "experiment="):
        assert any(part in command for command in shown), part


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_and_file_exists(page):
    wrong = [target for target in links(page) if not (page.parent / target).exists()]
    paths = [span for span in spans(page) if re.fullmatch(r"(trainer|tests|configs|docs|benchmarks)/[\w./-]+", span)]
    made = {block.file for block in blocks(page)} if page.name.startswith("adding-a") else set()
    assert not wrong + [path for path in paths if path not in made and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_name_key_and_option_exists(page):
    known = {key for group, classes in schemas().items() for cls in classes.values() for key in leaves(cls(), group)}
    known |= set(leaves(Config()))
    sections = {field.name for field in fields(Config)}
    for span in spans(page):
        if re.fullmatch(r"trainer(\.\w+)+", span):
            pkgutil.resolve_name(span)
        key, _, value = span.partition("=")
        if re.fullmatch(r"[a-z]+(\.[a-z_]+)+", key) and key.split(".")[0] in sections and not key.endswith((".py", ".json")):
            assert key in known, span
        if key.lstrip("+") in schemas() and re.fullmatch(r"\w+", value):
            assert folders().find(key.lstrip("+"), value), span


def test_the_matrix_is_the_one_of_support():
    text = README.read_text()
    assert text.split("<!-- matrix -->\n")[1].split("<!-- /matrix -->")[0] == markdown_matrix()


def test_the_exit_codes_are_those_of_the_code():
    codes = {errors.DONE, errors.REFUSED, errors.FAILED, errors.STOPPED, errors.STORAGE}
    assert {int(row[0]) for row in table(README, "code")} == codes


def test_the_refusal_shown_is_the_one_given(capsys):
    (block,) = [block for block in blocks(README) if block.text.startswith("$ ")]
    command, *answer = block.text.splitlines()
    python, script, *arguments = shlex.split(command.removeprefix("$ "))
    assert (python, script) == ("python", "train.py")
    assert cli.main(["train", *arguments]) == errors.REFUSED
    assert capsys.readouterr().err.splitlines() == answer


def test_names_of_hf_trainer_are_answered_with_ours():
    theirs, ours = next(row for row in table(README, "you know") if "max_steps" in row[0])
    pairs = list(zip(re.findall(r"`(\w+)`", theirs), re.findall(r"`([\w.]+)`", ours), strict=True))
    assert len(pairs) == 5
    for old, key in pairs:
        with pytest.raises(Refused, match=rf"did you mean {re.escape(key)}=5\?"):
            load([f"{old}=5"], 1)


def test_what_a_run_leaves_is_what_the_pages_show(tiny, tmp_path):
    train_curve([*tiny, "train.steps=5", "train.stop_after=2"], tmp_path / "run")
    layout, checkpoint = (
        next(block.text for block in blocks(page) if block.language == "text" and "/\n" in block.text) for page in (README, CHECKPOINTS)
    )
    shown = {line.split()[0].split("/")[0] for line in layout.splitlines()[1:]}
    assert shown == {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    files = {line.split()[0].split("/")[0] for line in checkpoint.splitlines()[1:]}
    one_rank = {file.replace("00002", "00001") for file in files}
    assert one_rank == {path.name for path in (tmp_path / "run/checkpoints/step-2").iterdir()}
    example = json.loads(next(block.text for block in blocks(README) if block.language == "json"))
    columns = ["kind", *(field.name for field in fields(StepRecord))]
    assert list(example) == columns
    assert list(json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])) == columns


@pytest.mark.slow
def test_in_bf16_ddp_and_fsdp_are_bitwise_equal_without_clipping(tiny, tmp_path):
    arguments = [*tiny, "precision=bf16", "train.micro_batch=4", "optimizer.max_grad_norm=null"]
    ddp, fsdp = (train_curve([*arguments, f"strategy={name}"], tmp_path / name, 2) for name in ("ddp", "fsdp"))
    assert [line["loss"].hex() for line in ddp] == [line["loss"].hex() for line in fsdp]

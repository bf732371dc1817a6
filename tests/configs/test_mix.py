"""data=mix on the command line and in files: parts under names of the user's own, each typed by its kind."""

from pathlib import Path

import pytest

from trainer import cli, config
from trainer.data.config import Data
from trainer.data.mix_config import KINDS, MOST_PARTS, SOURCES, as_corpus
from trainer.errors import Refused
from trainer.schema import leaves

MIX = [
    "data=mix",
    "data.parts.general.kind=python_stdlib",
    "data.parts.general.weight=49",
    "data.parts.finance.kind=jsonl",
    "data.parts.finance.path=f.jsonl",
    "data.parts.finance.weight=51",
]
EXPERIMENT = """# @package _global_
defaults:
  - override /data: mix
  - _self_
data:
  sequence_length: 64
  parts:
    general:
      kind: text
      path: books
      document: line
    "2024": {kind: csv, path: a.csv, weight: 3, final_weight: 0, columns: [text, x]}
"""


def refusal(arguments: list[str], folder: Path | None = None) -> str:
    with pytest.raises(Refused) as refused:
        config.load(arguments, 1, folder)
    return "\n".join(refused.value.problems)


def experiment(folder: Path, text: str) -> Path:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "domain.yaml").write_text(text)
    return folder


def test_every_data_option_but_the_mix_can_be_a_part_and_declares_its_keys_once():
    assert KINDS.keys() == config.GROUPS["data"].keys() - {"mix"}
    common = leaves(Data()).keys()
    for kind, part in KINDS.items():
        assert SOURCES[kind] is config.GROUPS["data"][kind]
        theirs, ours = leaves(SOURCES[kind]()), leaves(part())
        assert [key for key in theirs if key not in common] == [key for key in ours if key not in ("kind", "weight", "final_weight")]
        for key in ours.keys() & theirs.keys():
            assert ours[key].field.metadata == theirs[key].field.metadata
            assert (ours[key].type, ours[key].optional, ours[key].value) == (theirs[key].type, theirs[key].optional, theirs[key].value)


def test_parts_come_into_being_as_they_are_named_in_any_order():
    loaded = config.load(MIX, 1)
    assert list(loaded.data.parts) == ["finance", "general"]
    finance = loaded.data.parts["finance"]
    assert (type(finance), finance.path, finance.text, finance.weight) == (KINDS["jsonl"], "f.jsonl", "text", 51.0)
    assert loaded.data.shares() == {"finance": (51.0, 51.0), "general": (49.0, 49.0)}
    shuffled = config.load([MIX[0], *reversed(MIX[1:])], 1)
    assert shuffled == loaded
    assert config.to_yaml(shuffled) == config.to_yaml(loaded), "the order of the arguments is not part of the run"


def test_a_run_keeps_and_finds_its_parts_again():
    loaded = config.load([*MIX, "data.parts.a-1.kind=csv", "data.parts.a-1.path=x", "data.parts.a-1.skip_rows=[2,3]"], 1)
    again = config.from_yaml(config.to_yaml(loaded))
    assert again == loaded
    assert {name: type(part) for name, part in again.data.parts.items()} == {
        "a-1": KINDS["csv"],
        "finance": KINDS["jsonl"],
        "general": KINDS["python_stdlib"],
    }


@pytest.mark.parametrize(("old", "new"), [("kind: jsonl", "kind: jsonk"), ("kind: jsonl", "kind: text"), ("weight: 51.0", "weigth: 51.0")])
def test_a_tampered_part_is_refused(old, new):
    text = config.to_yaml(config.load(MIX, 1))
    assert old in text
    with pytest.raises(Refused, match="not the config of a run"):
        config.from_yaml(text.replace(old, new, 1))


def test_parts_from_a_file_and_from_the_command_line_are_one_mix(tmp_path):
    folder = experiment(tmp_path, EXPERIMENT)
    loaded = config.load(
        ["experiment=domain", "data.parts.general.weight=7", "data.parts.c.kind=vader", "data.parts.c.part=nyt"], 1, folder
    )
    assert list(loaded.data.parts) == ["2024", "c", "general"]
    assert loaded.data.shares() == {"2024": (3.0, 0.0), "c": (1.0, 1.0), "general": (7.0, 7.0)}
    assert (loaded.data.parts["general"].document, loaded.data.parts["c"].part) == ("line", "nyt")
    assert (loaded.data.parts["2024"].columns, loaded.data.sequence_length) == (["text", "x"], 64)
    other = config.load(["experiment=domain", "data.parts.general.kind=text", "data.parts.general.path=papers"], 1, folder)
    assert (other.data.parts["general"].path, other.data.parts["general"].document) == ("papers", "line")


def test_a_preset_of_the_users_own_is_a_mix_like_another(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "domain.yaml").write_text(
        "defaults: [mix, _self_]\nparts:\n  a: {kind: vader}\n  b: {kind: python_stdlib, weight: 2}\n"
    )
    loaded = config.load(["data=domain", "data.parts.a.weight=3"], 1, tmp_path)
    assert loaded.data.shares() == {"a": (3.0, 3.0), "b": (2.0, 2.0)}
    assert cli.main(["train", "--help", "data", "--config-dir", str(tmp_path)]) == 0
    assert "parts.a.kind=vader parts.b.kind=python_stdlib parts.b.weight=2" in " ".join(capsys.readouterr().out.split())


def test_one_part_does_not_become_anothers(tmp_path):
    """Nothing is left behind from one command line to the next: Hydra's store and the kinds are shared."""
    config.load(MIX, 1)
    assert "has no part" in refusal(["data=mix"])
    assert list(config.load(["data=mix", "data.parts.a.kind=vader", "data.parts.b.kind=vader"], 1).data.parts) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            EXPERIMENT.replace("kind: text", "kind: txt"),
            ["data.parts.general.kind=txt", "domain.yaml:9", "did you mean data.parts.general.kind=text?"],
        ),
        (EXPERIMENT.replace("      kind: text\n", ""), ["data.parts.general", "domain.yaml:8", "does not say what it is"]),
        (
            EXPERIMENT.replace("document: line", "dokument: line"),
            ["data.parts.general.dokument", "domain.yaml:11", "data.parts.general.document"],
        ),
        (
            EXPERIMENT.replace("document: line", "target_length: 5"),
            ["data.parts.general.target_length", "domain.yaml:11", "data.target_length"],
        ),
        (EXPERIMENT.replace("document: line", "delimiter: x"), ["data.parts.general.delimiter", "domain.yaml:11", "kind=text", "kind=csv"]),
        (EXPERIMENT.replace('"2024"', "2024"), ["data.parts.2024", "domain.yaml:12", "'2024'"]),
        (EXPERIMENT.replace('"2024"', "a b"), ["data.parts.a b", "domain.yaml:12", "letters, digits, _ and -"]),
        (EXPERIMENT.replace("weight: 3", "weight: -3"), ["data.parts.2024.weight=-3", "domain.yaml:12", "at least 0"]),
        (EXPERIMENT.replace("weight: 3", "weight: much"), ["data.parts.2024.weight=much", "domain.yaml:12", "number"]),
        (EXPERIMENT.replace("  - override /data: mix\n", ""), ["data.parts", "domain.yaml:6", "did you mean data=mix?"]),
        (
            EXPERIMENT.replace("    general:\n", "    general: {}\n    other:\n"),
            ["data.parts.general", "domain.yaml:8", "does not say what it is"],
        ),
    ],
)
def test_faults_of_a_file_are_named_with_their_line(text, says, tmp_path):
    report = refusal(["experiment=domain"], experiment(tmp_path, text))
    assert [word for word in says if word not in report] == [], report
    assert report.count("\n") == 0, report


def test_parts_report_their_own_problems_under_their_own_keys():
    report = refusal([*MIX, "data.parts.finance.text={title", "data.parts.c.kind=csv", "data.parts.c.path= ", "data.parts.c.quote=::"])
    assert report.count("\n") == 2
    assert "data.parts.finance.text={title is no template" in report
    assert "data.parts.c.path is empty" in report
    assert "data.parts.c.quote='::' is not one character" in report


def test_what_an_objective_needs_is_asked_of_every_part():
    report = refusal([*MIX, "objective=seq2seq", "model=t5_tiny", "data.parts.c.kind=vader"])
    assert report.count("\n") == 0
    assert "which data.parts.c.kind=vader does not have: choose data.parts.c.kind=jsonl" in report
    assert "data.parts.c.target" in report


def test_a_part_that_brings_its_held_out_files_goes_with_the_fraction_of_the_others():
    own = [*MIX, "data.parts.finance.validation_path=v.jsonl"]
    assert config.load([*own, "data.validation_fraction=0.2"], 1).data.holds_out
    assert config.load([*own, "data.validation_fraction=0"], 1).data.holds_out
    assert not config.load([*MIX, "data.validation_fraction=0"], 1).data.holds_out
    finance = config.load([*own, "data.cache_dir=c"], 1).data
    corpus = as_corpus(finance.parts["finance"], finance)
    assert (corpus.validation_path, corpus.path, corpus.cache_dir) == ("v.jsonl", "f.jsonl", "c")


def test_more_parts_than_the_order_keeps_exact_are_refused():
    def parts(number: int) -> list[str]:
        return ["data=mix", *(f"data.parts.p{i}.kind=python_stdlib" for i in range(number))]

    assert len(config.load(parts(MOST_PARTS), 1).data.parts) == 32
    assert "33 parts" in refusal(parts(33))


def test_help_shows_what_a_part_takes(capsys):
    assert cli.main(["train", "--help", "data"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in (
        "data.parts.NAME.kind (required)",
        "data.parts.NAME.weight 1",
        "data.parts.NAME.final_weight null",
        "debian_descriptions, hub, jsonl",
    ):
        assert word in text
    assert "a share of the tokens; else records" in text


def test_a_plugins_data_can_be_a_part(monkeypatch):
    from dataclasses import make_dataclass

    from trainer.schema import setting

    monkeypatch.setattr(config, "REGISTERED", {group: {} for group in config.GROUPS})
    for registry in (KINDS, SOURCES):
        for name in ("poems", "scales"):
            monkeypatch.delitem(registry, name, raising=False)
    before = dict(KINDS), dict(SOURCES)
    try:
        config.register("data", "poems", make_dataclass("Poems", [("century", int, setting(19, "which", minimum=1))], bases=(Data,)))
        config.register("data", "scales", make_dataclass("Scales", [("weight", int, setting(1, "in kg"))], bases=(Data,)))
        loaded = config.load([*MIX, "data.parts.p.kind=poems", "data.parts.p.century=18"], 1)
        assert loaded.data.parts["p"].century == 18
        assert config.from_yaml(config.to_yaml(loaded)) == loaded
        assert "data.parts.p.century=0 is out of range" in refusal([*MIX, "data.parts.p.kind=poems", "data.parts.p.century=0"])
        assert "kind=scales is not one of" in refusal([*MIX, "data.parts.p.kind=scales"]), "its weight would be the part's"
    finally:
        for registry, was in zip((KINDS, SOURCES), before, strict=True):
            registry.clear()
            registry.update(was)

"""Command lines that are right: spellings, experiments, folders of the user's own, and what comes out."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from trainer import cli, config
from trainer.command_line.compose import compose, compose_by_hydra
from trainer.command_line.overrides import Findings, parse
from trainer.command_line.presets import config_folder
from trainer.errors import Refused

ROOT = Path(__file__).parents[2]
MIX = ["data.parts.a.kind=python_stdlib", "data.parts.b.kind=vader"]
SHIPPED = {group: config.folders().options(group) for group in config.GROUPS}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_three_spellings_of_a_choice_are_one(prefix):
    loaded = config.load([f"{prefix}strategy=fsdp", f"{prefix}experiment=gpt2_stdlib", f"{prefix}train.steps=60"], world_size=4)
    assert loaded.strategy.name == "fsdp"
    assert loaded.strategy.degrees(4).shape == (1, 1, 4, 1)
    assert (loaded.train.steps, loaded.model.dropout, loaded.precision.compute) == (60, 0.1, "fp32")


def test_defaults():
    loaded = config.load([], world_size=1)
    assert (loaded.strategy.kind, loaded.precision.compute, type(loaded.model).__name__) == ("ddp", "bf16", "Llama")
    assert loaded == config.load([], world_size=4), "the number of ranks must not enter the config"


def test_typed_choice_wins_over_the_experiment():
    loaded = config.load(["experiment=gpt2_stdlib", "precision=bf16", "optimizer.lr=2e-3"], world_size=1)
    assert (loaded.precision.compute, loaded.optimizer.lr) == ("bf16", 2e-3)


NEEDED = {
    **{("data", kind): ["data.path=x"] for kind in ("text", "jsonl", "csv", "parquet")},
    ("data", "hub"): ["data.name=x"],
    ("data", "mix"): MIX,
    **{("model", name): ["model.path=x"] for name in ("pretrained", "from_config")},
    ("model", "minilm"): ["objective=classification", "data=vader"],
    ("model", "encoder_decoder"): ["model.encoder=x", "objective=seq2seq"],
    **{("model", name): ["objective=masked_lm"] for name in SHIPPED["model"] if "bert" in name},
    **{("model", name): ["objective=seq2seq"] for name in SHIPPED["model"] if name.startswith(("t5", "bart"))},
    ("objective", "masked_lm"): ["model=bert_tiny"],
    ("objective", "span_corruption"): ["model=t5_tiny"],
    ("objective", "seq2seq"): ["model=bart_tiny"],
}
"""What an option does not go without."""


@pytest.mark.parametrize(("group", "option"), [(group, option) for group, options in SHIPPED.items() for option in options])
def test_every_shipped_option_composes_to_what_its_files_say(group, option):
    needs = NEEDED.get((group, option), [])
    findings = Findings()
    overrides, folders, schemas = parse([f"{group}={option}"]), config.folders(), config.schemas()
    tree, selection = compose(overrides, folders, config.Config, schemas, findings)
    assert tree == compose_by_hydra(tree, overrides, folders, schemas, selection, findings), "Hydra and the file check must agree"
    assert findings.sentences == []
    loaded = config.load([f"{group}={option}", *needs], world_size=None)
    assert config.from_yaml(config.to_yaml(loaded)) == loaded


def test_hydra_has_the_last_word_and_is_not_asked_of_what_is_wrong(monkeypatch):
    asked = []

    def says(primary, overrides):
        asked.append(overrides)
        raise HydraException("no such thing")

    monkeypatch.setattr("trainer.command_line.compose.hydra_compose", says)
    with pytest.raises(Refused, match=r"did you mean train\.steps=5"):
        config.load(["train.stepz=5"], world_size=1)
    assert not asked
    with pytest.raises(Refused, match="The YAML files do not compose: no such thing"):
        config.load(["strategy=fsdp"], world_size=1)
    assert asked == [["strategy=fsdp"]]


def test_what_hydra_makes_of_it_is_checked_too(monkeypatch):
    def other(*asked):
        tree = compose_by_hydra(*asked)
        tree.train.steps = -1
        return tree

    monkeypatch.setattr("trainer.command_line.compose.compose_by_hydra", other)
    with pytest.raises(Refused, match=r"train\.steps"):
        config.load([], world_size=1)


def test_files_of_the_users_mean_what_they_mean_to_hydra(tmp_path):
    """Of a file whose own keys come before what it builds on, or that names two schemas, only Hydra knows the sense."""
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "first.yaml").write_text("defaults: [_self_, ddp]\nshard: 5\n")
    (tmp_path / "strategy" / "both.yaml").write_text("defaults: [/schema/strategy/native@_here_, /schema/strategy/zero, _self_]\n")
    assert config.load(["strategy=first"], 2, tmp_path).strategy == config.load(["strategy=ddp"], 2).strategy
    with pytest.raises(Refused) as refused:
        config.load(["strategy=both", "train.steps=-1"], 2, tmp_path)
    assert "do not compose" in str(refused.value) and "train.steps" in str(refused.value)


def test_groups_schemas_folders_and_packages_match():
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()} - {"experiment", "debug"}
    assert folders == set(config.GROUPS)
    for group, named in config.GROUPS.items():
        texts = [(config_folder() / group / f"{option}.yaml").read_text() for option in SHIPPED[group]]
        assert all(any(f"/schema/{group}/{name}@_here_" in text for text in texts) for name in named), f"{group}: a schema without a preset"
        assert (ROOT / "trainer" / group / "__init__.py").is_file()


def test_every_experiment_loads():
    for experiment in config.folders().options("experiment"):
        config.load([f"experiment={experiment}"], world_size=1)


def test_config_dir(tmp_path):
    folder = tmp_path / "it's mine"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "wide.yaml").write_text("defaults: [llama_tiny, _self_]\nhidden_size: 256\n")
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: wide\n  - _self_\ntrain: {steps: 70}\nsample: {prompt: 'null'}\n"
    )
    loaded = config.load(["+experiment=mine"], 1, config_dir=folder)
    assert (loaded.model.hidden_size, loaded.train.steps, loaded.sample.prompt) == (256, 70, "null")


def test_shadowing_a_preset_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "llama_tiny.yaml").write_text("defaults: [gpt2_tiny, _self_]\n")
    with pytest.raises(Refused, match=r"llama_tiny\.yaml has the name of a shipped preset"):
        config.load([], 1, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run:\n  name: !!python/name:os.system x\n", r"run\.name \(.*mine\.yaml:3\) has the tag"),
        ("run: 5\n", r"run \(.*mine\.yaml:2\) is a section"),
        ("train:\n  steps: [1]\n", r"mine\.yaml:3\) is not a whole number"),
        ("defaults: [mine, nosuch, _self_]\n", "nosuch"),
        ("defaults: [/model/llama_tiny@foo]\n", "do not compose"),
    ],
)
def test_odd_yaml_is_refused_in_words(text, says, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(Refused, match=says):
        config.load(["experiment=mine"], 1, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sample.prompt=def f(x): # a = {1, 2}", "def f(x): # a = {1, 2}"),
        ("sample.prompt='  two'", "  two"),
        ("sample.prompt=", ""),
        ("sample.prompt=5", "5"),
        ("sample.top_k=null", None),
        ("optimizer.lr=1e-3", 1e-3),
        ("run.quiet=true", True),
    ],
)
def test_values_are_read_as_their_type(argument, value):
    key = argument.partition("=")[0]
    loaded = config.load([argument], 1)
    read = OmegaConf.select(OmegaConf.structured(loaded), key)
    assert (read, type(read)) == (value, type(value))


def test_cfg_job_prints_what_reloads(capsys):
    assert cli.main(["train", "strategy=hsdp", "model=gpt2_tiny", "train.stop_after=20", "--cfg", "job"]) == 0
    assert config.from_yaml(capsys.readouterr().out) == config.load(["strategy=hsdp", "model=gpt2_tiny", "train.stop_after=20"], None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("global_batch: 16", "global_batch: many"),
        ("global_batch: 16", "global_batsh: 16"),
        ("name: run", "name: ${oc.env:HOME}"),
        ("llama@", "nosuch@"),
        ("defaults:", "x:"),
    ],
)
def test_a_tampered_run_config_is_refused(old, new):
    text = config.to_yaml(config.load([], 1))
    assert old in text
    with pytest.raises(Refused, match="not the config of a run"):
        config.from_yaml(text.replace(old, new, 1))


PLUGIN = """
from dataclasses import dataclass
import trainer
from trainer.model.decoders import Llama
from trainer.schema import setting

@dataclass
class Deep(Llama):
    "A deeper one."
    num_layers: int = setting(9, "decoder blocks", minimum=2, maximum=20)

def enable():
    trainer.register("model", "deep", Deep)
"""


def _python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={"PYTHONPATH": f"{ROOT}:{cwd}", "PATH": ""}, capture_output=True, text=True
    )


def test_a_plugin_from_the_users_own_train_py(tmp_path):
    (tmp_path / "deep.py").write_text(PLUGIN)
    (tmp_path / "train.py").write_text("import deep, trainer\ndeep.enable()\nraise SystemExit(trainer.main())\n")
    done = _python("train.py", "model=deep", "--cfg", "job", cwd=tmp_path)
    assert "/schema/model/deep@model" in done.stdout, done.stderr
    assert "num_layers: 9" in done.stdout
    assert "model=deep" in _python("train.py", "model.num_layers=99", "model=dep", cwd=tmp_path).stderr
    assert "at least 2 and at most 20" in _python("train.py", "model.num_layers=99", "model=deep", cwd=tmp_path).stderr
    assert "A deeper one." in _python("train.py", "--help", "model", cwd=tmp_path).stdout


def test_a_plugin_from_an_entry_point(tmp_path):
    (tmp_path / "deep.py").write_text(PLUGIN)
    info = tmp_path / "deep_models-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deep-models\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[isotrain.plugins]\ndeep = deep:enable\n")
    enabled = _python("-m", "trainer", "train", "plugins=[deep]", "model=deep", "--cfg", "job", cwd=tmp_path)
    assert "num_layers: 9" in enabled.stdout, enabled.stderr
    assert "model=deep is not an option" in _python("-m", "trainer", "train", "model=deep", cwd=tmp_path).stderr
    assert "did you mean plugins=[deep]?" in _python("-m", "trainer", "train", "plugins=[dep]", cwd=tmp_path).stderr
    versions = _python("-c", "from trainer.command_line import plugins; print(plugins.versions(['deep']))", cwd=tmp_path).stdout
    assert versions.strip() == "{'deep': 'deep-models 1.2'}"


@pytest.mark.parametrize(("group", "name", "cls"), [("modle", "x", type), ("model", "llama_tiny", type), ("model", "x", int)])
def test_register_refuses(group, name, cls):
    with pytest.raises(ValueError, match="register"):
        config.register(group, name, cls)

"""What a user gets who installs the wheel and works in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["train.steps=2", "train.global_batch=4", "optimizer.warmup_steps=1", "precision=fp32", "sample.max_new_tokens=4"]
TINY += ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]


def call(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    call(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (built,) = folder.glob("isotrain-*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The bin folder of an environment that holds the wheel, and borrows what it depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    call(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_carries_every_config_launch_file_and_module_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    beside = {f"trainer/{file.relative_to(ROOT)}" for folder in ("configs", "launch") for file in ROOT.glob(f"{folder}/**/*.yaml")}
    modules = {str(file.relative_to(ROOT)) for file in ROOT.glob("trainer/**/*.py")}
    assert packed == beside | modules
    assert "trainer/launch/accelerate/zero3.yaml" in packed


def test_commands_work_in_an_empty_folder(scripts, tmp_path):
    isotrain = scripts / "isotrain"
    where = call(scripts / "python", "-c", "import trainer; print(trainer.__file__)", cwd=tmp_path)
    assert where.startswith(str(scripts.parent))
    assert "prepare" in call(isotrain, "--help", cwd=tmp_path)
    assert "strategy" in call(isotrain, "prepare", "--help", cwd=tmp_path)


def test_prepare_then_train_in_an_empty_folder(scripts, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text(Path(json.__file__).read_text())
    data = ["data=text", f"data.path={text}", "data.document=line", "data.sequence_length=32", "data.tokenizer.vocab_size=300"]
    data.append(f"data.cache_dir={tmp_path / 'cache'}")
    call(scripts / "isotrain", "prepare", *data, cwd=tmp_path)
    call(scripts / "isotrain", "train", *data, *TINY, "run.dir=out", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert json.loads((tmp_path / "out/exit.json").read_text())["code"] == 0

"""The house keeps its rules; and each rule is shown to catch a house that breaks it."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import rules
from tests.architecture.sources import read_sources

ROOT = Path(__file__).parents[2]
RULES = [rules.direction_problems, rules.circle_problems, rules.size_problems, rules.unsafe_call_problems]


def name_of(rule):
    return rule.__name__


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_house_keeps(rule):
    problems = list(rule(read_sources(ROOT)))
    assert not problems, "\n".join(problems)


def test_half_of_the_files_are_short():
    sizes = [source.num_lines for source in read_sources(ROOT) if source.num_lines]
    median = statistics.median(sizes)
    print(f"{len(sizes)} files, {sum(sizes)} lines, median {median:.0f}, longest {max(sizes)}")
    assert median <= 180


def test_configs_are_read_without_torch():
    code = "import sys, trainer.config; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


GOOD = {"trainer/errors.py": "", "trainer/data/rows.py": "from trainer import errors\n", "train.py": "import trainer.data.rows\n"}
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60

BAD = [
    (rules.direction_problems, {"trainer/data/rows.py": "import trainer.run"}, "rows.py:1 imports trainer.run, which lives above"),
    (rules.direction_problems, {"trainer/data/rows.py": "from trainer import run"}, "rows.py:1 imports trainer.run, which lives above"),
    (rules.direction_problems, {"trainer/data/rows.py": "from ..run import go"}, "rows.py:1 imports trainer.run, which lives above"),
    (rules.direction_problems, {"trainer/data/rows.py": "from trainer import register"}, "rows.py:1 imports trainer, which lives above"),
    (rules.direction_problems, {"trainer/data/rows.py": "def f():\n    import trainer.run"}, "rows.py:2 imports trainer.run"),
    (rules.direction_problems, {"trainer/types.py": "if TYPE_CHECKING:\n    import trainer.run"}, "types.py:2 imports trainer.run"),
    (rules.direction_problems, {"trainer/protocols.py": "import trainer.run"}, "protocols.py:1 imports trainer.run"),
    (rules.direction_problems, {"trainer/attic.py": ""}, "attic.py stands on no floor"),
    (
        rules.circle_problems,
        {"trainer/data/a.py": "import trainer.data.b", "trainer/data/b.py": "from trainer.data import a"},
        "in a circle",
    ),
    (rules.size_problems, {"trainer/run.py": "x = 1\n" * 401}, "run.py has 401 lines; at most 400"),
    (rules.size_problems, {"trainer/trainer.py": "x = 1\n" * 351}, "trainer.py has 351 lines; at most 350"),
    (rules.size_problems, {"trainer/run.py": LONG_FUNCTION}, "run.py:1 f has 61 lines; at most 60"),
    (rules.size_problems, {"trainer/data/utils.py": ""}, "utils.py: name the file after what it holds"),
    (rules.unsafe_call_problems, {"trainer/run.py": "import pickle\npickle.load(f)"}, "run.py:2 pickle.load runs code"),
    (rules.unsafe_call_problems, {"trainer/run.py": "from pickle import loads as read\nread(b)"}, "run.py:2 read runs code"),
    (rules.unsafe_call_problems, {"trainer/run.py": "def f():\n    import torch as t\n    t.load(p)"}, "run.py:3 t.load runs code"),
    (rules.unsafe_call_problems, {"trainer/run.py": "torch.load(p, weights_only=False)"}, "torch.load runs code"),
    (rules.unsafe_call_problems, {"trainer/run.py": "subprocess.run(c, shell=True)"}, "shell= runs a shell"),
    (rules.unsafe_call_problems, {"trainer/run.py": "import os\nos.system(c)"}, "os.system runs a shell"),
    (rules.unsafe_call_problems, {"trainer/run.py": "import yaml\nyaml.load(t, L)"}, "yaml.load builds objects"),
    (rules.unsafe_call_problems, {"trainer/run.py": "eval(t)"}, "eval runs text"),
    (rules.unsafe_call_problems, {"trainer/run.py": "exec(t)"}, "exec runs text"),
    (rules.unsafe_call_problems, {"trainer/run.py": "M.from_pretrained(p, trust_remote_code=flag)"}, "runs code from the model"),
    (rules.unsafe_call_problems, {"trainer/run.py": "import torch.distributed as dist\ndist.all_gather_object(a, b)"}, "unpickles"),
]
FINE = [
    {"trainer/run.py": "import trainer.data.rows\nfrom trainer.errors import Refused"},
    {"trainer/protocols.py": "if TYPE_CHECKING:\n    import trainer.run"},
    {"trainer/data/a.py": "import trainer.data.b", "trainer/data/b.py": "def f():\n    import trainer.data.a"},
    {"trainer/run.py": "torch.load(p, weights_only=True)\nmodel.eval()\njson.load(f)\nM.from_pretrained(p, trust_remote_code=False)"},
]


def build_tree(root, files):
    for path, text in {"trainer/run.py": "", **GOOD, **files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for folder in [root / "trainer", *(path.parent for path in root.glob("trainer/*/*.py"))]:
        (folder / "__init__.py").touch()
    return read_sources(root)


@pytest.mark.parametrize(("rule", "files", "expected"), BAD, ids=[f"{name_of(rule)}-{text}" for rule, _, text in BAD])
def test_a_broken_rule_is_named(rule, files, expected, tmp_path):
    problems = list(rule(build_tree(tmp_path, files)))
    assert len(problems) == 1
    assert expected in problems[0]


@pytest.mark.parametrize("files", FINE, ids=range(len(FINE)))
def test_what_is_allowed_is_left_alone(files, tmp_path):
    sources = build_tree(tmp_path, files)
    assert [problem for rule in RULES for problem in rule(sources)] == []

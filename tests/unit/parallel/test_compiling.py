"""What train.compile needs of a machine is asked for before anything starts."""

import os

import pytest
import torch

from trainer.assembly import open_job
from trainer.config import load
from trainer.distributed.launch import read_launch
from trainer.errors import Refused
from trainer.parallel import compiling
from trainer.parallel.compiling import compile_problems
from trainer.testing import last_wins, run_ranks


def test_a_machine_with_a_compiler_has_no_problem(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(compile_problems(torch.device("cpu"), False, False)) == []


@pytest.mark.parametrize(("variable", "named"), [(None, "no g++"), ("clang++-99", "no clang++-99")])
def test_what_is_missing_is_named_with_the_way_to_get_it(monkeypatch, tmp_path, variable, named):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if variable:
        monkeypatch.setenv("CXX", variable)
    compiler, headers = compile_problems(torch.device("cpu"), False, False)
    assert named in compiler and "apt-get install g++" in compiler
    assert "apt-get install python3-dev" in headers


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    (problem,) = compile_problems(torch.device("cuda"), False, False)
    assert "pip install triton" in problem


def test_dropout_inside_of_split_blocks_is_refused(tiny):
    arguments = last_wins([*tiny, "objective=masked_lm", "model=bert_tiny", "train.compile=true", "strategy=tensor"])
    for dropout, refused in (("0", False), ("0.1", True)):
        for answer in run_ranks(refusal, 2, [*arguments, f"model.dropout={dropout}"]):
            assert ("train.compile=true does not go with dropout" in answer) == refused


def test_split_blocks_that_are_computed_again_as_a_whole_are_refused(tiny):
    arguments = last_wins([*tiny, "train.compile=true", "strategy=tensor"])
    for kind, refused in (("selective", False), ("full", True)):
        for answer in run_ranks(refusal, 2, [*arguments, f"train.activation_checkpointing={kind}"]):
            assert ("train.compile=true does not go with train.activation_checkpointing=full" in answer) == refused


def refusal(arguments):
    """On a rank: what the model gate says, or nothing."""
    launch = read_launch(os.environ)
    try:
        open_job(load(arguments, launch.world_size), launch)
    except Refused as error:
        return str(error)
    return ""

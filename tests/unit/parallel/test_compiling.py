"""What train.compile needs of a machine is asked for before anything starts."""

import pytest
import torch

from trainer.parallel import compiling
from trainer.parallel.compiling import compile_problems


def test_a_machine_with_a_compiler_has_no_problem(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(compile_problems(True, torch.device("cpu"))) == []


@pytest.mark.parametrize(("variable", "named"), [(None, "no g++"), ("clang++-99", "no clang++-99")])
def test_what_is_missing_is_named_with_the_way_to_get_it(monkeypatch, tmp_path, variable, named):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if variable:
        monkeypatch.setenv("CXX", variable)
    compiler, headers = compile_problems(True, torch.device("cpu"))
    assert named in compiler and "apt-get install g++" in compiler
    assert "apt-get install python3-dev" in headers
    assert list(compile_problems(False, torch.device("cpu"))) == []


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    (problem,) = compile_problems(True, torch.device("cuda"))
    assert "pip install triton" in problem

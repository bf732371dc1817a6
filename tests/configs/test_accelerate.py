"""What accelerate says becomes the run's config, read from the environment that the installed accelerate makes of a YAML."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.configs.accelerate_environment import environment
from tests.configs.test_cli_processes import COUNT_TORCH, ENVIRONMENT
from trainer.command_line.decided import _accumulation, load
from trainer.config import load as load_alone
from trainer.config import to_yaml
from trainer.distributed.launch import read_launch, without_local_rank
from trainer.errors import Refused

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "fsdp": ["strategy=fsdp", "precision=bf16"],
    "zero3": ["strategy=zero3", "precision=bf16"],
    "cpu": ["strategy=ddp", "precision=fp32"],
}
HSDP = {"parallelism_config_dp_replicate_size": 2, "parallelism_config_dp_shard_size": 4}
CASES = [
    ("MULTI_GPU", {}, ["precision=fp32"]),
    ("MULTI_GPU", {"mixed_precision": "bf16"}, ["precision=bf16"]),
    ("MULTI_GPU", {"parallelism_config": {"parallelism_config_dp_replicate_size": 8}}, ["strategy.replicate=8", "precision=fp32"]),
    ("DEEPSPEED", {"deepspeed_config": {}}, ["strategy=zero2", "precision=fp32"]),
    ("DEEPSPEED", {"deepspeed_config": {"zero_stage": 1, "gradient_clipping": 1.0}}, ["strategy=zero1", "precision=fp32"]),
    (
        "DEEPSPEED",
        {
            "mixed_precision": "bf16",
            "deepspeed_config": {
                "zero_stage": 3,
                "offload_optimizer_device": "cpu",
                "offload_param_device": "cpu",
                "gradient_accumulation_steps": "auto",
                "zero3_init_flag": True,
            },
        },
        ["strategy=zero3", "strategy.offload_optimizer=cpu", "strategy.offload_parameters=cpu", "precision=bf16"],
    ),
    ("DEEPSPEED", {"deepspeed_config": {"gradient_accumulation_steps": 1}}, ["strategy=zero2", "precision=fp32"]),
    ("FSDP", {"fsdp_config": {"fsdp_version": 2}}, ["strategy=fsdp", "precision=fp32"]),
    (
        "FSDP",
        {"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False, "fsdp_offload_params": True}},
        ["strategy=fsdp", "strategy.reshard_after_forward=false", "strategy.cpu_offload=true", "precision=fp32"],
    ),
    (
        "FSDP",
        {"fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}},
        ["strategy=fsdp", "train.activation_checkpointing=full", "precision=fp32"],
    ),
    (
        "FSDP",
        {"mixed_precision": "bf16", "fsdp_config": {"fsdp_version": 2}, "parallelism_config": HSDP},
        ["strategy=hsdp", "strategy.replicate=2", "strategy.shard=4", "precision=bf16"],
    ),
    (
        "FSDP",
        {"fsdp_config": {"fsdp_version": 2}, "parallelism_config": {"parallelism_config_dp_shard_size": 8}},
        ["strategy=fsdp", "strategy.replicate=1", "strategy.shard=8", "precision=fp32"],
    ),
    (
        "FSDP",
        {
            "fsdp_config": {"fsdp_version": 2},
            "parallelism_config": {"parallelism_config_dp_shard_size": 4, "parallelism_config_tp_size": 2},
        },
        ["strategy=fsdp", "strategy.replicate=1", "strategy.shard=4", "strategy.tensor=2", "precision=fp32"],
    ),
    ("MULTI_GPU", {"parallelism_config": {"parallelism_config_tp_size": 8}}, ["strategy=tensor", "strategy.tensor=8", "precision=fp32"]),
]


def said(tmp_path, kind, keys):
    """The environment of a YAML with 8 processes."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": kind, "num_processes": 8, "main_process_port": 0, **keys}))
    return environment("--config_file", str(file))[0]


@pytest.mark.parametrize(("kind", "keys", "same_as"), CASES, ids=[" ".join([kind, *same_as]) for kind, _, same_as in CASES])
def test_the_yaml_decides_what_the_command_line_does_not(kind, keys, same_as, tmp_path):
    config, _ = load(["train.global_batch=32"], 8, None, said(tmp_path, kind, keys))
    assert to_yaml(config) == to_yaml(load_alone(["train.global_batch=32", *same_as], 8))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_are_what_they_say(name):
    variables, number = environment("--config_file", str(ROOT / f"launch/accelerate/{name}.yaml"))
    config, _ = load([], number, None, variables)
    assert number == 2 and to_yaml(config) == to_yaml(load_alone(SHIPPED[name], 2))
    assert {path.stem for path in (ROOT / "launch/accelerate").iterdir()} == set(SHIPPED)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["strategy=zero3"], {"zero_stage": 3}),
        (["strategy.offload_optimizer=cpu"], {"zero_stage": 3, "offload_optimizer_device": "cpu"}),
        (["experiment=gpt2_stdlib"], {"zero_stage": 3}),
        (["--config-dir", "strategy=mine"], {"zero_stage": 3}),
    ],
)
def test_the_same_on_the_command_line_is_fine(arguments, keys, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/mine.yaml").write_text("defaults: [zero3, _self_]\nbucket_elements: 1000\n")
    own = str(tmp_path) if "--config-dir" in arguments else None
    typed = [argument for argument in arguments if argument != "--config-dir"]
    config, _ = load(typed, 2, own, said(tmp_path, "DEEPSPEED", {"deepspeed_config": keys}))
    assert config.strategy.stage == 3 and config.strategy.bucket_elements == (1000 if own else 50_000_000)
    assert config.strategy.offload_optimizer == keys.get("offload_optimizer_device")


def test_what_accelerate_says_by_itself_gives_way(tmp_path):
    silent = said(tmp_path, "MULTI_GPU", {})
    for typed in ("precision=bf16", "precision.compute=bf16", "strategy=fsdp", "strategy=zero1"):
        group = typed.partition("=")[0]
        config, notes = load([typed], 2, None, silent)
        assert to_yaml(config) == to_yaml(load_alone([typed, *([] if "precision" in typed else ["precision=fp32"])], 2))
        assert group != "precision" or "precision" not in notes
    sharded = said(tmp_path, "FSDP", {"fsdp_config": {"fsdp_version": 2}})
    assert load(["strategy.cpu_offload=true", "strategy.reshard_after_forward=false"], 2, None, sharded)[0].strategy.cpu_offload


def test_the_summary_is_told_what_was_decided_and_what_is_not_used(tmp_path):
    keys = {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "none", "zero3_init_flag": True}
    _, notes = load([], 2, None, said(tmp_path, "DEEPSPEED", {"mixed_precision": "bf16", "deepspeed_config": keys}))
    assert notes == {
        "strategy": "from accelerate's config: zero_stage: 3, offload_optimizer_device: cpu",
        "precision": "from accelerate's config: mixed_precision: bf16",
        "accelerate": "not used: zero3_init_flag (stage 3 is always built sharded)",
    }
    config, notes = load([], 1, None, environment("--cpu", "--num_processes", "1")[0])
    assert config.run.device == "cpu" and notes["accelerate"] == "run.device=cpu is use_cpu: true"
    assert load(["strategy=ddp"], 2, None, {}) == (load_alone(["strategy=ddp"], 2), {})


@pytest.mark.parametrize("arguments", [("--cpu", "--num_processes", "2"), ("--config_file", "MULTI_CPU"), ("--config_file", "NO")])
def test_one_process_instead_of_several_is_explained(arguments, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"distributed_type: '{arguments[1]}'\nnum_processes: 2\nuse_cpu: true\n")
    variables, number = environment(
        *(str(file) if argument == arguments[1] and "_" in arguments[0] else argument for argument in arguments)
    )
    assert number == 1
    with pytest.raises(Refused, match="launch/accelerate/cpu"):
        read_launch(variables)
    assert not read_launch(environment("--cpu", "--num_processes", "1")[0]).launched


def test_accumulation_is_that_of_ranks_that_see_different_samples():
    arguments = ["strategy=fsdp", "train.global_batch=32", "train.micro_batch=2"]
    assert _accumulation(load_alone(arguments, 8), 8) == 2
    assert _accumulation(load_alone([*arguments, "strategy.tensor=4"], 8), 8) == 8


def test_the_local_rank_of_the_deepspeed_launcher_is_taken_out():
    ranks = {"LOCAL_RANK": "1"}
    assert without_local_rank(["train", "--local_rank=1", "strategy=zero2"], ranks) == ["train", "strategy=zero2"]
    assert without_local_rank(["--local-rank=1", "train"], ranks) == ["train"]
    assert without_local_rank(["train", "--local_rank=0"], {}) == ["train"]
    for argument, environ in (("--local_rank=0", ranks), ("--local_rank=1", {}), ("--local_rank=", ranks)):
        with pytest.raises(Refused, match=f"{argument} contradicts the environment"):
            without_local_rank(["train", argument], environ)


def test_it_is_read_fast_and_without_torch():
    variables, _ = environment("--config_file", str(ROOT / "launch/accelerate/zero3.yaml"))
    told = {name: value for name, value in variables.items() if name.startswith("ACCELERATE_")}

    def run(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        asked = [sys.executable, *command, "--cfg", "job"]
        done = subprocess.run(asked, cwd=ROOT, env=ENVIRONMENT | told, capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "stage: 3" in done.stdout
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert "HEAVY []" in run("-c", COUNT_TORCH)[0]
    assert statistics.median(run("train.py")[1] for _ in range(5)) <= 1.0
    assert not any(name.startswith("ACCELERATE_") for name in os.environ)

"""What ``accelerate launch`` says in the environment, as what it would have a run's config be; accelerate itself is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Number = TypeVar("Number", int, float)

CONFIG = "accelerate's config"
ALWAYS = "ACCELERATE_MIXED_PRECISION"
"""By this accelerate is known. Each of its launchers sets it, whatever the YAML says, and no other launcher does.

(ACCELERATE_DYNAMO_BACKEND is missing for DEEPSPEED, ACCELERATE_USE_CPU where it starts several processes.)
"""
_PRECISIONS = {"no": "fp32", "bf16": "bf16"}
_OFFLOAD = (("offload_optimizer_device", "strategy.offload_optimizer"), ("offload_param_device", "strategy.offload_parameters"))
_OTHER_AXES = {"cp": "context", "sp": "sequence"}
_NOT_USED = {
    "fsdp_auto_wrap_policy": ("FSDP_AUTO_WRAP_POLICY", "every block of the model is wrapped"),
    "fsdp_transformer_layer_cls_to_wrap": ("FSDP_TRANSFORMER_CLS_TO_WRAP", "every block of the model is wrapped"),
    "fsdp_state_dict_type": ("FSDP_STATE_DICT_TYPE", "checkpoints fit every strategy"),
    "fsdp_backward_prefetch": ("FSDP_BACKWARD_PREFETCH", "FSDP2 has no such choice"),
    "zero3_init_flag": ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "stage 3 is always built sharded"),
    "zero3_save_16bit_model": ("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "isotrain export writes the model"),
    "deepspeed_moe_layer_cls_names": ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "no model has experts"),
}
"""Keys of the YAML whose variables are set only where the user said something, and why that changes nothing here.

The variables that are set in any case (FSDP_SYNC_MODULE_STATES, FSDP_USE_ORIG_PARAMS ...) change nothing either, and are not worth a word.
"""


@dataclass(frozen=True)
class Claim:
    """One thing that a run's config is to be.

    Attributes:
        key: a group, or a key.
        value: the option, or the value as it would be typed.
        yaml: what says so, as it stands in the YAML.
        certain: whether the user said it; False: accelerate says the same where its user said nothing, so it gives way.
        implied: follows from the group's option: compared with what the user typed, never set.
    """

    key: str
    value: str
    yaml: str
    certain: bool = True
    implied: bool = False


@dataclass
class Told:
    """All that accelerate says.

    Attributes:
        claims: what the config is to be, a group before its keys.
        problems: what cannot be, one sentence each.
        unused: keys of the YAML that change nothing here, each with the reason.
        accumulation: micro-batches per step, or None where it says nothing.
        max_norm: to which gradients are clipped, 0: not at all; None where it says nothing.
    """

    claims: list[Claim] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    accumulation: int | None = None
    max_norm: float | None = None


def read(environ: Mapping[str, str]) -> Told | None:
    """What accelerate says to a process that it has started; None: it has not started this one."""
    if not environ.get(ALWAYS):
        return None
    told = Told()
    sizes = _sizes(environ, told)
    if _true(environ, "ACCELERATE_USE_DEEPSPEED"):
        _deepspeed(environ, told, sizes)
    elif _true(environ, "ACCELERATE_USE_FSDP"):
        _fsdp(environ, told, sizes)
    elif _true(environ, "ACCELERATE_USE_MEGATRON_LM"):
        told.problems.append(_refusal("distributed_type: MEGATRON_LM", "is not available", "use FSDP, DEEPSPEED or MULTI_GPU"))
    else:
        _plain(told, sizes)
    _precision(environ[ALWAYS].lower(), told)
    if _true(environ, "ACCELERATE_USE_CPU"):  # said to a single process only
        told.claims.append(Claim("run.device", "cpu", "use_cpu: true"))
    if (backend := environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        told.problems.append(_refusal(f"dynamo_backend: {backend}", "asks to compile the model, which is not available", "leave it out"))
    told.unused = {key: why for key, (variable, why) in _NOT_USED.items() if environ.get(variable)}
    return told


def _precision(said: str, told: Told) -> None:
    if said not in _PRECISIONS:
        told.problems.append(_refusal(f"mixed_precision: {said}", "is not available", "set bf16, or no, which is fp32"))
        return
    certain, ours, yaml = said != "no", _PRECISIONS[said], f"mixed_precision: {said}"
    told.claims += [Claim("precision", ours, yaml, certain), Claim("precision.compute", ours, yaml, certain, implied=True)]


def _deepspeed(environ: Mapping[str, str], told: Told, sizes: dict[str, int]) -> None:
    prefix = "ACCELERATE_DEEPSPEED_"
    if file := environ.get(f"{prefix}CONFIG_FILE"):
        fix = (
            "put zero_stage and the offload devices under deepspeed_config, and other keys on the command line as strategy.deepspeed={...}"
        )
        told.problems.append(_refusal(f"deepspeed_config_file: {file}", "is not read", fix))
        return
    stage = environ.get(f"{prefix}ZERO_STAGE")
    yaml = f"zero_stage: {stage}" if stage else "distributed_type: DEEPSPEED"  # which by itself means stage 2
    stage = stage or "2"
    if stage not in ("1", "2", "3"):
        told.problems.append(_refusal(yaml, "spreads nothing", "set 1, 2 or 3, or distributed_type: MULTI_GPU, which is strategy=ddp"))
        return
    told.claims += [Claim("strategy", f"zero{stage}", yaml), Claim("strategy.stage", stage, yaml, implied=True)]
    for name, key in _OFFLOAD:
        if device := environ.get(f"{prefix}{name.upper()}"):
            told.claims.append(Claim(key, "null" if device == "none" else device, f"{name}: {device}"))
    if sizes:
        said = ", ".join(f"parallelism_config_{axis}_size: {size}" for axis, size in sizes.items())
        told.problems.append(_refusal(said, "goes with distributed_type: FSDP only", "leave parallelism_config out"))
    told.accumulation = _number(environ, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int)
    told.max_norm = _number(environ, "ACCELERATE_GRADIENT_CLIPPING", float)


def _fsdp(environ: Mapping[str, str], told: Told, sizes: dict[str, int]) -> None:
    version = environ.get("FSDP_VERSION") or "1"
    if version != "2":
        why = "means FSDP1, which accelerate takes where nothing is said, and which is not available"
        told.problems.append(_refusal(f"fsdp_version: {version}", why, "set fsdp_version: 2 under fsdp_config"))
    if _true(environ, "FSDP_ACTIVATION_CHECKPOINTING"):
        told.claims.append(Claim("train.activation_checkpointing", "full", "fsdp_activation_checkpointing: true"))
    if _true(environ, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"):
        told.problems.append(_refusal("fsdp_activation_checkpointing_offload: true", "is not available", "set it to false"))
    if modules := environ.get("FSDP_IGNORED_MODULES"):
        told.problems.append(_refusal(f"fsdp_ignored_modules: {modules}", "is not available", "leave it out"))
    replicate, shard = sizes.get("dp_replicate", 1), sizes.get("dp_shard", 1)
    named = {axis: f"parallelism_config_dp_{axis}_size: {size}" for axis, size in (("replicate", replicate), ("shard", shard))}
    if replicate > 1 and shard == 1:
        told.problems.append(_refusal(named["replicate"], "without parallelism_config_dp_shard_size above 1 shards nothing", "set both"))
        return
    preset, yaml = ("hsdp", named["replicate"]) if replicate > 1 else ("fsdp", "distributed_type: FSDP")
    told.claims += [Claim("strategy", preset, yaml), Claim("strategy.fully_shard", "true", yaml, implied=True)]
    if sizes:
        told.claims += [Claim(f"strategy.{axis}", str(sizes.get(f"dp_{axis}", 1)), named[axis]) for axis in named]
        told.claims += _tensor(sizes)
    resharding = environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if resharding == "false":
        told.claims.append(Claim("strategy.reshard_after_forward", "false", "fsdp_reshard_after_forward: false"))
    elif resharding != "true" and version == "2":  # version 1 has the names of its sharding strategies there
        told.problems.append(_refusal(f"fsdp_reshard_after_forward: {resharding}", "is not true or false", "set one of them"))
    if _true(environ, "FSDP_OFFLOAD_PARAMS"):
        told.claims.append(Claim("strategy.cpu_offload", "true", "fsdp_offload_params: true"))


def _plain(told: Told, sizes: dict[str, int]) -> None:
    """Neither FSDP nor DeepSpeed: processes and no more, unless the YAML says how many copies there are."""
    if size := sizes.get("dp_shard"):
        told.problems.append(_refusal(f"parallelism_config_dp_shard_size: {size}", "shards", "set distributed_type: FSDP"))
    elif sizes:
        preset, axis = ("tensor", "tp") if "tp" in sizes else ("ddp", "dp_replicate")
        yaml = f"parallelism_config_{axis}_size: {sizes[axis]}"
        told.claims += [Claim("strategy", preset, yaml), Claim("strategy.fully_shard", "false", yaml, implied=True)]
        if replicate := sizes.get("dp_replicate"):
            told.claims.append(Claim("strategy.replicate", str(replicate), f"parallelism_config_dp_replicate_size: {replicate}"))
        told.claims += _tensor(sizes)


def _tensor(sizes: dict[str, int]) -> list[Claim]:
    """The axis that splits tensors, where it is longer than one."""
    return [Claim("strategy.tensor", str(size), f"parallelism_config_tp_size: {size}") for axis, size in sizes.items() if axis == "tp"]


def _sizes(environ: Mapping[str, str], told: Told) -> dict[str, int]:
    """The axes of ``parallelism_config`` that are longer than one; those that are not available are refused."""
    sizes: dict[str, int] = {}
    if not _true(environ, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        return sizes
    for axis in ("dp_replicate", "dp_shard", "tp", *_OTHER_AXES):
        said = environ.get(f"PARALLELISM_CONFIG_{axis.upper()}_SIZE", "1")
        yaml = f"parallelism_config_{axis}_size: {said}"
        if not said.isdecimal() or int(said) < 1:
            told.problems.append(_refusal(yaml, "is not a number of ranks", "set a whole number, at least 1"))
        elif int(said) > 1 and axis in _OTHER_AXES:
            told.problems.append(_refusal(yaml, f"asks for {_OTHER_AXES[axis]} parallelism, which is not available", "set it to 1"))
        elif int(said) > 1:
            sizes[axis] = int(said)
    return sizes


def _number(environ: Mapping[str, str], name: str, kind: Callable[[str], Number]) -> Number | None:
    """A number that accelerate passes on; None where it says nothing, or ``auto``: whatever the program does."""
    try:
        return kind(environ[name])
    except (KeyError, ValueError):
        return None


def _true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() == "true"


def _refusal(yaml: str, why: str, fix: str) -> str:
    return f"{yaml} in {CONFIG} {why}: {fix}."


def differences(told: Told, accumulation: int | None, max_norm: float | None) -> Iterator[str]:
    """Where the run's own batch and clipping, which accelerate does not decide, are not what its YAML says.

    Args:
        told: what accelerate says.
        accumulation: the run's micro-batches per step on a rank; None where the number of ranks is not known.
        max_norm: ``optimizer.max_grad_norm``.
    """
    if told.accumulation not in (None, 1, accumulation) and accumulation is not None:  # 1 stands in every YAML that accelerate writes
        yield (
            f"gradient_accumulation_steps: {told.accumulation} in {CONFIG} is not the {accumulation} that train.global_batch, "
            f"train.micro_batch and the number of ranks make: set those, and leave it out of the YAML."
        )
    if told.max_norm not in (None, max_norm or 0.0):
        typed = told.max_norm or "null"
        yield (
            f"gradient_clipping: {told.max_norm} in {CONFIG} contradicts optimizer.max_grad_norm={max_norm or 'null'}: add "
            f"optimizer.max_grad_norm={typed}, or leave it out of the YAML."
        )

"""What the launcher says about this process: its rank and its neighbours, read once from the environment. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.errors import Refused

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
ONE_OF_ACCELERATE = "ACCELERATE_USE_CPU"
"""Set, to True or False, by the launcher of accelerate that starts one process, and by no other."""
_LOCAL_RANK = re.compile(r"--local[_-]rank=(.*)")


@dataclass(frozen=True)
class Launch:
    """This process among those of its run.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: number of processes.
        local_rank: place among the processes of this machine.
        local_world_size: number of processes on this machine.
        launched: whether a launcher (torchrun, srun, accelerate) started it; False: it is alone.
        notes: what the launcher's own configuration has decided, in words, by the fact of the opening summary that they go with.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: all of them, or none of the first three (one rank).

    LOCAL_WORLD_SIZE is optional: without it all ranks are taken to be on one machine.

    Raises:
        Refused: anything in between, naming what is missing; a number that is none; a rank outside its world; one process of
            accelerate's that should have been several.
    """
    if not any(environ.get(name) for name in RANKS):
        if ONE_OF_ACCELERATE in environ and all(environ.get(name) for name in ADDRESS):
            raise Refused(_several_were_asked_for())
        return Launch()
    names = (*RANKS, *ADDRESS)
    if missing := [name for name in names if not environ.get(name)]:
        present = ", ".join(name for name in names if environ.get(name))
        raise Refused(
            f"The launcher's environment is incomplete: {present} is set, {', '.join(missing)} is not. Set all of {', '.join(names)}, "
            f"or start with torchrun, or unset {', '.join(RANKS)} to run on one rank."
        )
    rank, world_size, local_rank = _integers(environ, (*RANKS, "MASTER_PORT"))[:3]
    (local_world_size,) = _integers(environ, ("LOCAL_WORLD_SIZE",)) if environ.get("LOCAL_WORLD_SIZE") else (world_size,)
    problems = [
        f"{name}={value} is not below {of}={size}: ranks count from 0."
        for name, value, of, size in (
            ("RANK", rank, "WORLD_SIZE", world_size),
            ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world_size),
        )
        if not 0 <= value < size
    ]
    if problems:
        raise Refused(problems)
    return Launch(rank, world_size, local_rank, local_world_size, launched=True)


def _several_were_asked_for() -> str:
    """What to do about accelerate's launcher for one process, which sets an address where several were asked for, and starts one."""
    return (
        "accelerate launch was asked for several processes and has started one without RANK, as it does with --cpu, MULTI_CPU, "
        "distributed_type: 'NO' or no GPU. Give it a YAML with distributed_type: MULTI_GPU, use_cpu: true and num_processes: 2, which "
        "starts 2 on CPU (accelerate launch --config_file launch/accelerate/cpu.yaml train.py ...), or use torchrun; for one rank, pass "
        f"--num_processes 1 and unset {' and '.join(ADDRESS)}."
    )


def without_local_rank(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The command line without ``--local_rank=N``, which the deepspeed launcher puts first; LOCAL_RANK says the same.

    Raises:
        Refused: LOCAL_RANK says something else.
    """
    found = [match for argument in arguments if (match := _LOCAL_RANK.fullmatch(argument))]
    known = environ.get("LOCAL_RANK", "")
    for match in found:
        if match[1] != (known or "0"):
            is_known = f"LOCAL_RANK={known}" if known else "no LOCAL_RANK, so this is the only rank"
            raise Refused(f"{match[0]} contradicts the environment, which has {is_known}: leave it out, or start with a launcher.")
    return [argument for argument in arguments if not _LOCAL_RANK.fullmatch(argument)]


def _integers(environ: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    wrong = [name for name in names if not environ[name].strip().isdecimal()]
    if wrong:
        raise Refused([f"{name}={environ[name]} in the environment is not a whole number." for name in wrong])
    return [int(environ[name]) for name in names]

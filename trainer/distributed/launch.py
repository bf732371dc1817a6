"""What the launcher says about this process: its rank and its neighbours, read once from the environment. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import Refused

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process among those of its run.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: number of processes.
        local_rank: place among the processes of this machine.
        local_world_size: number of processes on this machine.
        launched: whether a launcher (torchrun, srun, accelerate) started it; False: it is alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: all of them, or none of the first three (one rank).

    LOCAL_WORLD_SIZE is optional: without it all ranks are taken to be on one machine.

    Raises:
        Refused: anything in between, naming what is missing; a number that is none; a rank outside its world.
    """
    if not any(environ.get(name) for name in RANKS):
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


def _integers(environ: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    wrong = [name for name in names if not environ[name].strip().isdecimal()]
    if wrong:
        raise Refused([f"{name}={environ[name]} in the environment is not a whole number." for name in wrong])
    return [int(environ[name]) for name in names]

"""What a checkpoint of 300 MB costs the training that it interrupts: waited for, and written in the background; peers beside them.

    python benchmarks/checkpoint.py [--rounds 9] [--layers 14] [--calm 8]

One rank, and then two with fsdp, train a Llama of 25 M parameters in fp32 with one thread each. In every round each contender saves once, in
an order that is drawn anew: some steps before it are timed (calm), then the seconds in which no step can run (blocked), then those steps that begin and end while
files are being written. Beside ours, waiting and in the background, are ours waiting without hashing, rank 0's torch.save of the gathered
state, and torch's own dcp.async_save in a thread.

Prints the numbers and writes benchmarks/results/checkpoint.json. Needs no GPU, and 2 GB on the disk; close other programs for steady numbers.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

from machine import machine
from overhead import CORPUS, keep, overrides
from update import LOG_EVERY

TARGETS = {"blocked": 0.15, "speed": 0.9, "hashing": 0.1, "bytes": 1.02}
OURS, WAITING, UNHASHED = "background", "waiting", "waiting, without hashing"
TORCH_SAVE, ASYNC_SAVE = "torch.save by rank 0", "dcp.async_save in a thread"
REST_SECONDS = 1.0
STRATEGIES = {1: "single", 2: "fsdp"}


class Ours:
    """A contender: our checkpoints.

    Args:
        build: makes the checkpointer.
        state: gives the live tensors.
        hashed: whether files are hashed.
    """

    def __init__(self, build: Callable[[], Any], state: Callable[[], Any], hashed: bool = True):
        self._checkpointer, self._state, self._hashed = build(), state, hashed
        self._checkpointer.prepare(state(), 1)
        self._there = False

    def save(self, step: int) -> None:
        from trainer.checkpoint import writing
        from trainer.types import RunState

        original = writing.hashlib
        if not self._hashed:
            writing.hashlib = Unhashed
        try:
            self._there = self._checkpointer.save(self._state(), RunState(step, {}, 0, 0)) is not None
        finally:
            writing.hashlib = original

    def done(self) -> bool:
        return self._there or self._checkpointer.look() is not None


class Unhashed:
    """Stands for hashlib, and takes no time."""

    @staticmethod
    def sha256() -> type["Unhashed"]:
        return Unhashed

    @staticmethod
    def update(content: Any) -> None:
        pass

    @staticmethod
    def hexdigest() -> str:
        return "0" * 64


class TorchSave:
    """A contender: every tensor is gathered, and rank 0 pickles all of them."""

    def __init__(self, folder: Path, state: Callable[[], Any], rank: int):
        self._path, self._state, self._rank = folder / "state.pt", state, rank

    def save(self, step: int) -> None:
        import torch

        from tests.contracts.engines import whole

        tensors = {name: whole(tensor) for name, tensor in self._state().items()}
        if self._rank == 0:
            with self._path.open("wb") as stream:
                torch.save(tensors, stream)
                stream.flush()
                os.fsync(stream.fileno())
        torch.distributed.barrier()

    def done(self) -> bool:
        return True


class AsyncSave:
    """A contender: torch's distributed checkpoint in its own background."""

    def __init__(self, folder: Path, state: Callable[[], Any], agreement: Any):
        import torch.distributed as dist

        self._folder, self._state, self._agreement = folder, state, agreement
        self._group = dist.new_group(backend="gloo")
        self._future: Any = None

    def save(self, step: int) -> None:
        import torch.distributed.checkpoint as dcp

        writer = dcp.FileSystemWriter(self._folder / str(step))
        self._future = dcp.async_save(self._state(), storage_writer=writer, process_group=self._group)

    def done(self) -> bool:
        there: bool = self._agreement.from_first(self._future.done())
        if there:
            self._future.result()
        return there


def contenders(folder: Path, engine: Any, agreement: Any) -> dict[str, Any]:
    """All five, each with a folder of its own."""
    from trainer.checkpoint.checkpointer import Checkpointer
    from trainer.checkpoint.config import CheckpointConfig

    def ours(name: str, background: bool, hashed: bool = True) -> Ours:
        config = CheckpointConfig(keep=1, background=background)
        return Ours(
            lambda: Checkpointer(folder / name, agreement, config, None, lambda own: None, print, agreement.world_size),
            engine.state,
            hashed,
        )

    for name in ("torch", "dcp"):
        (folder / name).mkdir(exist_ok=True)
    return {
        WAITING: ours("waiting", background=False),
        OURS: ours("background", background=True),
        UNHASHED: ours("unhashed", background=False, hashed=False),
        TORCH_SAVE: TorchSave(folder / "torch", engine.state, agreement.rank),
        ASYNC_SAVE: AsyncSave(folder / "dcp", engine.state, agreement),
    }


def measure(arguments: list[str], folder: str, rounds: int, calm: int) -> dict[str, Any]:
    """On a rank: what every save of every contender took, and the steps before it and while it was written."""
    import torch
    import torch.distributed as dist

    from tests.contracts.engines import micro_batches
    from trainer import assembly
    from trainer.config import load
    from trainer.distributed.agreement import Agreement
    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group
    from trainer.distributed.sharding import local_part, num_copies
    from trainer.types import StepPlan

    launch = read_launch(os.environ)
    job = assembly.open_job(load(arguments, launch.world_size), launch)
    agreement = Agreement(start_process_group(launch, job.device, 300), launch.rank, launch.world_size)
    engine = assembly.build_engine(job)
    batches = micro_batches(job, engine, 1)
    counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
    held = [(local_part(tensor).nbytes, num_copies(tensor, launch.world_size)) for tensor in engine.state().values()]
    size = sum(agreement.gather(sum(nbytes / copies for nbytes, copies in held)))

    def step(number: int) -> float:
        began = time.perf_counter()
        engine.forward_backward(number, batches, counts)
        engine.optimizer_step(StepPlan(number, 1e-3, 1.0))
        dist.barrier()  # the rank that is slower is waited for in the step, and not in what comes after it
        return time.perf_counter() - began

    number, found = 0, []
    runners = contenders(Path(folder), engine, agreement)
    for turn in range(rounds + 1):
        names = list(runners)
        random.Random(turn).shuffle(names)  # one that always came behind the same other would pay for what that left to the disk
        for name in names:
            if launch.rank == 0:
                for old in (Path(folder) / "dcp").iterdir():
                    shutil.rmtree(old)  # the others replace theirs by themselves
                os.sync()
                time.sleep(REST_SECONDS)
            dist.barrier()
            before = [step(number := number + 1) for _ in range(calm)]
            began = time.perf_counter()
            runners[name].save(number)
            blocked, during, looks = time.perf_counter() - began, [], []
            while True:
                began = time.perf_counter()
                there = runners[name].done()
                looks.append(time.perf_counter() - began)
                if there:
                    break
                during.append(step(number := number + 1))
            blocked += sum(looks[LOG_EVERY - 1 : -1 : LOG_EVERY], looks[-1])
            found.append({"round": turn, "name": name, "blocked": blocked, "calm": before, "during": during})
    on_disk = sum(path.stat().st_size for path in (Path(folder) / "background").rglob("*") if path.is_file())
    return {"state_bytes": size, "on_disk": on_disk, "saves": [save for save in found if save["round"]]}  # the first takes memory


def summed_up(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's numbers; a save blocks as long as on the rank where it took longest."""
    rows: dict[str, Any] = {}
    for number, save in enumerate(ranks[0]["saves"]):
        row = rows.setdefault(save["name"], {"blocked_seconds": [], "speed": [], "steps_while_writing": 0})
        row["blocked_seconds"].append(max(rank["saves"][number]["blocked"] for rank in ranks))
        whole = save["during"][:-1] or save["during"]  # in the last one it was completed, unless there is no other
        if whole:
            row["speed"].append(statistics.mean(save["calm"][-len(save["calm"]) // 2 :]) / statistics.mean(whole))
            row["steps_while_writing"] += len(whole)
    for row in rows.values():
        row["blocked"] = statistics.median(row["blocked_seconds"])
        row["median_speed"] = statistics.median(row["speed"]) if row["speed"] else None
    waiting, unhashed = rows[WAITING]["blocked"], rows[UNHASHED]["blocked"]
    return {
        "state_bytes": ranks[0]["state_bytes"],
        "bytes_on_disk_ratio": ranks[0]["on_disk"] / ranks[0]["state_bytes"],
        "blocked_ratio": rows[OURS]["blocked"] / waiting,
        "hashing_share": max(0.0, 1 - unhashed / waiting),
        "step_seconds": statistics.median(seconds for save in ranks[0]["saves"] for seconds in save["calm"]),
        "contenders": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=14, help="of the model; 14 make 25 M parameters")
    parser.add_argument("--calm", type=int, default=8, help="steps that are timed before a save")
    options = parser.parse_args()
    from trainer.testing import last_wins, run_ranks

    shape = ["model.hidden_size=512", f"model.num_layers={options.layers}", "train.micro_batch=1", "data.sequence_length=32"]
    found = {}
    for ranks, strategy in STRATEGIES.items():
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
            (Path(folder) / "corpus").mkdir()
            for name in CORPUS:
                shutil.copy(Path(sysconfig.get_path("stdlib")) / name, Path(folder) / "corpus")
            arguments = last_wins([*overrides(Path(folder)), *shape, f"strategy={strategy}", f"train.global_batch={ranks}"])
            found[str(ranks)] = summed_up(run_ranks(measure, ranks, arguments, folder, options.rounds, options.calm, timeout=1500.0))
    results = {
        "what": "seconds in which training waits for a checkpoint, and its speed while files are being written",
        **machine("torch", "safetensors"),
        "setting": {"layers": options.layers, "rounds": options.rounds, "calm_steps": options.calm, "threads": 1, "strategies": STRATEGIES},
        "targets": TARGETS,
        "ranks": found,
    }
    for ranks, row in found.items():
        print(f"{ranks} rank(s), {row['state_bytes'] / 1e6:.0f} MB, steps of {row['step_seconds']:.2f} s:")
        for name, one in row["contenders"].items():
            speed = f", speed while writing {one['median_speed']:.2f} ({one['steps_while_writing']} steps)" if one["speed"] else ""
            print(f"  {name:>28}: blocked {one['blocked']:.3f} s{speed}")
        shares = f"{row['blocked_ratio']:.1%} of waiting's, hashing {row['hashing_share']:.1%} of it"
        print(f"  background blocks {shares}; {row['bytes_on_disk_ratio']:.3f} x the state on disk")
    keep("checkpoint", results)


if __name__ == "__main__":
    main()

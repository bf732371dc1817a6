"""How many bytes ranks send each other in an optimizer step, beside the formula, with loops over bare torch in the same network.

    python benchmarks/traffic.py [--steps 3]

All ranks run in a network of their own (``unshare``), on which nobody else sends anything, and its one interface is read before the second
step and after the last, with a barrier at either end. So everything counts that goes over the wire: gradients, parameters, counts and losses,
the store, the packets' headers and acknowledgements. The model has 26 million parameters in fp32, beside which all but gradients and
parameters is nothing.

With N ranks, R = (N - 1)/N and ``a`` micro-batches a step, in times the model's bytes per rank: an all-reduce sends 2 R, an all-gather and a
reduce-scatter R each. Hybrid sharding is that over the ranks that share a copy, and an all-reduce of a rank's part over the copies.

Prints the numbers and writes benchmarks/results/traffic.json. Needs no GPU, and Linux with user namespaces.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine
from overhead import CORPUS, keep, overrides

TARGET = 1.02
GLOBAL_BATCH, LENGTH = 16, 16
SHAPE = ["model.hidden_size=512", "model.intermediate_size=1376", "model.num_layers=8", "model.num_heads=8"]


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        name: of it.
        ranks, accumulation: how many, and micro-batches per step.
        formula: what a rank sends a step, in models.
        more: our overrides; None: bare torch.
    """

    name: str
    ranks: int
    accumulation: int
    formula: float
    more: tuple[str, ...] | None


def cases() -> list[Case]:
    """Ours on 2 and 4 ranks with 1 and 4 micro-batches, and torch's own."""
    found = []
    for ranks in (2, 4):
        part = (ranks - 1) / ranks
        for times in (1, 4):
            found += [
                Case("ddp", ranks, times, 2 * part, ("strategy=ddp",)),
                Case("fsdp", ranks, times, 3 * part * times, ("strategy=fsdp",)),
                Case("fsdp, kept after forward", ranks, times, 2 * part * times, ("strategy=fsdp", "strategy.reshard_after_forward=false")),
            ]
        found += [Case("bare DistributedDataParallel", ranks, 1, 2 * part, None), Case("bare fully_shard", ranks, 1, 3 * part, None)]
    copies, shards = 2, 2
    within, across = (shards - 1) / shards, (copies - 1) / copies
    hybrid = 3 * within + 2 * across / shards
    return [*found, *(Case("hsdp", copies * shards, times, hybrid * times, ("strategy=hsdp",)) for times in (1, 4))]


class Meter:
    """Bytes on the network between the beginning of the second step and the end of the last."""

    def __init__(self, steps: int):
        self._last = steps
        self._begun = 0
        self.bytes_per_step = 0.0

    def before(self, step: int) -> None:
        if step == 2:
            self._begun = self._read()

    def after(self, step: int) -> None:
        if step == self._last:
            self.bytes_per_step = (self._read() - self._begun) / (self._last - 1)

    @staticmethod
    def _read() -> int:
        import torch.distributed as dist

        from tests.distributed.test_traffic import interface_bytes

        dist.barrier()
        time.sleep(0.2)  # for the last acknowledgements
        found = interface_bytes()
        dist.barrier()
        return found


def ours(arguments: list[str], steps: int) -> tuple[float, int]:
    """On a rank: bytes per step of the whole network, and the model's parameters."""
    from trainer.testing import train_here
    from trainer.trainer import Trainer

    original, meter, sizes = Trainer.train_step, Meter(steps), []

    def train_step(self: Any, step: int, micro_batches: Any) -> Any:
        meter.before(step)
        result = original(self, step, micro_batches)
        meter.after(step)
        sizes.append(sum(parameter.numel() for parameter in self._engine._loop._parts.model.parameters()))
        return result

    Trainer.train_step = train_step  # type: ignore[method-assign]
    assert train_here(arguments) == 0
    return meter.bytes_per_step, sizes[0]


def bare(arguments: list[str], steps: int, shards: bool) -> tuple[float, int]:
    """The same for a plain loop of one micro-batch a step over a stock model in torch's own wrapper."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM

    from trainer.testing import prepared

    config, corpus = prepared(arguments)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    shape = config.model.config_for(corpus.vocabulary, {})
    model = AutoModelForCausalLM.from_config(shape)
    number = sum(parameter.numel() for parameter in model.parameters())
    trained: Any = model
    if shards:
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model, reshard_after_forward=False)
    else:
        trained = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer, meter = torch.optim.AdamW(trained.parameters()), Meter(steps)
    rows = torch.randint(0, shape.vocab_size, (GLOBAL_BATCH // dist.get_world_size(), LENGTH))
    for step in range(1, steps + 1):
        meter.before(step)
        trained(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        meter.after(step)
    return meter.bytes_per_step, number


def count(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """A case's numbers, per rank and step."""
    from trainer.testing import last_wins, run_ranks

    batch = [f"train.global_batch={GLOBAL_BATCH}", f"train.micro_batch={GLOBAL_BATCH // case.ranks // case.accumulation}"]
    common = [*overrides(folder), *SHAPE, *batch, f"data.sequence_length={LENGTH}", f"train.steps={steps}", "data.validation_fraction=0"]
    run = folder / f"{case.name}-{case.ranks}-{case.accumulation}"
    if case.more is None:
        answers = run_ranks(bare, case.ranks, last_wins(common), steps, "shard" in case.name, timeout=300)
    else:
        answers = run_ranks(ours, case.ranks, last_wins([*common, *case.more, f"run.dir={run}"]), steps, timeout=300)
    (network, number), *others = answers
    assert all(size == number for _, size in others)
    return {**asdict(case), "parameters": number, "bytes": network / case.ranks, "models": network / case.ranks / (4 * number)}


def inside(steps: int) -> None:
    """In the network of its own: counts all cases, and prints one line of JSON for each."""
    from tests.distributed.test_traffic import loopback_up

    loopback_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for file in CORPUS:
            shutil.copy(Path(sysconfig.get_path("stdlib")) / file, folder / "corpus")
        for case in cases():
            print(json.dumps(count(case, folder, steps)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps, of which all but the first are counted")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.steps)
        return
    command = ["unshare", "--map-root-user", "--net", sys.executable, __file__, "--inside", f"--steps={options.steps}"]
    rows = []
    quiet = {
        **os.environ,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # in such a network addresses have no names, of which torch would speak each time
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith('{"name"'):
                continue
            rows.append(json.loads(line))
            row = rows[-1]
            shape = f"{row['name']}, {row['ranks']} ranks, {row['accumulation']} micro-batches"
            print(f"{shape}: {row['models']:.4f} models, formula {row['formula']:.4f}: {row['models'] / row['formula']:.4f}", flush=True)
    if process.returncode:
        raise SystemExit(f"the ranks in a network of their own ended with {process.returncode}")
    results = {
        "what": "bytes that a rank sends in an optimizer step, headers, acknowledgements and all else on the network included",
        **machine("torch", "transformers"),
        "setting": {
            "model": "Llama, 8 blocks, width 512",
            "dtype": "fp32",
            "global_batch": GLOBAL_BATCH,
            "steps_counted": options.steps - 1,
        },
        "target_ratio": TARGET,
        "cases": rows,
    }
    keep("traffic", results)


if __name__ == "__main__":
    main()

"""How much memory a rank takes at its peak while a pretrained model is loaded and sharded, with ``from_pretrained`` and wrap beside it.

    python benchmarks/load_peak.py [--layers 12]

Four gloo ranks start ``strategy=fsdp`` from a Hugging Face folder of 154 million fp32 parameters. What counts is the highest resident memory
(``VmHWM``, reset first) above that of the same rank after it has started a tiny model in the same way, so that imports are not counted: until
the weights are in place, and until the engine with its moments is. Pages of the file that a rank has read through a map count as its memory.
The peer is what torch's guide does on each rank: ``from_pretrained``, then ``fully_shard``.

Prints the numbers and writes benchmarks/results/load_peak.json. Needs no GPU, and Linux.
"""

import argparse
import gc
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine
from overhead import CORPUS, keep, overrides

RANKS, TARGET = 4, 1.3
SHAPE = ["model.hidden_size=1024", "model.intermediate_size=2816", "model.num_heads=8"]


def memory(name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most since the last ``forget_peak``."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Makes what is resident now the peak; returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def ours(tiny: list[str], arguments: list[str]) -> dict[str, int]:
    """On a rank: its peaks above where it began."""
    import torch
    import torch.distributed as dist

    from trainer.assembly import build_engine, open_job
    from trainer.config import load
    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group
    from trainer.parallel import parallelize

    launch, found = read_launch(os.environ), {}
    start_process_group(launch, torch.device("cpu"), 60)
    build_engine(open_job(load(tiny, launch.world_size), launch))
    config, with_moments = load(arguments, launch.world_size), parallelize.with_moments
    gc.collect()
    begun = forget_peak()

    def noting(*given: Any) -> Any:
        found["weights"] = memory("VmHWM") - begun
        return with_moments(*given)

    parallelize.with_moments = noting
    engine = build_engine(open_job(config, launch))
    found |= {"engine": memory("VmHWM") - begun}
    dist.barrier()  # the others are still reading
    engine.close()
    return found


def from_pretrained(tiny: str, folder: str) -> dict[str, int]:
    """The same for ``from_pretrained`` and ``fully_shard`` on each rank."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    def load(path: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(path)
        for block in model.model.layers:
            fully_shard(block)
        return fully_shard(model)

    dist.init_process_group("gloo")
    load(tiny)
    gc.collect()
    begun = forget_peak()
    load(folder)
    found = {"weights": memory("VmHWM") - begun}
    dist.barrier()
    return found


def write_folder(arguments: list[str], folder: str) -> tuple[int, int]:
    """On a rank: the folder that both start from; returns the number of parameters and the largest tensor's."""
    from safetensors import safe_open

    from tests.contracts.engines import write_stock

    write_stock(arguments, Path(folder))
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        sizes = [file.get_tensor(name).numel() for name in file.keys()]  # noqa: SIM118
    return sum(sizes), max(sizes)


def main() -> None:
    from trainer.testing import last_wins, run_ranks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for file in CORPUS:
            shutil.copy(Path(sysconfig.get_path("stdlib")) / file, folder / "corpus")
        common = last_wins([*overrides(folder), *SHAPE, f"model.num_layers={options.layers}"])
        small, large = (str(folder / name) for name in ("small", "large"))
        run_ranks(write_folder, 1, last_wins(overrides(folder)), small, timeout=600)
        ((number, largest),) = run_ranks(write_folder, 1, common, large, timeout=600)
        kept = [argument for argument in common if not argument.startswith("model")]
        tiny, pretrained = ([*kept, "model=pretrained", f"model.path={path}", "strategy=fsdp"] for path in (small, large))
        answers = run_ranks(ours, RANKS, tiny, pretrained, timeout=600)
        peers = run_ranks(from_pretrained, RANKS, small, large, timeout=600)
    shard, tensor = 4 * number // RANKS, 4 * largest
    rows = {
        "weights in place": {"peak": max(answer["weights"] for answer in answers), "formula": shard + tensor, "target_ratio": TARGET},
        "engine and moments": {"peak": max(answer["engine"] for answer in answers), "formula": 3 * shard + tensor, "target_ratio": TARGET},
        "from_pretrained, then fully_shard": {
            "peak": max(peer["weights"] for peer in peers),
            "formula": shard + tensor,
            "target_ratio": None,
        },
    }
    for moment, row in rows.items():
        print(f"{moment}: {row['peak'] / 1e6:.0f} MB, {row['peak'] / row['formula']:.2f} x {row['formula'] / 1e6:.0f} MB")
    results = {
        "what": "bytes of resident memory at the peak of a rank's start from a pretrained folder, above the same rank after a tiny model's",
        **machine("torch", "transformers", "safetensors"),
        "setting": {"ranks": RANKS, "parameters": number, "largest_tensor": largest, "dtype": "fp32"},
        "moments": rows,
    }
    keep("load_peak", results)


if __name__ == "__main__":
    main()

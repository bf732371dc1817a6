"""How much memory one step takes at a vocabulary of 128,256 words, with the chunked head and with the dense one, and how long.

    python benchmarks/vocabulary.py [--rounds 3] [--tokens 2048]

A Llama of two blocks of width 64, so that almost all of a step is the head, in our native engine on one rank: forward, backward, clipping
and update. Each measurement is a process of its own, and the heads take turns. After a step that does not count, the kernel forgets the
process's peak (``/proc/self/clear_refs``); what the next step's is above what the process held before it is the step's own memory. Losses of
both heads have to agree to 1e-6 relative in fp32, 1e-3 in bf16.

Prints the numbers and writes benchmarks/results/vocabulary.json. Needs Linux and no GPU, and 6 GB of memory.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine

HERE = Path(__file__).parent
WORDS, WIDTH, ROW = 128_256, 64, 1024
TARGET = 0.5
HEADS = {"dense": None, "chunked": 1024}
GATES = {"fp32": 1e-6, "bf16": 1e-3}


def memory(key: str) -> int:
    """Bytes of this process that the kernel tells of under ``key``: VmRSS, held now, or VmHWM, the most since its peak was forgotten."""
    (kilobytes,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def measure(head: str, precision: str, tokens: int) -> dict[str, float]:
    """In this process: the loss, seconds and bytes of one step."""
    import torch

    from trainer.distributed.launch import Launch
    from trainer.distributed.mesh import build_mesh
    from trainer.distributed.process_group import start_process_group, stop_process_group
    from trainer.model.decoders import Llama
    from trainer.model.skeleton import build_skeleton
    from trainer.model.weights import FromSeed
    from trainer.objective.causal_lm import CausalLM
    from trainer.optimizer.adamw import build_adamw
    from trainer.optimizer.config import AdamW
    from trainer.precision.config import Precision
    from trainer.protocols import EngineJob
    from trainer.strategy.native import NativeStrategy
    from trainer.types import Batch, StepPlan, Vocabulary

    torch.set_num_threads(1)
    device, strategy = torch.device("cpu"), NativeStrategy()
    start_process_group(Launch(), device, 60)
    shape = Llama(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_layers=2, num_heads=2, max_positions=ROW)
    skeleton = build_skeleton(shape, "causal_lm", Vocabulary(WORDS, bos=0, eos=1, pad=2, sha256=""))
    job = EngineJob(
        skeleton,
        FromSeed(skeleton, 0),
        CausalLM(),
        lambda named: build_adamw(AdamW(), named),
        Precision(compute=precision),
        build_mesh(strategy.degrees(1), device),
        device,
        seed=0,
        micro_batch=tokens // ROW,
        accumulation=1,
        max_norm=1.0,
        chunk=HEADS[head],
    )
    engine = strategy.build(job)
    ids = torch.randint(WORDS, (tokens // ROW, ROW + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input_ids": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous(), {"targets": tokens})
    for step in (1, 2):
        Path("/proc/self/clear_refs").write_text("5")
        before, begun = memory("VmRSS"), time.perf_counter()
        terms = engine.forward_backward(step, [batch], {"targets": torch.tensor(float(tokens))})
        engine.optimizer_step(StepPlan(step, 1.0, 1.0))
        seconds, peak = time.perf_counter() - begun, memory("VmHWM")
    stop_process_group()
    loss = sum(float(term.sum) for term in terms.values()) / tokens
    return {"loss": loss, "seconds": seconds, "step_bytes": peak - before, "process_bytes": peak}


def apart(*arguments: str) -> dict[str, float]:
    """``measure`` in a fresh process."""
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(command, env={**variables, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(precision: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Both heads' numbers, by round, and the ratio of the medians."""
    found: dict[str, list[dict[str, float]]] = {head: [] for head in HEADS}
    for _ in range(rounds):
        for head, answers in found.items():
            answers.append(apart(head, precision, str(tokens)))
    losses = {head: answers[0]["loss"] for head, answers in found.items()}
    difference = abs(losses["chunked"] - losses["dense"]) / losses["dense"]
    if not difference <= GATES[precision]:
        raise SystemExit(f"{precision}: the losses of the heads differ by {difference:.2e}. Nothing is written.")
    heads = {
        head: {key: statistics.median(answer[key] for answer in answers) for key in answers[0]} | {"rounds": answers}
        for head, answers in found.items()
    }
    ratios = {f"{key}_ratio": heads["chunked"][key] / heads["dense"][key] for key in ("step_bytes", "process_bytes", "seconds")}
    return {"heads": heads, "difference_of_loss": difference, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help=f"a multiple of {ROW}")
    parser.add_argument("--measure", nargs=3, metavar=("HEAD", "PRECISION", "TOKENS"), help="in this process, for the others")
    options = parser.parse_args()
    if options.measure:
        head, precision, tokens = options.measure
        print(json.dumps(measure(head, precision, int(tokens))))
        return
    results = {
        "what": "peak memory of one optimizer step above what the process held before it; fresh processes that take turns",
        **machine("torch", "transformers"),
        "setting": {"vocabulary": WORDS, "width": WIDTH, "blocks": 2, "tokens": options.tokens, "chunk": HEADS["chunked"], "threads": 1},
        "target_ratio": TARGET,
        "precisions": {precision: compare(precision, options.tokens, options.rounds) for precision in GATES},
    }
    for precision, row in results["precisions"].items():
        for head, numbers in row["heads"].items():
            print(f"{precision} {head}: {numbers['step_bytes'] / 1e9:.2f} GB a step, {numbers['seconds']:.1f} s")
    (HERE / "results" / "vocabulary.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""G11: for how long a checkpoint of 15 GB stops training, beside torch.save and torch's own asynchronous checkpoint, on one GPU.

    python benchmarks/gpu_checkpoint.py [--rehearse]

Llama 1.24B, 2 rows of 1,024 tokens a step, a checkpoint after step 20; the run goes on to step 60. What counts is the time that the loop
waits for the save, with what the next step takes longer (its update waits for the copies), and the median step of the 20 after it over that
of the 10 before.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_llama import QUESTION as LLAMA
from gpu_race import UPDATE, Goal, ask, keep, make_job, measured_on, rehearsed, run

QUESTION = replace(
    LLAMA,
    name="gpu_checkpoint",
    ident="G11",
    what="Llama 1.24B with its moments, 15 GB: seconds for which a checkpoint stops training",
    vocabulary=128_256,
    length=1024,
    micro_batch=2,
    faster=(),
    goals=(
        Goal("blocked_seconds", at_most=1.0),
        Goal("blocked_seconds", "isotrain, in the foreground", at_most=0.05),
        Goal("slower_after", at_most=1.03),
    ),
)
SAVE_AT = 20


class Steps:
    """Wall time of each step, and of the save after step ``SAVE_AT``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.blocked = 0.0
        self._began = time.perf_counter()

    def done(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self._began = time.perf_counter()

    def saved(self) -> None:
        self.blocked = self.blocked or time.perf_counter() - self._began
        self._began = time.perf_counter()

    def answer(self) -> dict[str, float]:
        before, after = (statistics.median(self.seconds[part]) for part in (slice(SAVE_AT - 10, SAVE_AT), slice(SAVE_AT, SAVE_AT + 20)))
        blocked = self.blocked + max(0.0, self.seconds[SAVE_AT] - before)
        return {"blocked_seconds": blocked, "slower_after": after / before, "seconds_per_step": before}


def ours(job: dict[str, Any], in_background: bool) -> Steps:
    """``train.py`` that reads the device after every step, so that each has a time."""
    from trainer.config import load
    from trainer.distributed.launch import Launch
    from trainer.run import train
    from trainer.session.saving import Saving
    from trainer.testing import last_wins
    from trainer.trainer import Trainer

    steps, save, read = Steps(), Saving.save, Trainer._read

    def saving(self: Any, step: int, tokens_seen: int) -> None:
        save(self, step, tokens_seen)
        steps.saved()

    def reading(self: Any) -> None:
        read(self)
        steps.done()

    Saving.save, Trainer._read = saving, reading  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        saves = [f"checkpoint.every={SAVE_AT}", "checkpoint.keep=1", f"checkpoint.background={in_background}"]
        more = ["train.log_every=1", *saves, f"run.dir={folder}/run"]
        assert train(load(last_wins([*job["overrides"], *more]), 1), Launch()) == 0
    return steps


def bare(job: dict[str, Any], asynchronous: bool) -> Steps:
    """A hand-written loop that saves its state once, by torch.save or by torch.distributed.checkpoint's thread."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from gpu_contenders import _batches, _loss, _model
    from torch.distributed.checkpoint.state_dict import get_state_dict

    if asynchronous:
        dist.init_process_group(
            "cpu:gloo" + (",cuda:nccl" if job["device"] == "cuda" else ""), store=dist.HashStore(), rank=0, world_size=1
        )
    model, steps, writing = _model(job), Steps(), None
    optimizer = UPDATE.adamw(model)
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(_batches(job), start=1):
            with torch.autocast(job["device"], torch.bfloat16):
                loss = _loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            steps.done()
            if number == SAVE_AT and asynchronous:
                named, state = get_state_dict(model, optimizer)
                writing = dcp.async_save({"model": named, "optimizer": state}, checkpoint_id=f"{folder}/dcp")
                steps.saved()
            elif number == SAVE_AT:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/state.pt")
                steps.saved()
        if writing is not None:
            writing.result()
    return steps


CONTENDERS = {
    "isotrain": lambda job: ours(job, in_background=True),
    "isotrain, in the foreground": lambda job: ours(job, in_background=False),
    "torch.save": lambda job: bare(job, asynchronous=False),
    "dcp.async_save": lambda job: bare(job, asynchronous=True),
}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, folder, answer = sys.argv[2:]
        Path(answer).write_text(json.dumps(CONTENDERS[name](json.loads((Path(folder) / "job.json").read_text())).answer()))
        return
    options = ask(__doc__)
    question = replace(rehearsed(QUESTION), steps=60) if options.rehearse else QUESTION
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setting = make_job(question, folder, options.device)
        for number in range(options.rounds):
            rounds.append({name: run(name, folder, number, [__file__, "--child"]) for name in CONTENDERS})
            print(", ".join(f"{name} {taken['blocked_seconds']:.2f} s" for name, taken in rounds[-1].items()), flush=True)
    medians = {name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in CONTENDERS}
    results = {
        "what": question.what,
        **measured_on(options.device),
        "setting": {**setting, "rounds": options.rounds},
        "rounds": rounds,
        "contenders": medians,
        "goals": [goal.judge(medians) for goal in question.goals],
    }
    keep(question.name, results, options)


if __name__ == "__main__":
    main()

"""The same training in several ways. For benchmarks/overhead.py: our Trainer, a hand-written loop, Accelerate and transformers.Trainer; for
benchmarks/zero.py: our Trainer and a bare loop over DeepSpeed.

    python benchmarks/contenders.py NAME JOB STEPS WARMUP ANSWER TURNS

JOB is a folder made by benchmarks/overhead.py: a model on disk, its first weights, and the micro-batch of each step. Writes to the file
ANSWER the loss of each step and the CPU seconds per step of each log interval after WARMUP. After each interval it waits for its next turn.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from update import LOG_EVERY, Update

UPDATE = Update(lr=1e-3, max_norm=0.5)


class Stopwatch:
    """CPU seconds of this process per step, for each log interval after the warm-up.

    Args:
        warmup: steps before the first interval that counts.
        turns: a file descriptor that receives one byte at the end of each log interval; the next one begins when standard input gives one.
    """

    def __init__(self, warmup: int, turns: int):
        self._warmup, self._turns = warmup, turns
        self._began = 0.0
        self.intervals: list[float] = []

    def done(self, step: int) -> None:
        if step % LOG_EVERY:
            return
        if step > self._warmup:
            self.intervals.append((time.process_time() - self._began) / LOG_EVERY)
        os.write(self._turns, b".")
        if not os.read(0, 1):  # there is no next turn
            os._exit(0)
        self._began = time.process_time()


def ours(job: Path, watch: Stopwatch, steps: int, more: tuple[str, ...] = ()) -> list[float]:
    """``train.py`` as it is, from the prepared corpus; what is on by default is on. A stopwatch is added to the metrics writer."""
    from trainer.callbacks.jsonl import JsonLines
    from trainer.config import load
    from trainer.distributed.launch import Launch
    from trainer.run import train
    from trainer.testing import read_curve

    on_log = JsonLines.on_log

    def stamped(self: Any, records: Any) -> None:
        on_log(self, records)
        watch.done(records[-1].step)

    JsonLines.on_log = stamped  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        overrides = json.loads((job / "overrides.json").read_text())
        code = train(load([*overrides, *more, f"train.steps={steps}", f"run.dir={folder}/run"], 1), Launch())
        assert code == 0, f"our run ended with {code}"
        return [line["loss"] for line in read_curve(Path(folder) / "run")]


def hand_loop(job: Path, watch: Stopwatch, steps: int) -> list[float]:
    """The loop that a careful person writes: fused AdamW, clipping, nothing else; its batches lie ready in memory."""
    model = _model(job)
    optimizer = UPDATE.adamw(model)
    batches = [{name: tensor[step] for name, tensor in _batches(job).items()} for step in range(steps)]
    losses = []
    for step, batch in enumerate(batches, start=1):
        loss = _loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), UPDATE.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        watch.done(step)
    return torch.stack(losses).tolist()


def accelerate(job: Path, watch: Stopwatch, steps: int) -> list[float]:
    """The loop of Accelerate's guide: ``prepare``, ``backward``, ``clip_grad_norm_``, over a DataLoader."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    model = _model(job)
    rows = _Rows(job, steps)
    model, optimizer, loader = accelerator.prepare(model, UPDATE.adamw(model), DataLoader(rows, batch_size=rows.batch))
    losses = []
    for step, batch in enumerate(loader, start=1):
        loss = _loss(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), UPDATE.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        watch.done(step)
    return torch.stack(losses).tolist()


def transformers_trainer(job: Path, watch: Stopwatch, steps: int) -> list[float]:
    """``transformers.Trainer`` with the same optimizer, reporting to nobody, without its progress bar."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    losses: list[Tensor] = []

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(rows)

        def training_step(self, *arguments: Any, **named: Any) -> Tensor:
            losses.append(super().training_step(*arguments, **named))
            return losses[-1]

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.done(state.global_step)

    rows = _Rows(job, steps, label_names=("labels", "shift_labels"))  # the second is aligned already, so that the model does not shift it
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**UPDATE.arguments(folder), max_steps=steps, per_device_train_batch_size=rows.batch, use_cpu=True)
        InOrder(_model(job), arguments, train_dataset=rows, callbacks=[Watch()]).train()
    return torch.stack(losses).tolist()


def bare_deepspeed(job: Path, watch: Stopwatch, steps: int, stage: int) -> list[float]:
    """The loop of DeepSpeed's guide with the configuration that our run gives to DeepSpeed; its batches lie ready in memory."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}  # as DeepSpeed's launcher does
    import deepspeed
    import torch.distributed as dist

    from trainer.config import load
    from trainer.strategy.zero import Facts

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled first, for minutes
    strategy: Any = load([*json.loads((job / "overrides.json").read_text()), f"strategy=zero{stage}"], 1).strategy
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    batches = [{name: tensor[step] for name, tensor in _batches(job).items()} for step in range(steps)]
    settings = strategy.settings(Facts(micro_batch=len(batches[0]["labels"]), max_norm=UPDATE.max_norm))
    model = _model(job)
    engine, *_ = deepspeed.initialize(model=model, optimizer=UPDATE.adamw(model), config=settings, dist_init_required=False)
    losses = []
    for step, batch in enumerate(batches, start=1):
        loss = _loss(engine, batch)
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
        watch.done(step)
    dist.destroy_process_group()
    return torch.stack(losses).tolist()


CONTENDERS: dict[str, Callable[[Path, Stopwatch, int], list[float]]] = {
    "isotrain": ours,
    "hand loop": hand_loop,
    "accelerate": accelerate,
    "transformers.Trainer": transformers_trainer,
}
STAGES = (1, 2, 3)
ZERO: dict[str, Callable[[Path, Stopwatch, int], list[float]]] = {
    **{f"isotrain zero{stage}": partial(ours, more=(f"strategy=zero{stage}",)) for stage in STAGES},
    **{f"deepspeed zero{stage}": partial(bare_deepspeed, stage=stage) for stage in STAGES},
}


class _Rows(torch.utils.data.Dataset):
    """The steps' rows one after another, for a DataLoader that collects them into batches again."""

    def __init__(self, job: Path, steps: int, label_names: Iterable[str] = ("labels",)):
        batches = _batches(job)
        self.batch = batches["labels"].shape[1]
        rows = {name: tensor[:steps].flatten(0, 1) for name, tensor in batches.items()}
        labels = rows.pop("labels")
        self._rows = rows | dict.fromkeys(label_names, labels)
        self._len = len(labels)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._rows.items()}


def _batches(job: Path) -> dict[str, Tensor]:
    """Tensors (steps, batch, length)."""
    return load_file(job / "batches.safetensors")


def _model(job: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job / "model"), attn_implementation="sdpa", dtype=torch.float32)
    loaded = model.load_state_dict(load_file(job / "weights.safetensors"), strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"lm_head.weight"}, loaded  # the tied head
    return model.train()


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def main() -> None:
    name, job, steps, warmup, answer, turns = sys.argv[1:]
    torch.set_num_threads(1)
    watch = Stopwatch(int(warmup), int(turns))
    losses = (CONTENDERS | ZERO)[name](Path(job), watch, int(steps))
    assert len(losses) == int(steps), f"{len(losses)} losses for {steps} steps"
    assert len(watch.intervals) == (int(steps) - int(warmup)) // LOG_EVERY, "an interval is missing"
    Path(answer).write_text(json.dumps({"losses": losses, "cpu_seconds_per_step": watch.intervals}))


if __name__ == "__main__":
    main()

"""The same training on one device in several ways, for benchmarks/gpu_race.py.

    python benchmarks/gpu_contenders.py NAME JOB ANSWER

JOB is a folder made by benchmarks/gpu_race.py. NAME is who, and with what: ``hand loop, compiled``, ``transformers.Trainer, liger``. Writes to
the file ANSWER the loss of each step, the wall seconds of each log interval (which ends with a read of the device) and the highest memory.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu_race import UPDATE
from update import LOG_EVERY

AUTO = {"causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}


class Record:
    """Losses, and the wall time of each log interval."""

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._losses: list[Tensor] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._began = time.perf_counter()

    def done(self, loss: Tensor) -> None:
        """After a step; reads the device once per log interval."""
        self._losses.append(loss.detach())
        if len(self._losses) == LOG_EVERY:
            self.losses += torch.stack(self._losses).tolist()
            self._losses = []
            now = time.perf_counter()
            self.seconds.append(now - self._began)
            self._began = now

    def answer(self) -> dict[str, Any]:
        """What the file says."""
        peak = torch.cuda.max_memory_allocated() if self._cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"losses": self.losses, "seconds": self.seconds, "peak_memory_bytes": peak}


def ours(job: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """``train.py`` as it is, with what is on by default but for the checkpoint at the end; ``eager``: without what speeds it up."""
    from trainer.config import load
    from trainer.distributed.launch import Launch
    from trainer.run import train
    from trainer.session.saving import Saving
    from trainer.testing import last_wins, read_curve

    Saving.save = lambda self, step, tokens_seen: None  # type: ignore[method-assign]  # of 15 GB, for which no peer waits
    overrides = [*job["overrides"], *([] if "eager" in options else job["faster"])]
    with tempfile.TemporaryDirectory() as folder:
        code = train(load(last_wins([*overrides, f"run.dir={folder}/run"]), 1), Launch())
        assert code == 0, f"our run ended with {code}"
        curve = read_curve(Path(folder) / "run")
    intervals = [list(lines) for _, lines in groupby(curve, key=lambda line: (line["step"] - 1) // LOG_EVERY)]
    return {
        "losses": [line["loss"] for line in curve],
        "seconds": [sum(line["num_targets"] for line in lines) / lines[0]["tokens_per_second"] for lines in intervals],
        "peak_memory_bytes": curve[-1]["peak_memory_bytes"],
        "targets": sum(line["num_targets"] for line in curve) / len(curve),
        "mfu": [line["mfu"] for line in curve],
    }


def hand_loop(job: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """The loop that a careful person writes: fp32 masters under bf16 autocast, SDPA, fused AdamW, pinned batches, compiled where asked."""
    device, model = job["device"], _model(job)
    scored = torch.compile(_loss, backend=job["backend"]) if "compiled" in options else _loss
    optimizer, record = UPDATE.adamw(model), Record(device)
    for batch in _batches(job):
        with torch.autocast(device, torch.bfloat16):
            loss = scored(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), UPDATE.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        record.done(loss)
    return record.answer()


def accelerate(job: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """The loop of Accelerate's guide in bf16."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=job["device"] == "cpu", mixed_precision="bf16")
    model = _model(job)
    model, optimizer = accelerator.prepare(model, UPDATE.adamw(model))
    record = Record(job["device"])
    for batch in _batches(job):
        with accelerator.autocast():
            loss = _loss(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), UPDATE.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        record.done(loss)
    return record.answer()


def transformers_trainer(job: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """``transformers.Trainer`` with bf16 and fused AdamW; ``compiled``, ``liger``, and for documents ``flattened`` instead of padded."""
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

    record, targets = Record(job["device"]), []
    rows = _documents(job) if job["documents"] else _rows(job)

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(rows)

        def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *more: Any, **named: Any) -> Tensor:
            targets.append((inputs["labels"] != -100).sum())
            loss = super().training_step(model, inputs, *more, **named)
            record.done(loss)
            return loss

    collate = None
    if job["documents"]:
        collate = DataCollatorWithFlattening() if "flattened" in options else _padded
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **UPDATE.arguments(folder),
            max_steps=job["steps"],
            per_device_train_batch_size=job["documents"] or job["micro_batch"],
            bf16=True,
            optim="adamw_torch_fused",
            torch_compile="compiled" in options,
            torch_compile_backend=job["backend"] if "compiled" in options else None,
            use_liger_kernel="liger" in options,
            use_cpu=job["device"] == "cpu",
        )
        InOrder(_model(job), arguments, train_dataset=rows, data_collator=collate).train()
    return record.answer() | {"targets": float(torch.stack(targets).double().mean())}


CONTENDERS = {"isotrain": ours, "hand loop": hand_loop, "accelerate": accelerate, "transformers.Trainer": transformers_trainer}


def _model(job: dict[str, Any]) -> nn.Module:
    import transformers

    auto = getattr(transformers, AUTO[job["task"]])
    model = auto.from_pretrained(Path(job["folder"]) / "model", attn_implementation=job["attention"], dtype=torch.float32)
    model.config.use_cache = False
    return model.to(job["device"]).train()


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())


def _tensors(job: dict[str, Any]) -> dict[str, Tensor]:
    """Of every step: (steps, batch, length)."""
    return {name: tensor.long() for name, tensor in load_file(Path(job["folder"]) / "batches.safetensors").items()}


def _batches(job: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    device, tensors = job["device"], _tensors(job)
    if device == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    for step in range(job["steps"]):
        yield {name: tensor[step].to(device, non_blocking=True) for name, tensor in tensors.items()}


def _rows(job: dict[str, Any]) -> list[dict[str, Tensor]]:
    tensors = {name: tensor.flatten(0, 1) for name, tensor in _tensors(job).items()}
    if job["task"] == "causal_lm":  # aligned already, so that the model does not shift them
        tensors["shift_labels"] = tensors["labels"]
    return [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]


def _documents(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    rows = json.loads((Path(job["folder"]) / "documents.json").read_text())
    needed = job["documents"] * job["steps"]
    return [{"input_ids": row, "labels": row} for row in (rows * (1 + needed // len(rows)))[:needed]]


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """As long as the longest of them."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=2)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": real.long(), "labels": ids.where(real, -100)}


def main() -> None:
    name, folder, answer = sys.argv[1:]
    job = json.loads((Path(folder) / "job.json").read_text())
    who, *options = name.split(", ")
    if job["device"] == "cpu":
        torch.set_num_threads(1)
    found = {"targets": job["targets"], "slots": job["slots"], **CONTENDERS[who](job, options)}
    assert len(found["losses"]) == job["steps"], f"{len(found['losses'])} losses for {job['steps']} steps"
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

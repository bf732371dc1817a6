"""Against the world: the same model on the same rows, trained by a hand-written loop and by transformers' Trainer, has our losses."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers import Trainer as TransformersTrainer

from trainer.data.order import SampleOrder, step_draws
from trainer.model.skeleton import build_skeleton
from trainer.model.weights import FromSeed
from trainer.testing import prepared, train_curve

STEPS, WARMUP, PEAK, FLOOR, MAX_NORM, DECAY = 20, 4, 3e-3, 0.1, 0.5, 0.1
MICRO_BATCH = 4


@pytest.fixture(scope="module")
def arguments(tiny):
    return [
        *tiny,
        f"train.steps={STEPS}",
        f"train.micro_batch={MICRO_BATCH}",
        f"optimizer.lr={PEAK}",
        f"optimizer.warmup_steps={WARMUP}",
        f"optimizer.min_lr_ratio={FLOOR}",
        f"optimizer.max_grad_norm={MAX_NORM}",
        f"optimizer.weight_decay={DECAY}",
        "optimizer.schedule=cosine",
    ]


@pytest.fixture(scope="module")
def ours(arguments, tmp_path_factory):
    return train_curve(arguments, tmp_path_factory.mktemp("ours") / "run")


@pytest.fixture(scope="module")
def samples(arguments):
    """What the others are given: every sample of the run, in our order, labels aligned with the outputs."""
    config, corpus = prepared(arguments)
    rows = corpus.samples("train")
    order = SampleOrder(len(rows), config.train.seed)
    found = []
    for ids in step_draws(order, 1, STEPS, 16).ids:
        taken = rows.take(ids).rows["text"]
        for tokens, positions, starts in zip(taken.tokens, taken.positions, taken.starts, strict=True):
            labels = [-100 if start else token for token, start in zip(tokens[1:].tolist(), starts[1:].tolist(), strict=True)]
            found.append({"input_ids": tokens[:-1].tolist(), "position_ids": positions[:-1].tolist(), "labels": labels})
    return found


@pytest.fixture
def model(arguments):
    """A stock model, dense and unsharded, that begins with our weights."""
    config, corpus = prepared(arguments)
    skeleton = build_skeleton(config.model, "causal_lm", corpus.vocabulary)
    weights = FromSeed(skeleton, config.train.seed)
    stock = AutoModelForCausalLM.from_config(skeleton.model.config)
    stock.config.use_cache = False  # with a cache, transformers would let packed documents see each other
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(weights.fill(name))
    return stock.train()


def plain_adamw(model):
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-8)


def schedule(step):
    """Warm-up and cosine, written down once more; ``step`` counts from 1."""
    if step <= WARMUP:
        return step / WARMUP
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def test_a_hand_written_loop_has_our_losses(ours, samples, model):
    optimizer = plain_adamw(model)
    for step in range(1, STEPS + 1):
        batch = samples[(step - 1) * 16 : step * 16]
        num_targets = sum(label != -100 for sample in batch for label in sample["labels"])
        loss = 0.0
        for begin in range(0, 16, MICRO_BATCH):
            tensors = {key: torch.tensor([sample[key] for sample in batch[begin : begin + MICRO_BATCH]]) for key in batch[0]}
            labels = tensors.pop("labels")
            logits = model(**tensors, use_cache=False).logits
            part = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_targets
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        line = ours[step - 1]
        assert line["num_targets"] == num_targets and line["lr"] == pytest.approx(PEAK * schedule(step), rel=1e-12)
        assert line["loss"] == pytest.approx(loss, rel=1e-6), f"step {step}"
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5), f"step {step}"
    assert ours[-1]["loss"] < ours[0]["loss"] - 0.3 and any(line["grad_norm"] > MAX_NORM for line in ours)


class Recording(TransformersTrainer):
    """Takes samples as they come and keeps each micro-batch's loss, unrounded."""

    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *arguments, **keywords):
        loss = super().training_step(*arguments, **keywords)
        self.micro_losses = [*getattr(self, "micro_losses", []), loss.item()]
        return loss


def test_transformers_trainer_has_our_losses(ours, samples, model, tmp_path):
    # Its loss shifts labels by itself unless given shifted ones; it counts targets in `labels`, and without its first column.
    dataset = [{**sample, "shift_labels": sample["labels"], "labels": [-100, *sample["labels"]]} for sample in samples]
    optimizer = plain_adamw(model)
    theirs = Recording(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=16 // MICRO_BATCH,
            max_grad_norm=MAX_NORM,
            remove_unused_columns=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: schedule(done + 1))),
    )
    theirs.train()
    losses = [sum(theirs.micro_losses[i : i + 4]) for i in range(0, STEPS * 4, 4)]
    norms = [line["grad_norm"] for line in theirs.state.log_history if "grad_norm" in line]
    assert len(losses) == len(norms) == STEPS
    for line, loss, norm in zip(ours, losses, norms, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-4), f"step {line['step']}"
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-3), f"step {line['step']}"

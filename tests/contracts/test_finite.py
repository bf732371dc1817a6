"""Contract Finite: an update that is not finite is never applied, and what made it so is named."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import data_ranks
from tests.contracts.tasks import layout as overrides
from tests.unit.report.runs import Page
from trainer.data.order import SampleOrder, step_draws
from trainer.distributed.sharding import local_part
from trainer.objective.causal_lm import CausalLM
from trainer.schema import setting
from trainer.testing import assert_same_curve, last_wins, prepared, read_curve, run_ranks, train_here
from trainer.types import StepPlan, Term

STEP = 3
PLACE = 11
"""Of the bad sample in the global batch of 16: on two ranks, it is the second's."""


@dataclass
class Poisoned(CausalLM):
    """Next-token prediction with one sample whose loss, or its gradient alone, is not finite."""

    sample: int = setting(-2, "id of the bad sample")
    poison: str = setting("nan", "nan, inf, or gradient")

    def collate(self, samples, context):
        batch = super().collate(samples, context)
        batch.inputs["bad"] = torch.from_numpy(samples.ids == self.sample)
        return batch

    def loss(self, scores, batch):
        bad = batch.inputs["bad"]
        total, poisoned = scores.nll[~bad].sum(), scores.nll[bad].sum()
        if bad.any() and self.poison == "gradient":
            poisoned = (scores.nll[bad] - scores.nll[bad].detach()).sqrt().sum()  # 0, but the root's slope there is not finite
        elif bad.any():
            poisoned = poisoned * float(self.poison)
        return {"nll": Term(total + poisoned, "targets")}


def register():
    import trainer
    from trainer.model.head import Scorer

    trainer.register("objective", "poisoned", Poisoned)
    forward = Scorer.forward
    Scorer.forward = lambda self, inputs, labels, places: forward(self, {k: v for k, v in inputs.items() if k != "bad"}, labels, places)


def train_poisoned(arguments):
    register()
    return train_here(arguments)


@pytest.fixture(scope="session")
def ids(tiny):
    """The sample ids of the bad step."""
    config, corpus = prepared(tiny)
    rows = corpus.samples("train")
    return step_draws(SampleOrder(len(rows), config.train.seed), STEP, 1, 16).ids[0]


@pytest.fixture(scope="session")
def poisoned(tiny, ids):
    assert ids[PLACE] > 3
    return [*tiny, "objective=poisoned", f"objective.sample={ids[PLACE]}"]


def untouched(arguments):
    """On a rank: a good step, a bad one with and without clipping, a good one; whether each changed any bit of the state."""
    register()
    job, engine = build_engine(arguments)
    found = []
    for step, max_norm in ((1, 0.5), (STEP, None), (STEP, 0.5), (2, None)):
        before = {name: local_part(value).clone() for name, value in engine.state().items()}
        batches = micro_batches(job, engine, step)
        engine.forward_backward(step, batches, {"targets": torch.tensor(400)})
        stats = engine.optimizer_step(StepPlan(step, 1.0, max_norm))
        same = [torch.equal(local_part(value), before[name]) for name, value in engine.state().items() if local_part(value).numel()]
        with engine.inference() as (model, _):
            left = [local_part(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
            gradients = sum(int(part.count_nonzero()) for part in left)  # NaN is not zero; DDP keeps its gradients, cleared, in its buckets
        found.append((bool(stats.applied), float(stats.grad_norm), stats.bad_ranks.tolist(), all(same), any(same), gradients))
    assert all(torch.isfinite(local_part(value)).all() for value in engine.state().values())
    return found


@pytest.mark.parametrize(
    ("strategy", "ranks", "precision", "poison"),
    [
        ("single", 1, "bf16", "nan"),
        ("ddp", 2, "fp32", "inf"),
        ("ddp", 2, "bf16", "gradient"),
        ("fsdp", 2, "fp32", "gradient"),
        ("fsdp", 2, "bf16", "nan"),
        ("zero2", 2, "bf16", "inf"),
        *(
            pytest.param(*layout, precision, poison, marks=pytest.mark.slow)
            for layout in (
                ("ddp", 2),
                ("fsdp", 3),
                ("hsdp", 4),
                ("zero1", 2),
                ("zero2", 2),
                ("zero3", 2),
                ("tensor", 2),
                ("tensor x fsdp", 4),
                ("pipeline", 2),
                ("pipeline x fsdp", 4),
            )
            for precision in ("fp32", "bf16")
            for poison in ("nan", "inf", "gradient")
        ),
    ],
)
def test_a_bad_step_changes_no_bit(poisoned, strategy, ranks, precision, poison):
    arguments = last_wins([*poisoned, *overrides(strategy), f"precision={precision}", f"objective.poison={poison}", "train.micro_batch=4"])
    seen_by = data_ranks(strategy, ranks)  # both ranks of a pair that shares tensors, or blocks, see the sample
    bad_rank = PLACE * seen_by // 16 if ranks != 3 else 2
    for good, bad, clipped, after in run_ranks(untouched, ranks, arguments):
        for applied, norm, bad_ranks, _, any_same, gradients in (good, after):
            assert applied and 0 < norm < 1e3 and not any(bad_ranks) and not any_same and not gradients
        for applied, norm, bad_ranks, all_same, _, gradients in (bad, clipped):
            assert not applied and not norm < 1e9 and all_same and not gradients
            assert bad_ranks == [float(rank == bad_rank and poison != "gradient") for rank in range(seen_by)]


def lines(run_dir):
    told = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in told if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("strategy", "poison", "loss", "where"),
    [
        pytest.param("ddp", "nan", "nan", "the loss was not finite on data rank 1, samples {second}", marks=pytest.mark.slow),
        ("fsdp", "inf", "inf", "the loss was not finite on data rank 1, samples {second}"),
        ("fsdp", "gradient", None, "the loss was finite, its gradient was not; samples {all}"),
    ],
)
def test_stop_names_the_step_the_rank_and_the_samples(poisoned, ids, tmp_path, strategy, poison, loss, where):
    arguments = [*poisoned, f"+strategy={strategy}", f"objective.poison={poison}", "checkpoint.every=2", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match="TrainingFailed: Step 3: the gradient norm is"):
        run_ranks(train_poisoned, 2, last_wins(arguments))
    left = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert left["code"] == 3
    assert left["sentence"].startswith("Step 3: ") and where.format(second=ids[8:].tolist(), all=ids.tolist()) in left["sentence"]
    assert ids[PLACE] in ids[8:] and "train.nonfinite=skip" in left["sentence"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"], "no checkpoint after the bad step"
    bad = next(line for line in lines(tmp_path / "run") if line["step"] == 3)
    assert bad["applied"] is False and bad["grad_norm"] is None and bad["nonfinite"]["grad_norm"] in ("nan", "inf")
    assert bad["nonfinite"].get("loss") == loss and (bad["loss"] is None) == (loss is not None)
    page = Page((tmp_path / "run" / "report.html").read_bytes())
    assert "failed" in page.text and left["sentence"] in page.text and "1 of 4: step 3." in page.text


def test_the_first_bad_step_is_named_though_it_is_read_later(poisoned, ids, tmp_path):
    arguments = [*poisoned, "train.log_every=10", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match="Step 3: the gradient norm is nan"):
        run_ranks(train_poisoned, 1, last_wins(arguments))
    assert [line["applied"] for line in lines(tmp_path / "run")] == [step != 3 for step in range(1, 11)]
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_skip_goes_on_the_same_way_on_every_layout(poisoned, tmp_path):
    curves = []
    for strategy, ranks in (("single", 1), ("fsdp", 2)):
        arguments = [*poisoned, f"+strategy={strategy}", "train.nonfinite=skip", f"run.dir={tmp_path / strategy}"]
        assert run_ranks(train_poisoned, ranks, last_wins(arguments)) == [0] * ranks
        curve = read_curve(tmp_path / strategy)
        assert [line["applied"] for line in curve] == [step != 3 for step in range(1, 21)]
        assert curve[2]["nonfinite"] == {"loss": "nan", "grad_norm": "nan"} and curve[-1]["loss"] < curve[0]["loss"]
        curves.append([line for line in curve if line["step"] != 3])
    assert_same_curve(*curves)

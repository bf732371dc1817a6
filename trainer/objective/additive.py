"""A loss must be a sum over samples: only such a one is the same for every micro-batch, accumulation and number of ranks."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.types import Context, LossTerms, Samples, Scores

if TYPE_CHECKING:
    from trainer.data.samples import AnySet
    from trainer.protocols import Objective


def objective_problems(objective: Objective, samples: AnySet, context: Context, num_outputs: int) -> list[str]:
    """Tries ``objective`` on four samples and made-up likelihoods: what it says of all must be what it says of one plus of the other three.

    Args:
        objective: its ``collate`` and ``loss`` are called.
        samples: the corpus; a short one gives some samples more than once.
        context: of collating.
        num_outputs: numbers that a classifier gives for a sample.

    Returns:
        One sentence for each term or count that is no sum over samples, and for each term whose count does not exist.
    """
    ids = np.arange(4, dtype=np.int64) % len(samples)
    levels = np.random.default_rng(0).uniform(1, 9, ids.size)  # one per sample, so that no mean can pass for a sum
    widths = samples.widths(ids)
    taken = [samples.take(ids[part], np.zeros_like(ids[part]), widths) for part in _PARTS]
    tried = [_try(objective, part, context, levels[places], num_outputs) for part, places in zip(taken, _PARTS, strict=True)]
    terms, counts = tried[0]
    name = f"objective {type(objective).__name__}"
    problems = [
        f"{name}: term '{term}' is divided by the count '{value.count_key}', but collate counts only {', '.join(counts)}."
        for term, value in terms.items()
        if value.count_key not in counts
    ]
    if "targets" not in counts:
        problems.append(f"{name}: collate counts {', '.join(counts) or 'nothing'}, but no 'targets', which metrics and speed are told in.")
    whole, *parts = (
        {f"term '{term}'": float(value.sum) for term, value in t.items()} | {f"count '{key}'": c[key] for key in c} for t, c in tried
    )
    for what, value in whole.items():
        total = sum(part[what] for part in parts)
        if not math.isclose(value, total, rel_tol=1e-4):  # the order of fp32 additions changes far less
            problems.append(
                f"{name}: {what} is {value:.6g} for 4 rows, but {total:.6g} when they come apart. "
                "It must be a sum over samples, never a mean: the engine divides each term by its count over the global batch."
            )
    return problems


def missing_packages(objective: Objective) -> list[str]:
    """A sentence for each package that the objective needs (its class's ``requires``: package to our extra) and that is not installed."""
    return [
        f"objective={type(objective).__name__} needs the package {package}: pip install 'isotrain[{extra}]'"
        for package, extra in getattr(objective, "requires", {}).items()
        if importlib.util.find_spec(package) is None
    ]


_PARTS = (slice(0, 4), slice(0, 1), slice(1, 4))


def _try(
    objective: Objective, samples: Samples, context: Context, levels: np.ndarray, num_outputs: int
) -> tuple[LossTerms, dict[str, int]]:
    """The terms and counts of some samples whose scores depend on the sample's level and the place in the row."""
    import torch

    batch = objective.collate(samples, context)
    if objective.task == "classification":
        logits = torch.from_numpy(np.outer(levels, np.linspace(-0.5, 0.5, num_outputs))).float()
        return objective.loss(Scores(logits=logits), batch), batch.counts
    if batch.places is not None:
        row, slot = np.divmod(batch.places.numpy(), batch.inputs["input_ids"].shape[1])
    else:
        row, slot = np.indices(batch.labels.shape)
    nll = torch.from_numpy(levels[row] * (1.5 + np.sin(slot))).float()
    return objective.loss(Scores(nll=nll.masked_fill(batch.labels < 0, 0.0)), batch), batch.counts

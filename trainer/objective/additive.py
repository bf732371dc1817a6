"""A loss must be a sum over samples: only such a one is the same for every micro-batch, accumulation and number of ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.types import LossTerms, Scores

if TYPE_CHECKING:
    from trainer.data.rows import PackedRows
    from trainer.protocols import Objective


def objective_problems(objective: Objective, rows: PackedRows) -> list[str]:
    """Tries ``objective`` on four rows and made-up likelihoods: what it says of all must be what it says of one plus of the other three.

    Args:
        objective: its ``collate`` and ``loss`` are called.
        rows: the corpus; a short one gives some rows more than once.

    Returns:
        One sentence for each term or count that is no sum over samples, and for each term whose count does not exist.
    """
    ids = np.arange(4, dtype=np.int64) % len(rows)
    levels = np.random.default_rng(0).uniform(1, 9, ids.size)  # one per row, so that no mean can pass for a sum
    tried = [_try(objective, rows, ids[part], levels[part]) for part in (slice(0, 4), slice(0, 1), slice(1, 4))]
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


def _try(objective: Objective, rows: PackedRows, ids: np.ndarray, levels: np.ndarray) -> tuple[LossTerms, dict[str, int]]:
    """The terms and counts of some rows whose negative log-likelihoods depend on the row's level and the place in the row."""
    import torch

    batch = objective.collate(rows.take(ids))
    places = torch.linspace(0.5, 1.5, batch.labels[0].numel()).view(batch.labels[0].shape)
    nll = places * torch.from_numpy(levels).float().view(-1, *[1] * places.ndim)
    return objective.loss(Scores(nll.masked_fill(batch.labels < 0, 0.0)), batch), batch.counts

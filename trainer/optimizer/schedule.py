"""Learning-rate schedules: pure functions of the step, so that nothing about them needs saving."""

from __future__ import annotations

import math

from trainer.optimizer.config import AdamW


def lr_scale(config: AdamW, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied by at ``step``.

    Linear warm-up from 1/warmup_steps at step 1 to 1 at step ``warmup_steps``, then the schedule's shape down to ``min_lr_ratio`` at the
    last step: ``cosine`` (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts), ``linear``, ``constant`` (stays 1), or
    ``wsd`` (stays 1, then linear over the last ``decay_fraction`` of all steps; Hu et al. 2024, arXiv 2404.06395).

    Args:
        config: warm-up, shape and floor.
        step: 1-based.
        steps: ``train.steps``.
    """
    warmup = min(20, steps // 10) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return step / warmup
    if config.schedule == "constant":
        return 1.0
    begin = max(warmup, round(steps * (1 - config.decay_fraction))) if config.schedule == "wsd" else warmup
    progress = min(1.0, max(0.0, (step - begin) / max(1, steps - begin)))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining

"""Optimizer presets: the update rule, its clipping and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema import setting

BF16_STEP = 2**-8
"""The part of a bf16 number that another has to be away from it at least, for it not to be rounded back."""


@dataclass
class AdamW:
    """AdamW with decoupled weight decay on matrices and embeddings only (not on biases and norms)."""

    lr: float = setting(4e-3, "peak learning rate", above=0, maximum=10, aliases=("learning_rate",))
    beta1: float = setting(0.9, "decay of the first moment", minimum=0, below=1, aliases=("adam_beta1",))
    beta2: float = setting(0.95, "decay of the second moment", minimum=0, below=1, aliases=("adam_beta2",))
    eps: float = setting(1e-8, "added to the root of the second moment", above=0, aliases=("adam_epsilon", "epsilon"))
    weight_decay: float = setting(0.1, "decoupled decay per unit of learning rate", minimum=0)
    moments: str = setting(
        "fp32",
        "type in which both moments rest between steps; bf16 halves their memory and rounds them at each step",
        choices=("fp32", "bf16"),
    )
    max_grad_norm: float | None = setting(
        1.0,
        "global 2-norm to which gradients are clipped; None: no clipping",
        above=0,
        aliases=("clip_grad_norm", "gradient_clipping", "grad_clip"),
    )
    schedule: str = setting(
        "cosine",
        "shape of the learning rate after warm-up: constant, cosine or linear decay, or wsd (warmup-stable-decay)",
        choices=("constant", "cosine", "linear", "wsd"),
        aliases=("lr_scheduler_type", "lr_scheduler"),
    )
    warmup_steps: int | None = setting(
        None,
        "steps of linear warm-up from 0; None: 20, or a tenth of train.steps where that is less",
        minimum=0,
        aliases=("num_warmup_steps",),
    )
    decay_fraction: float = setting(0.2, "wsd only: the share of train.steps, at the end, over which it decays", above=0, maximum=1)
    min_lr_ratio: float = setting(0.0, "final learning rate as a share of the peak", minimum=0, maximum=1)

"""The update that all contenders of a benchmark make, as each is told of it."""

from dataclasses import dataclass
from typing import Any

LOG_EVERY = 10


@dataclass(frozen=True)
class Update:
    """Fused AdamW at a constant rate, with clipping.

    Attributes:
        lr, betas, eps, weight_decay: of AdamW.
        max_norm: to which gradients are clipped.
    """

    lr: float
    max_norm: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def overrides(self) -> list[str]:
        """Ours: with nothing saved on the way, one token written at the end, and plain lines on the console."""
        return [
            f"train.log_every={LOG_EVERY}",
            f"optimizer.lr={self.lr}",
            f"optimizer.beta1={self.betas[0]}",
            f"optimizer.beta2={self.betas[1]}",
            f"optimizer.eps={self.eps}",
            f"optimizer.weight_decay={self.weight_decay}",
            f"optimizer.max_grad_norm={self.max_norm}",
            "optimizer.schedule=constant",
            "optimizer.warmup_steps=0",
            "checkpoint.every=null",
            "sample.max_new_tokens=1",
            "run.quiet=true",
        ]

    def arguments(self, folder: str) -> dict[str, Any]:
        """Those of transformers.TrainingArguments."""
        return {
            "output_dir": folder,
            "learning_rate": self.lr,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "adam_epsilon": self.eps,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_norm,
            "lr_scheduler_type": "constant",
            "logging_steps": LOG_EVERY,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }

    def adamw(self, model: Any) -> Any:
        """torch's, over a model's parameters; matrices decay."""
        import torch

        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

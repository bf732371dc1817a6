"""AdamW over parameter groups by weight decay, and its moments, made at once so that there is always a whole state to load into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from trainer.optimizer.config import AdamW


def build_adamw(config: AdamW, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """Builds the optimizer over what requires gradients.

    Matrices and embeddings decay; vectors (biases, norms) do not. Parameters on different meshes are in different groups, because the fused
    form takes one mesh at a time. The fused form is used on every device: it alone can leave everything
    untouched when told that the gradient is not finite (``found_inf``), without the host knowing.

    Args:
        config: rates and decay.
        named: (checkpoint name, parameter), tied parameters once.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = defaultdict(list)
    for _, parameter in sorted(trained, key=lambda item: item[1].ndim < 2):  # what decays comes first
        groups[parameter.ndim >= 2, getattr(parameter, "device_mesh", None)].append(parameter)
    decays = [{"params": group, "weight_decay": config.weight_decay if matrices else 0.0} for (matrices, _), group in groups.items()]
    return torch.optim.AdamW(decays, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def make_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Gives each of ``parameters``, which ``optimizer`` updates, moments of zero; an optimizer without moments is left alone."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False, memory_format=torch.preserve_format),
        }

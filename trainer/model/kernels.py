"""Which kernel attends over documents, what keeps one from it, and which is the best that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.model.families import FAMILIES

if TYPE_CHECKING:
    import torch

    from trainer.model.skeleton import Skeleton

KERNELS = ("sdpa", "varlen", "flex")
"""The values of ``train.attention``."""

_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What transformers configs call the rate at which attention is dropped."""

_AMPERE = (8, 0)
_WIDEST_HEAD, _NARROWEST_HEAD, _MULTIPLE = 256, 16, 8


def setting_problem(kernel: str, implementation: str, compute: str, recompute: str | None, device: str | None) -> str | None:
    """Why no model can have ``kernel`` under these settings, with the fix; None: nothing is known against it. Free of torch.

    Args:
        kernel: one of ``KERNELS``.
        implementation: ``model.attention``.
        compute: ``precision.compute``.
        recompute: ``train.activation_checkpointing``.
        device: ``run.device`` or what was found; None: not known yet.
    """
    if implementation != "sdpa":
        return f"model.attention={implementation} is another attention: leave one of the two out"
    if kernel in ("varlen", "flex") and device == "cpu":
        why = "is a kernel for CUDA" if kernel == "varlen" else "has no backward on a CPU"
        return f"torch's {kernel} attention {why}: set it to sdpa, or leave it out"
    if kernel == "varlen" and compute == "fp32":
        return "its kernel computes in bf16 or fp16, not in fp32: set precision=bf16, or train.attention=flex"
    if kernel == "flex" and recompute == "selective":
        return "what FlexAttention puts out cannot be kept by train.activation_checkpointing=selective: use full, or train.attention=varlen"
    return None


def model_problem(kernel: str, skeleton: Skeleton) -> str | None:
    """Why this model cannot have ``kernel``, with the fix; None: it can."""
    if kernel == "sdpa":
        return None
    model, family, config = skeleton.model, skeleton.family, skeleton.model.config
    otherwise = "set it to sdpa, or leave it out"
    if skeleton.task == "seq2seq":
        return f"a {family.name} looks from one sequence at another, which is not done by {kernel} here: {otherwise}"
    supports = model._supports_flash_attn and model._supports_attention_backend if kernel == "varlen" else model._supports_flex_attn
    if not supports or getattr(config, "attn_logit_softcapping", None):
        return f"transformers does not have it for a {family.name}: {otherwise}"
    if has_windows(config) and (kernel == "flex" or config.model_type not in FAMILIES):
        return f"sliding windows of a {family.name} are not told to {kernel} here: {otherwise}"
    if dropped := {name: rate for name in _DROPOUTS if (rate := getattr(config, name, 0))}:
        name, rate = dropped.popitem()
        return f"it cannot drop attention, and the model has {name}={rate}: {otherwise}"
    return _head_problem(kernel, config, otherwise)


def _head_problem(kernel: str, config: Any, otherwise: str) -> str | None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kernel == "varlen" and (size % _MULTIPLE or size > _WIDEST_HEAD):
        return f"its heads are multiples of {_MULTIPLE} up to {_WIDEST_HEAD} wide, and the model's are {size}: {otherwise}"
    if kernel == "flex" and size < _NARROWEST_HEAD:
        return f"its heads are at least {_NARROWEST_HEAD} wide, and the model's are {size}: {otherwise}"
    return None


def device_problem(kernel: str, device: torch.device) -> str | None:
    """Why this GPU, or this torch, does not have ``kernel``, with the fix; None: it has."""
    import torch

    if kernel != "varlen":
        return None
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return f"its kernel needs a GPU of compute capability 8.0 or more, not a {torch.cuda.get_device_name(device)}: use flex or sdpa"
    import inspect

    from torch.nn.attention import varlen

    if not {"window_size", "enable_gqa", "scale"} <= inspect.signature(varlen.varlen_attn).parameters.keys():
        return f"the varlen_attn of torch {torch.__version__} has no window_size or enable_gqa: install torch 2.13, or use sdpa"
    from trainer.model import documents

    if (wrong := documents.varlen_tried(device)) is None:
        return None
    return f"tried on this {torch.cuda.get_device_name(device)}, its kernel {wrong}: set it to sdpa, or leave it out"


def choose(
    asked: str | None, skeleton: Skeleton, device: torch.device, compute: str, recompute: str | None, apart: bool
) -> tuple[str, str | None]:
    """The kernel of a run, and why it cannot be the one that was asked for (None: nothing is against it).

    Args:
        asked: ``train.attention``; None: the best that device, model and batches have.
        skeleton: the model.
        device: this rank's.
        compute, recompute: as in ``setting_problem``.
        apart: whether rows hold several documents, or padding that must not be seen: else all kernels do the same.
    """
    kernel = asked or ("varlen" if apart and device.type == "cuda" else "sdpa")
    problem = (
        setting_problem(kernel, skeleton.model.config._attn_implementation, compute, recompute, device.type)
        or model_problem(kernel, skeleton)
        or device_problem(kernel, device)
    )
    if problem is None:
        return kernel, None
    return "sdpa", f"train.attention={asked}: {problem}." if asked else None


def has_windows(config: Any) -> bool:
    """Whether some layers of a transformers model see so many slots back only."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or bool(getattr(config, "sliding_window", None))

"""The torch type behind each name that a precision policy uses."""

from collections.abc import Iterable

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def common_name(tensors: Iterable[Tensor]) -> str:
    """The number type of ``tensors``, or their types."""
    return " and ".join(sorted({NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors}))

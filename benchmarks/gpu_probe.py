"""G0: what the device can do: the roof under which the other results stand.

    python benchmarks/gpu_probe.py [--rehearse]

Products of bf16 matrices, at 8,192 and at the shapes of a Llama of 1.1 billion parameters; of fp8 ones by torch._scaled_mm; copies on the
device; attention forward and backward by each of torch's backends; clocks and power while it works. Random inputs: zeros would flatter.
"""

import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from gpu_race import ask, keep, measured_on
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

REPEATS, WARMUPS = 30, 10


def seconds(work: Callable[[], Any], device: str, repeats: int = REPEATS) -> float:
    """The median of so many times."""
    for _ in range(WARMUPS):
        work()
    found = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
    return statistics.median(found)


def products(device: str, scale: int) -> dict[str, float]:
    """TFLOP/s of bf16 products."""
    tokens, width, inner = 32768 // scale, 2048 // scale, 8192 // scale
    shapes = {
        "8192 x 8192 x 8192": (8192 // scale,) * 3,
        "attention's": (tokens, width, width),
        "up": (tokens, width, inner),
        "down": (tokens, inner, width),
        "head of 32,000": (tokens, width, 32000 // scale),
    }
    found = {}
    for name, (rows, inside, columns) in shapes.items():
        left, right = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((rows, inside), (inside, columns)))
        found[name] = 2 * rows * inside * columns / seconds(lambda a=left, b=right: a @ b, device) / 1e12
    return found


def eight_bits(device: str, size: int) -> float | None:
    """TFLOP/s of an fp8 product with one scale per tensor; None where torch has none for the device."""
    kind = torch.float8_e4m3fn
    left, right = torch.randn(size, size, device=device).to(kind), torch.randn(size, size, device=device).to(kind).t()
    one = torch.ones((), device=device)
    try:
        taken = seconds(lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16), device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        print(f"fp8: {str(error).splitlines()[0]}")
        return None
    return 2 * size**3 / taken / 1e12


def copy(device: str, count: int) -> float:
    """TB/s on the device, bytes read and written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * count / seconds(lambda: target.copy_(source), device) / 1e12


def attention(device: str, rows: int, heads: int, length: int, width: int) -> dict[str, float | None]:
    """TFLOP/s of causal attention forward and backward, half of the pairs counted, by backend."""
    shape = (rows, heads, length, width)
    inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(shape, device=device, dtype=torch.bfloat16)
    work = 3.5 * 4 * rows * heads * length * length * width / 2
    found: dict[str, float | None] = {}
    for backend in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def both() -> tuple[Tensor, ...]:
            return torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True), inputs, gradient)

        name = "torch's choice" if backend is None else backend.name
        try:
            with nullcontext() if backend is None else sdpa_kernel(backend):
                found[name] = work / seconds(both, device) / 1e12
        except RuntimeError:
            found[name] = None
    return found


def clocks(device: str) -> str | None:
    """What nvidia-smi says while a long product runs."""
    if device != "cuda":
        return None
    left = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(1500):  # about 2 seconds of work in the queue
        left @ left
    fields = "name,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.total"
    said = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True).stdout
    torch.cuda.synchronize()
    return said


def main() -> None:
    options = ask(__doc__)
    device, scale = options.device, 64 if options.rehearse else 1
    torch.manual_seed(0)
    results = {
        "what": "what the device can do",
        **measured_on(device),
        "goals": [],
        "tflops_of_products": products(device, scale),
        "tflops_of_fp8": eight_bits(device, 8192 // scale),
        "terabytes_per_second_of_copies": copy(device, 2**29 // scale**2),
        "tflops_of_attention": attention(device, 8 if scale == 1 else 1, 32 // min(scale, 16), 2048 // scale, 64),
        "clocks": clocks(device),
    }
    for name, value in results.items():
        if name.startswith("t"):
            print(f"{name}: {value}")
    keep("gpu_probe", results, options)


if __name__ == "__main__":
    main()

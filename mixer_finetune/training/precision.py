"""Which precision a run takes where none is asked for, and the fast exact path for float32 matrix products on CPUs.

PyTorch's default library reaches less than half of some CPUs' float32 peak, where oneDNN's kernel, behind the switch
`torch.backends.mkldnn.matmul.fp32_precision = "bf16"`, computes in float32 all the same. On CPUs with bf16 matrix units
that switch would really lose precision, so it is kept only if a probe product comes out as exact as before.
"""

from __future__ import annotations

from typing import Any

import torch

AUTO = "auto"
# Relative error of a float32 product of this size is about 4e-7; a bf16 one's about 3e-3.
LARGEST_ERROR = 2e-6


def automatic_precision(accelerator: Any) -> tuple[str, str]:
    """What `precision="auto"` stands for: bf16-mixed on GPUs with bf16 units, float32 elsewhere.

    CPUs stay with float32: their bf16 instructions make a step 2 times as fast on one and 1.5 times as slow on another
    (docs/measurements.md), and what a CPU has does not tell which.

    Args:
        accelerator: As the Trainer takes it: "auto", "gpu", "cuda", "cpu", ..., or an object.

    Returns:
        The precision as the Trainer takes it, and why, for the header.
    """
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__
    if name in ("auto", "gpu", "cuda", "CUDAAccelerator") and torch.cuda.is_available():
        if _all_have_bf16():
            return "bf16-mixed", "auto: the GPU has bf16 units"
        return "32-true", "auto: the GPU has no bf16 units"
    return "32-true", "auto: float32 but on GPUs with bf16 units"


def _all_have_bf16() -> bool:
    """Whether each GPU computes bf16 itself, from NVIDIA's Ampere on."""
    if torch.version.hip:
        return bool(torch.cuda.is_bf16_supported())
    return all(torch.cuda.get_device_properties(i).major >= 8 for i in range(torch.cuda.device_count()))


def probe_error() -> float:
    """Relative error of a float32 product with the present settings against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(512, 256, generator=generator)
    exact = a.double() @ b.double()
    linear = torch.nn.functional.linear(a, b.T.contiguous()).double()
    return max(float((product - exact).norm() / exact.norm()) for product in ((a @ b).double(), linear))


def use_fast_float32() -> str | None:
    """Switch to oneDNN's float32 products if that costs no precision.

    Returns:
        What was done, for the log; None where there is no such switch.
    """
    if not torch._C._has_mkldnn or not hasattr(torch.backends.mkldnn, "matmul"):
        return None
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    error = probe_error()
    if error <= LARGEST_ERROR:
        return f"float32 products by oneDNN (probe: relative error {error:.0e})"
    settings.fp32_precision = before
    return f"float32 products by PyTorch's default (oneDNN's switch would cost precision: relative error {error:.0e})"

"""`mixer-finetune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    run: str,
    *,
    format: Literal["onnx", "torch-export", "safetensors"] = "onnx",
    output: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    quantize: Literal["int8"] | None = None,
) -> int:
    """Write a finished run's model for other runtimes.

    Pre-processing and label names are in it. Its probabilities are compared with the model's, and it is not written if
    they differ too much.

    Args:
        run: Run folder of a finished fit.
        format: onnx and torch-export are one file for batches of any size, safetensors is a model folder.
        output: File, or folder for safetensors; in RUN/export when not given.
        dtype: Number format of the weights; other than float32 for safetensors alone.
        quantize: int8 makes the weights 8-bit; for onnx alone, and measured on the dev split.

    Returns:
        The exit status.

    Raises:
        UserError: The run folder is none, or the model can't be written so.
    """
    from mixer_finetune.runs import RunFolder
    from mixer_finetune.sharing import export as exporting
    from mixer_finetune.texts import terminal

    target = Path(output).expanduser() if output else None
    print(terminal(exporting.export(RunFolder.open(run), format, target, dtype, quantize)))
    return 0

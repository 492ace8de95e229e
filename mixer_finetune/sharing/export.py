"""export: a run's model for other runtimes, with pre-processing and label names, compared with the model itself."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import OWN_KEY, model_config, save_model_folder
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.splits import open_data
from mixer_finetune.files import write_atomically
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card import public_name
from mixer_finetune.training.metrics import average_precision

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2", "safetensors": "model"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest difference of probabilities from the float32 model that an export may have, by its number format.
LARGEST_DIFFERENCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# Accuracy, or mean average precision, on the dev split that int8 may cost.
LARGEST_LOSS = 0.01
Logits = Callable[[Tensor], Tensor]
_DYNAMIC_BATCH: dict[str, Any] = {"images": {0: torch.export.Dim.DYNAMIC}}


def export(
    run: RunFolder, format: str, output: Path | None = None, dtype: str = "float32", quantize: str | None = None
) -> str:
    """Write a run's model in another format.

    Args:
        run: A finished run.
        format: "onnx" (dynamic batch), "torch-export" (an ExportedProgram, dynamic batch) or "safetensors" (a model
            folder).
        output: File, or folder for safetensors; RUN/export/... when None.
        dtype: Of the weights: "float32", or for safetensors "bfloat16" or "float16".
        quantize: "int8" for 8-bit weights (onnx), measured on the dev split.

    Returns:
        What was written and how far it is from the model, in lines for the user.

    Raises:
        UserError: An option is out of range, a package is missing, or the export differs too much: nothing is left.
    """
    _check(format, dtype, quantize)
    config = run.read_config()
    backbone = load_backbone(run.model).eval()
    backbone.origin = _start(run)
    target = _target(run, format, output, quantize)
    notes: list[str] = []

    def write(path: Path) -> None:
        logits = _WRITERS[format](backbone, path, dtype, run.calibration_file)
        difference = _difference(backbone, logits)
        if difference > LARGEST_DIFFERENCE[dtype]:
            raise UserError(
                f"the export's probabilities differ by {difference:.1e} from the model's: it was not written"
            )
        if quantize:
            notes.append(_quantized(path, logits, config, backbone))
        else:
            notes.append(f"largest difference of a probability from the model's: {difference:.1e}")

    if format == "safetensors":
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            write(Path(folder) / "model")
            shutil.move(str(Path(folder) / "model"), target)
    else:
        write_atomically(target, write)
    size = sum(file.stat().st_size for file in target.rglob("*")) if target.is_dir() else target.stat().st_size
    return "\n".join([f"wrote {target} ({size / 1e6:,.1f} MB)", *notes])


def _check(format: str, dtype: str, quantize: str | None) -> None:
    """Refuse options that do not go together."""
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}'", option="format", choices=" or ".join(FORMATS))
    if dtype not in DTYPES:
        raise UserError(f"unknown number format '{dtype}'", option="dtype", choices=" or ".join(DTYPES))
    if dtype != "float32" and format != "safetensors":
        raise UserError(f"{format} takes float32 weights alone, got {dtype}", option="dtype", choices="float32")
    if quantize not in (None, "int8"):
        raise UserError(f"unknown quantization '{quantize}'", option="quantize", choices="int8")
    if quantize and format != "onnx":
        raise UserError(f"{format} can't be quantized", option="format", choices="onnx")


def _target(run: RunFolder, format: str, output: Path | None, quantize: str | None) -> Path:
    """Where to write, in a folder that exists.

    Raises:
        UserError: It can't be written there, or something is there that would be lost.
    """
    target = output or run.exports / FORMATS[format]
    if quantize and output is None:
        target = target.with_name("model_int8.onnx")
    if format == "safetensors" and (target.is_file() or (target / "model.safetensors").is_file()):
        raise UserError(f"{target} exists already", advice="remove it, or choose another {output}")
    if target.is_dir() and format != "safetensors":
        raise UserError(f"{target} is a folder, and {format} is one file", option="output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror})", option="output") from error
    return target


def _start(run: RunFolder) -> dict[str, Any]:
    """Where the run's weights came from, without the places of this machine."""
    origin = json.loads((run.model / "config.json").read_text(encoding="utf-8"))[OWN_KEY]["backbone"]
    return {**origin, "source": public_name(origin["source"], origin.get("revision"))}


def _metadata(backbone: Backbone, calibration: Path) -> dict[str, str]:
    """Pre-processing and label names, and what the dev split says of its probabilities, as text."""
    config = model_config(backbone, backbone.label_names)
    trust = {"calibration": calibration.read_text(encoding="utf-8")} if calibration.is_file() else {}
    return {
        **trust,
        "architecture": backbone.architecture,
        "label_names": json.dumps(backbone.label_names, ensure_ascii=False),
        "preprocessing": json.dumps(backbone.preprocessing.to_pretrained_cfg()),
        "config": json.dumps(config, ensure_ascii=False),
    }


def _images(backbone: Backbone, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, backbone.geometry.in_chans, *backbone.image_size, generator=generator)


@torch.inference_mode()
def _difference(backbone: Backbone, load: Logits) -> float:
    """Largest difference of a probability, over batches of one and of three images."""
    return max(
        float((backbone.probabilities(load(images)) - backbone.probabilities(backbone(images))).abs().max())
        for images in (_images(backbone, 1), _images(backbone, 3))
    )


def _write_onnx(backbone: Backbone, path: Path, dtype: str, calibration: Path) -> Logits:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"onnx needs the package {error.name}", advice="install it with: pip install 'mixer_finetune[export]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            backbone,
            (_images(backbone, 2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_DYNAMIC_BATCH,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in _metadata(backbone, calibration).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return _onnx_logits(path)


def _onnx_logits(path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_torch_export(backbone: Backbone, path: Path, dtype: str, calibration: Path) -> Logits:
    program = torch.export.export(backbone, (_images(backbone, 2),), dynamic_shapes=_DYNAMIC_BATCH)
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files=_metadata(backbone, calibration))
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_safetensors(backbone: Backbone, path: Path, dtype: str, calibration: Path) -> Logits:
    save_model_folder(path, copy.deepcopy(backbone).to(DTYPES[dtype]), backbone.label_names)
    if calibration.is_file():
        shutil.copyfile(calibration, path / calibration.name)
    return load_backbone(path).eval()


_WRITERS = {"onnx": _write_onnx, "torch-export": _write_torch_export, "safetensors": _write_safetensors}


def _quantized(path: Path, exact: Logits, config: dict[str, Any], backbone: Backbone) -> str:
    """Make the ONNX file 8-bit in place, if that costs little accuracy on the dev split.

    Raises:
        UserError: It costs more than `LARGEST_LOSS`.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    metadata = list(onnx.load(str(path)).metadata_props)
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(_no_advice)
    model = onnx.load(str(path))
    if not model.metadata_props:
        model.metadata_props.extend(metadata)
        onnx.save(model, str(path))
    data = open_data(config)
    data.preprocessing = backbone.preprocessing
    role = "val" if "val" in data.splits else data.evaluation_role
    if role is None:
        raise UserError(
            "int8 is measured on a dev or test split, and the run's data has none", advice="leave {quantize} out"
        )
    labels, exactly, roughly = _probabilities(data, role, backbone, exact, _onnx_logits(path))
    before, after = (_score(found, labels) for found in (exactly, roughly))
    same = _agreement(roughly, exactly.argmax(-1) if labels.ndim == 1 else exactly)
    split = data.splits[role]
    metric = "accuracy" if labels.ndim == 1 else "mean average precision"
    figures = (
        f"on {len(split):,} images of split {split.name}: {metric} "
        f"of int8 {after:.2%}, of float32 {before:.2%}; "
        f"the same label in both for {same:.2%}, largest difference of a probability "
        f"{(exactly - roughly).abs().max():.2f}"
    )
    if before - after > LARGEST_LOSS:
        raise UserError(f"int8 loses too much, so it was not written: {figures} (at most {LARGEST_LOSS:.0%} less)")
    return figures


def _score(probabilities: Tensor, labels: Tensor) -> float:
    """Accuracy; for labels (n, C) mean average precision, since nearly all of them are often 0."""
    if labels.ndim == 1:
        return _agreement(probabilities, labels)
    return float(average_precision(probabilities, labels > 0.5).nanmean().nan_to_num(0.0))


def _agreement(probabilities: Tensor, labels: Tensor) -> float:
    """Share of the labels, (n,) or (n, C), that the probabilities (n, C) answer so."""
    if labels.ndim == 1:
        return float((probabilities.argmax(-1) == labels).float().mean())
    return float(((probabilities >= 0.5) == (labels >= 0.5)).float().mean())


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


@torch.inference_mode()
def _probabilities(data: ImageDataModule, role: str, backbone: Backbone, *models: Logits) -> tuple[Tensor, ...]:
    """The labels (n,) of a split's images, and the probabilities (n, C) that each model gives them."""
    found = []
    for batch in data.eval_dataloader(role):
        batch = data.prepare(batch, training=False)
        found.append((batch.labels, *(backbone.probabilities(logits(batch.images)) for logits in models)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))

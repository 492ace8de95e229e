"""Forward passes as predict does them against timm, OpenVINO and ONNX Runtime, interleaved in one process, as ratios.

    pip install openvino
    OMP_NUM_THREADS=1 python tests/benchmarks/predict_speed.py [--model mixer_s16_224] [--batch 8] [--bf16] [--rounds
    12]

The medians of the process's CPU time; the limit is the model's operations over the rate of a square matrix product.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import timm
import torch
from backbone_speed import macs, peak

from mixer_finetune import load_backbone
from mixer_finetune.training.precision import use_fast_float32


def contenders(name: str, images: torch.Tensor, bf16: bool) -> dict[str, Callable[[], object]]:
    """What is timed: a forward pass each, all of the same kind of model on the same images."""
    ours, theirs = load_backbone(name, num_classes=1000).eval(), timm.create_model(name, num_classes=1000).eval()
    compiled = copy.deepcopy(ours)
    compiled.compile_blocks()

    def of(model: torch.nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return model(images)

        return run

    threads = torch.get_num_threads()
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"})
    graph = core.compile_model(openvino.convert_model(ours, example_input=images), "CPU")
    runs = {
        "ours": of(ours),
        "ours, compiled": of(compiled),
        "timm": of(theirs),
        "OpenVINO": lambda: graph(images.numpy()),
    }
    if not bf16:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            torch.onnx.export(
                ours, (images,), path, dynamo=True, verbose=False, input_names=["images"], external_data=False
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        runs["ONNX Runtime"] = lambda: session.run(None, {"images": images.numpy()})
    return runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mixer_s16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    print(use_fast_float32())
    images = torch.randn(arguments.batch, 3, 224, 224)
    runs = contenders(arguments.model, images, arguments.bf16)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(arguments.rounds + 2):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if i > 1:  # the first rounds warm up
                times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rate = peak("cpu", torch.bfloat16 if arguments.bf16 else torch.float32)
    operations = 2 * macs(load_backbone(arguments.model), 224) * arguments.batch
    print("| | OpenVINO's time over its | of the limit |\n|-|-|-|")
    for name, median in medians.items():
        print(f"| {name} | {medians['OpenVINO'] / median:.2f} | {operations / median / rate:.2f} |")


if __name__ == "__main__":
    main()

"""Accuracy of a backbone at another resolution by each method, right after resizing and after a short fine-tune.

    python tests/benchmarks/resize_methods.py --source PATH [--backbone RUN] --sizes 16 24 48 [--steps 200] [\
        --seeds 0 1 2]

Beside the methods: `image resizing`, what one does without them (the backbone at its own resolution, which images are
scaled to), and `from scratch`, fresh weights at the new resolution with the same number of steps. Without --steps
nothing is trained, and the backbone's head must be of the data's classes. Mean, and standard deviation over the seeds,
of test accuracy.
"""

import argparse
import statistics
from typing import Any

import lightning.pytorch as pl

from mixer_finetune import ImageDataModule, MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.resize import METHODS
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.training.precision import use_fast_float32


def accuracies(options: argparse.Namespace, backbone: str, size: int | None, method: str, seed: int) -> list[float]:
    """Test accuracy in percent before training, and after `options.steps` steps where that is not 0."""
    data = ImageDataModule(
        options.source, batch_size=128, crop_area=(0.5, 1.0), crop_pct=1.0, num_workers=options.workers, seed=seed
    )
    fresh: dict[str, Any] = {"lr": options.lr}
    if backbone == options.scratch:
        patch_size = load_backbone(options.backbone).geometry.patch_size
        fresh = {"optimizer": "adamw", "lr": 0.002, "patch_size": patch_size}
    model = MixerClassifier(
        backbone, label_names=data.label_names, num_classes=data.num_classes, image_size=size, resize=method,
        warmup_steps=options.steps // 10, seed=seed, **fresh,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=options.steps, accelerator="cpu", devices=1, gradient_clip_val=1.0, deterministic=True, logger=False,
        limit_val_batches=0, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False, precision=options.precision,
    )  # fmt: skip
    found = [trainer.test(model, data, verbose=False)[0]["test/accuracy"]]
    if options.steps:
        trainer.fit(model, data)
        found.append(trainer.test(model, data, verbose=False)[0]["test/accuracy"])
    return [100 * value for value in found]


def row(options: argparse.Namespace, name: str, backbone: str, size: int | None, method: str) -> str:
    """A line of the table."""
    try:
        runs = [accuracies(options, backbone, size, method, seed) for seed in options.seeds]
    except UserError:
        return f"| {name} | - | |"  # the method can't give that size
    cells = [f"{runs[0][0]:.2f}%"]
    if options.steps:
        after = [run[1] for run in runs]
        spread = f" ± {statistics.stdev(after):.2f}" if len(after) > 1 else ""
        cells.append(f"{statistics.mean(after):.2f}%{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--backbone", default="mixer_nano")
    parser.add_argument("--scratch", default="mixer_nano_32", help="the backbone's architecture")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 48, 64])
    rows = [*METHODS[1:], "scratch"]  # without auto, which is one of them
    parser.add_argument("--methods", nargs="+", default=rows, choices=rows)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    if options.methods == ["scratch"] and not options.steps:
        parser.error("fresh weights need --steps")
    quiet()
    use_fast_float32()
    print("| | right after | fine-tuned |\n|-|-|-|")
    print(row(options, "own size, image resizing", options.backbone, None, "auto"), flush=True)
    for size in options.sizes:
        for method in options.methods:
            if method != "scratch":
                print(row(options, f"{size} px, {method}", options.backbone, size, method), flush=True)
        if options.steps and "scratch" in options.methods:
            print(row(options, f"{size} px, from scratch", options.scratch, size, "interpolate"), flush=True)


if __name__ == "__main__":
    main()

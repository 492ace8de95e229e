"""Accuracy right after resizing, without any training: a trained backbone evaluated at other resolutions, by each method.

    python tests/benchmarks/resize_methods.py --source PATH [--backbone mixer_nano] [--sizes 16 24 48 64 96]

The backbone's head must be of the data's classes. The first row is the backbone at its own resolution; `image resizing` is what
one does without these methods: the backbone as it is, which images of any size are scaled down or up for.
"""

import argparse

import torch

from mixer_finetune import ImageDataModule, UserError, load_backbone
from mixer_finetune.precision import use_fast_float32


@torch.inference_mode()
def accuracy(source: str, backbone: torch.nn.Module) -> float:
    """Top-1 accuracy on the test split, in percent."""
    data = ImageDataModule(source, num_workers=0)
    data.preprocessing = backbone.preprocessing
    right = total = 0
    for batch in data.eval_dataloader("test"):
        batch = data.prepare(batch, training=False)
        right += int((backbone(batch.images).argmax(-1) == batch.labels).sum())
        total += len(batch.labels)
    return 100 * right / total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--backbone", default="mixer_nano")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 48, 64, 96])
    arguments = parser.parse_args()
    use_fast_float32()
    own = load_backbone(arguments.backbone).eval()
    size = own.image_size[0]
    methods = ("interpolate", "block_diagonal", "patch")
    print(f"| px | {' | '.join(methods)} |\n|-|{'-|' * len(methods)}")
    print(f"| {size}, image resizing | {accuracy(arguments.source, own):.2f}% | | |", flush=True)
    for side in arguments.sizes:
        cells = []
        for method in methods:
            try:
                model = load_backbone(arguments.backbone, image_size=side, resize=method).eval()
                cells.append(f"{accuracy(arguments.source, model):.2f}%")
            except UserError:
                cells.append("-")  # the method can't give that size
        print(f"| {side} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Whether bf16 pays on this CPU: the time of a training step in float32 over that under bf16 autocast, interleaved.

    OMP_NUM_THREADS=1 python tests/benchmarks/bf16_speed.py

CPU time, medians of 7 steps; float32 with oneDNN's products where they are exact.
"""

import statistics
import time

import torch

from mixer_finetune import load_backbone
from mixer_finetune.training.precision import use_fast_float32

SHAPES = (("mixer_nano", 64), ("mixer_s32_224", 8), ("mixer_s16_224", 4), ("mixer_b16_224", 2))


def main():
    print(use_fast_float32())
    for name, batch in SHAPES:
        model = load_backbone(name, num_classes=10)
        images, labels = torch.randn(batch, 3, *model.image_size), torch.zeros(batch, dtype=torch.long)
        seconds = {False: [], True: []}
        for _ in range(7):
            for bf16, spent in seconds.items():
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                spent.append(time.process_time() - began)
                model.zero_grad()
        full, half = (statistics.median(spent) for spent in seconds.values())
        print(f"{name:<14} {full * 1e3:6.0f} ms in float32, {half * 1e3:6.0f} ms in bf16: {full / half:.2f}")


if __name__ == "__main__":
    main()

"""Our backbones against timm's: forward pass and SGD step, interleaved in one process, as ratios.

    OMP_NUM_THREADS=1 python tests/benchmarks/backbone_speed.py [--models NAME ...] [--batch 8] [--compile] [--device
    cuda]

For each architecture, precision and pass: how much longer timm's takes than ours, as PyTorch sets up float32 products
by default and with the switch of `mixer_finetune.training.precision`, and the share of the matrix peak that ours
reaches, the peak being a square product's in the same process. Medians over rounds, of the process's CPU time where
there is no GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
from torch import nn

from mixer_finetune import load_backbone
from mixer_finetune.training.precision import use_fast_float32

Pass = Callable[[], None]


def clock(device: str) -> float:
    """Seconds: of the wall on a GPU, of the process's CPU time else."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def passes(model: nn.Module, images: torch.Tensor, bf16: bool, train: bool) -> Pass:
    """A function that does one forward pass, or one whole SGD step."""
    cast = torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()
    if not train:
        model.eval()

        @torch.inference_mode()
        def forward() -> None:
            with cast:
                model(images)

        return forward
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        with cast:
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product."""
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        begin = clock(device)
        a @ b
        times.append(clock(device) - begin)
    return 2 * n**3 / min(times)


def set_switch(on: bool, default: str) -> None:
    """Float32 products by oneDNN, or as PyTorch comes."""
    if on:
        use_fast_float32()
    else:
        torch.backends.mkldnn.matmul.fp32_precision = default


def compare(name: str, batch: int, bf16: bool, train: bool, device: str, rounds: int, compiled: bool) -> None:
    """Print one line of the table."""
    default = torch.backends.mkldnn.matmul.fp32_precision
    theirs, ours = timm.create_model(name, num_classes=10), load_backbone(name, num_classes=10)
    size = theirs.default_cfg["input_size"][-1]
    images = torch.randn(batch, 3, size, size, device=device)
    for model in (theirs, ours):
        model.to(device)
        if compiled:
            model.compile()
    runs = {"timm": (passes(theirs, images, bf16, train), False), "ours": (passes(ours, images, bf16, train), True)}
    if not bf16 and device == "cpu":
        runs["timm + switch"] = (passes(theirs, images, bf16, train), True)
    times: dict[str, list[float]] = {key: [] for key in runs}
    for i in range(rounds + 1):
        for key, (run, switch) in runs.items():
            set_switch(switch, default)
            begin = clock(device)
            run()
            if i:  # the first round warms up
                times[key].append(clock(device) - begin)
    set_switch(True, default)
    limit = peak(device, torch.bfloat16 if bf16 else torch.float32)
    set_switch(False, default)
    medians = {key: statistics.median(values) for key, values in times.items()}
    flops = 2 * macs(ours, size) * batch * (3 if train else 1)
    switch_ratio = f"{medians['timm + switch'] / medians['ours']:.2f}" if "timm + switch" in medians else "-"
    print(
        f"| {name} b{batch} {'step' if train else 'forward'} {'bf16' if bf16 else 'fp32'}"
        f"{' compiled' if compiled else ''} "
        f"| {medians['timm'] / medians['ours']:.2f} | {switch_ratio} | {flops / medians['ours'] / limit:.2f} "
        f"| {1e3 * medians['ours']:.0f} |",
        flush=True,
    )


def macs(model: nn.Module, size: int) -> float:
    """Multiply-accumulates of an image: each linear layer's weights times the columns or rows that it is applied to."""
    tokens = (size // model.stem.patch_size) ** 2
    channels = model.num_features
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "head":
            spatial = "mlp_tokens" in name or "linear_tokens" in name
            total += module.weight.numel() * (channels if spatial else tokens)
    return total + model.stem.proj.weight.numel() * tokens


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mixer_s16_224", "mixer_s32_224", "mixer_b16_224"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print("| | timm / ours | timm with the switch / ours | of the matrix peak | ours, ms |\n|-|-|-|-|-|")
    for name in arguments.models:
        batch = arguments.batch * (4 if "32_224" in name else 1)
        for bf16 in (False, True):
            for train in (False, True):
                compare(name, batch, bf16, train, arguments.device, arguments.rounds, arguments.compile)


if __name__ == "__main__":
    main()

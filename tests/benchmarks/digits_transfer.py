"""Is the transfer worth it? Digits test accuracy of fine-tuning, a linear probe and training from scratch, over seeds.

    python tests/benchmarks/digits_transfer.py [--seeds 5] [--output_dir runs/digits_transfer]

Each row is the recipe `digits` as a user runs it, with the changes that the row names; the same number of epochs. Runs
that are already in the output folder are not repeated. Each method has the optimizer and learning rate that came out
best on the dev
split: fine-tuning of {0.03, 0.1, 0.2, 0.3, AdamW 0.002, AdamW 0.005}, the probe of {0.05, 0.2, 0.5, 2}, training from
scratch of {0.05, 0.2, AdamW 0.002}.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = {
    "fine-tuned": [],
    "linear probe": ["--recipe", "linear_probe"],
    "from scratch": ["--model.backbone", "mixer_nano_32", "--model.optimizer", "adamw", "--model.lr", "0.002"],
}


def accuracy(method: str, seed: int, output_dir: Path) -> float:
    """Test accuracy of one run."""
    name = f"{method.replace(' ', '_')}_{seed}"
    done = list((output_dir / name).glob("*/results.json"))
    if not done:
        options = ["--recipe", "digits", *METHODS[method], "--seed_everything", str(seed), "--name", name]
        command = [sys.executable, "-m", "mixer_finetune", "fit", *options, "--output_dir", str(output_dir)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        done = list((output_dir / name).glob("*/results.json"))
    return json.loads(done[-1].read_text())["metrics"]["accuracy"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/digits_transfer"))
    arguments = parser.parse_args()
    print("| method | test accuracy, mean | standard deviation | lowest |\n|-|-|-|-|")
    for method in METHODS:
        values = [100 * accuracy(method, seed, arguments.output_dir) for seed in range(arguments.seeds)]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        print(f"| {method} | {mean:.2f}% | {deviation:.2f} | {min(values):.2f}% |", flush=True)


if __name__ == "__main__":
    main()

"""A training step beside a busy program, with threads as the command line sets them up and as torch does.

    python tests/benchmarks/busy_cores.py [--rounds 3]

Each contender is a process of its own, since GNU's OpenMP reads its settings once; they run in turns, with and without
the other program. Medians over rounds of the wall-clock time of a step of the bundled backbone on 64 images.
"""

import argparse
import os
import statistics
import subprocess
import sys

STEPS = """
import os, sys, time
from mixer_finetune.cli.main import main
main(["--version"])  # sets the threads up
if sys.argv[1] == "torch":
    os.environ.pop("GOMP_SPINCOUNT")
import torch
from mixer_finetune import load_backbone
model = load_backbone("mixer_nano")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
images, labels = torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.long)
for step in range(25):
    if step == 5:
        begin = time.perf_counter()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
print((time.perf_counter() - begin) / 20)
"""
BUSY = "while True: pass"


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    for busy in (False, True):
        times: dict[str, list[float]] = {"ours": [], "torch": []}
        other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
        try:
            for _ in range(rounds):
                for name, found in times.items():
                    command = [sys.executable, "-c", STEPS, name]
                    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                    found.append(float(done.stdout.splitlines()[-1]))
        finally:
            if other:
                other.kill()
        ratio = statistics.median(times["torch"]) / statistics.median(times["ours"])
        print(
            f"{'beside a busy program' if busy else 'alone'}: torch's setting takes {ratio:.2f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()

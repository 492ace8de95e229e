"""How long commands take to start, over how long `import torch` takes.

    OMP_NUM_THREADS=1 python tests/benchmarks/start_speed.py [--rounds 5]

Medians of the wall-clock time of whole processes, in turns; files are in the page cache. `predict` classifies one image
with the bundled backbone, `fit` is imported only.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ENTRY = [sys.executable, "-m", "mixer_finetune"]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "image.png"
        Image.new("RGB", (32, 32)).save(image)
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "--help": [*ENTRY, "--help"],
            "fit --help": [*ENTRY, "fit", "--help"],
            "a mistake": [*ENTRY, "fit", "--recipe", "digit"],
            "backbones": [*ENTRY, "backbones"],
            "predict, imported": [sys.executable, "-c", "import mixer_finetune.evaluation.predict"],
            "predict of an image": [*ENTRY, "predict", "mixer_nano", str(image), "--output", f"{name}/p.csv"],
            "fit, imported": [sys.executable, "-c", "import mixer_finetune.engine.fit"],
        }
        times: dict[str, list[float]] = {key: [] for key in commands}
        for i in range(rounds + 1):
            for key, command in commands.items():
                begin = time.perf_counter()
                subprocess.run(command, capture_output=True, check=key != "a mistake")
                if i:  # the first round warms up
                    times[key].append(time.perf_counter() - begin)
    median = {key: statistics.median(values) for key, values in times.items()}
    for key, seconds in median.items():
        print(f"{key:<20} {seconds / median['import torch']:.2f}")


if __name__ == "__main__":
    main()

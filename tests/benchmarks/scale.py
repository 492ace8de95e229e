"""What a hundred times the usual size costs: CPU time and memory, ours beside torchvision and `datasets`.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py FOLDER [--part files rows classes predict] [--size 1.0]

FOLDER is filled once, with a few GB of small images. Each contender is a process of its own; its CPU time (with that of
its children) and its largest resident memory are printed, and how long the machine took. `--size 0.1` is a tenth of
everything, to see what grows faster than the work.
"""

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FILES, ROWS, CLASSES, OF_A_CLASS = 100_000, 1_000_000, 10_000, 10
OURS = "from mixer_finetune.data.sources import open_source; s = open_source({0!r}); print(s.description)"
CONTENDERS = {
    "files": {
        "ours": OURS,
        "ours, with the dev split": "from mixer_finetune import ImageDataModule; ImageDataModule({0!r})",
        "torchvision's ImageFolder": "from torchvision.datasets import ImageFolder; print(len(ImageFolder({0!r})))",
        "datasets": "import datasets; print(datasets.load_dataset('imagefolder', data_dir={0!r}, cache_dir={1!r}))",
    },
    "rows": {
        "ours": OURS,
        "ours, with the dev split": "from mixer_finetune import ImageDataModule; ImageDataModule({0!r})",
        "datasets": "import datasets; print(datasets.load_dataset('parquet', data_files={0!r} + '/*.parquet', "
        "cache_dir={1!r})['train'].unique('label')[:3])",
    },
}


def jpeg(number: int, side: int = 16) -> bytes:
    """A small image of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def image_files(folder: Path, files: int) -> Path:
    """100 classes of image files."""
    if not folder.exists():
        for i in range(100):
            (folder / f"class {i:03}").mkdir(parents=True)
        for i in range(files):
            (folder / f"class {i % 100:03}" / f"{i:07}.jpg").write_bytes(jpeg(i))
    return folder


def image_rows(folder: Path, rows: int, classes: int, split: str = "train") -> Path:
    """Parquet files as the Hub has them; a thousand images come again and again."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    images = [jpeg(i) for i in range(1000)]
    names = [f"class {i:05}" for i in range(classes)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    if not list(folder.glob(f"{split}-*.parquet")):
        for start in range(0, rows, 100_000):
            numbers = range(start, min(start + 100_000, rows))
            columns = {
                "image": [{"bytes": images[i % 1000], "path": f"{i}.jpg"} for i in numbers],
                "label": [i % classes for i in numbers],
            }
            table = pa.table(columns, schema=features.arrow_schema)
            pq.write_table(table, folder / f"{split}-{start:08}.parquet", row_group_size=1000)
    return folder


def measure(name: str, command: list[str]) -> None:
    """Run a process, and print what it took."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; " + (
        "print('KIB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = int(done.stdout.split("KIB ")[-1]) * 1024 / 1e9
    print(f"{name:<50} {cpu:8.1f} s of CPU  {time.perf_counter() - begin:8.1f} s  {memory:6.2f} GB", flush=True)


def main() -> None:
    """Print all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", nargs="+", default=["files", "rows", "classes", "predict"])
    parser.add_argument("--size", type=float, default=1.0)
    options = parser.parse_args()
    folder = options.folder / f"{options.size:g}"
    files, rows, classes = (int(count * options.size) for count in (FILES, ROWS, CLASSES))
    for part in options.part:
        if part in CONTENDERS:
            data = image_files(folder / "files", files) if part == "files" else image_rows(folder / "rows", rows, 100)
            for name, code in CONTENDERS[part].items():
                cache = folder / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                measure(f"{part}: {name}", [sys.executable, "-c", code.format(str(data), str(cache))])
        elif part == "classes":
            data = image_rows(folder / "classes", OF_A_CLASS * classes, classes)
            image_rows(folder / "classes", classes, classes, "test")
            fit = [
                sys.executable,
                "-m",
                "mixer_finetune",
                "fit",
                "--data.source",
                str(data),
                "--trainer.max_epochs",
                "1",
            ]
            fit += ["--output_dir", str(folder / "runs"), "--trainer.accelerator", "cpu"]
            measure(f"fit of {classes:,} classes, with its report", fit)
        else:
            data, table = image_files(folder / "files", files), folder / "predictions.csv"
            for old in (table, table.with_name(f"{table.name}.part")):
                old.unlink(missing_ok=True)
            command = [
                sys.executable,
                "-m",
                "mixer_finetune",
                "predict",
                "mixer_nano",
                str(data),
                "--output",
                str(table),
            ]
            measure(f"predict over {files:,} files", command)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

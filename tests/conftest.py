"""Real commands on small real images: what all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see cli.py; torch reads it when it is imported

import torch
from PIL import Image

import forked

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # else processes would run what is installed, which may be of an older day


def pytest_collection_modifyitems(items):
    """Each test has its folder as a marker: `pytest -m hub`, `pytest -m "unit and not slow"`."""
    for item in items:
        item.add_marker(item.path.relative_to(ROOT / "tests").parts[0])


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """An environment without the user's caches, tokens or network, in which this checkout is what is imported."""
    home = tmp_path_factory.mktemp("hf_home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MIXER_"))}
    return {**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every run of a test, whichever tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory, environment):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(environment["HF_HOME"]) / "datasets")


def program(folder, environment, *arguments, timeout=240):
    """Run `python -m mixer_finetune ...` as users do, which ddp needs, because it starts that command again."""
    command = [sys.executable, "-m", "mixer_finetune", *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture
def begin(environment, tmp_path):
    """Begin `mixer-finetune ...` in an empty folder: a process that leads a group of its own."""

    def start(*arguments, **changes):
        return forked.start(forked.command, tuple(map(str, arguments)), {**environment, **changes}, tmp_path)

    return start


@pytest.fixture
def cli(begin):
    """Run `mixer-finetune ...` in an empty folder."""

    def run(*arguments, timeout=240, check=None, **changes):
        result = begin(*arguments, **changes).finished(timeout)
        if check is not None:
            assert result.returncode == check, result.stdout + result.stderr
        return result

    return run


def make_photos(folder, counts, size=(40, 30), suffix=".png", seed=0):
    """A folder of noisy one-colour images, one sub-folder a class: easy to learn, each image different."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = (
                rng.integers(0, 60, (size[1], size[0], 3)) + 60 * np.array([label == 0, label == 1, label == 2]) + 60
            )
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03d}{suffix}")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """48 images of three classes, larger than the backbone's input."""
    return make_photos(tmp_path_factory.mktemp("photos"), {"blue": 16, "green": 16, "red": 16})


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, and the function that makes room there: both in bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size, *options):
        return subprocess.run(["mount", *options, "-o", size, str(folder)], capture_output=True).returncode == 0

    if not resize("size=64k", "-t", "tmpfs", "tmpfs"):
        pytest.skip("mounting a file system takes rights that this user lacks")
    yield folder, lambda size: resize(f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


FIT = (
    "--trainer.max_epochs", "1", "--data.batch_size", "8", "--model.lr", "0.05", "--model.warmup_steps", "1",
    "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--output_dir", "runs", "--data.num_workers", "0",
)  # fmt: skip


def fitted(folder, environment, *options):
    """The run folder of a short fit on photos in a folder whose path nobody else should learn."""
    photos = make_photos(folder / "private_place" / "shapes", {"blue": 12, "green": 12, "red <b>": 12})
    arguments = ("fit", "--data.source", str(photos), *options, *FIT)
    result = forked.start(forked.command, arguments, environment, folder).finished(300)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (folder / "runs" / "custom").iterdir()
    return run


@pytest.fixture(scope="session")
def a_run(tmp_path_factory, environment):
    """A finished run on photos of three classes, one of which has a name that HTML must not take for a tag."""
    return fitted(tmp_path_factory.mktemp("fitted"), environment, "--model.backbone", "mixer_nano")

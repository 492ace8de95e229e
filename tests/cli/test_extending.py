"""The diffs of docs/extending.md apply, and what they add trains."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
# One process, since importing torch takes seconds.
PROGRAM = """
import torch
from mixer_finetune import load_backbone
from mixer_finetune.augment.upside_down import upside_down
from mixer_finetune.cli.main import main
from mixer_finetune.training.losses.poly import per_image

images = torch.arange(8.0).view(2, 1, 4, 1)
print(upside_down(images, None, torch.tensor([[0.1], [0.9]]))[0].flatten().tolist())
print(per_image(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), None).item())
features = load_backbone("feedforward_nano_32", num_classes=4, image_size=64, resize="features").eval()
print(features(torch.zeros(1, 3, 64, 64)).shape[1], flush=True)
main({arguments})
"""
FIT = (
    "fit --recipe digits --model.backbone feedforward_nano_32 --model.image_size 48 --model.optimizer adamw "
    "--model.loss poly --data.upside_down true --data.num_workers 0 --data.images_per_class 8 "
    "--trainer.max_epochs -1 --trainer.max_steps 2 --trainer.accelerator cpu "
    "--data.eval_batch_size 32 --trainer.limit_test_batches 1 --trainer.limit_val_batches 1"
)


def test_a_loss_an_augmentation_and_a_family_by_the_diffs_of_the_docs(environment, tmp_path):
    assert len(DIFFS) == 3
    for name in ("mixer_finetune", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    applied = subprocess.run(
        ["git", "apply", "-C1", "-"], cwd=tmp_path, input="".join(DIFFS), text=True, capture_output=True
    )
    assert applied.returncode == 0, applied.stderr
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{arguments}", repr(FIT.split()))],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flipped, loss, width, *said = done.stdout.splitlines()
    assert flipped == "[3.0, 2.0, 1.0, 0.0, 4.0, 5.0, 6.0, 7.0]"
    assert float(loss) == pytest.approx(np.log(2) + 0.5)
    assert width == "4"
    assert "upside down" in "".join(said) and "48 x 48 px in 12 x 12 patches of 4" in "".join(said)
    (run,) = (tmp_path / "runs" / "digits").iterdir()
    assert json.loads((run / "model" / "config.json").read_text())["architecture"] == "feedforward_nano_32"

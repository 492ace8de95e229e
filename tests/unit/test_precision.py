"""`--trainer.precision auto`: what it stands for on which device, said, recorded and kept."""

import types

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from mixer_finetune.cli.main import main
from mixer_finetune.engine.parser import configure
from mixer_finetune.engine.parts import build
from mixer_finetune.training.header import _device
from mixer_finetune.training.precision import automatic_precision


@pytest.fixture
def gpus(monkeypatch):
    """Have so many GPUs, each of a generation (8 is Ampere)."""

    def have(*generations):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(generations))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(generations))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(major=generations[i], minor=0)
        )

    return have


@pytest.mark.parametrize(
    ("generations", "accelerator", "chosen"),
    [
        ((9,), "auto", "bf16-mixed"),
        ((8, 9), "gpu", "bf16-mixed"),
        ((8,), "cuda", "bf16-mixed"),
        ((7,), "auto", "32-true"),
        ((9, 7), "auto", "32-true"),
        ((9,), "cpu", "32-true"),
        ((), "auto", "32-true"),
        ((), "mps", "32-true"),
    ],
)
def test_auto_is_bf16_on_gpus_with_bf16_units_alone(gpus, generations, accelerator, chosen):
    gpus(*generations)
    precision, why = automatic_precision(accelerator)
    assert precision == chosen and why.startswith("auto: ")


def test_accelerators_may_be_objects(gpus):
    gpus(9)
    assert automatic_precision(CUDAAccelerator())[0] == "bf16-mixed"
    assert automatic_precision(CPUAccelerator())[0] == "32-true"


def parts_of(tmp_path, *options, base=None):
    arguments = ["--data.source", "digits", "--model.backbone", "mixer_nano", "--trainer.accelerator", "cpu", *options]
    return build(configure(arguments, base), tmp_path)


def test_auto_is_the_default_and_a_run_records_what_it_stood_for(capsys, tmp_path, monkeypatch):
    assert main(["fit", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["precision"] == "auto"
    parts = parts_of(tmp_path)
    assert parts.trainer.precision == "32-true" and parts.config["trainer"]["precision"] == "32-true"
    assert "precision 32-true, auto: float32 but on GPUs" in _device(parts.trainer, parts.narrator.precision_note)

    # Elsewhere: what is typed holds, and what the run recorded.
    monkeypatch.setattr("mixer_finetune.engine.parts.automatic_precision", lambda _: ("bf16-mixed", "auto: it has"))
    assert parts_of(tmp_path).trainer.precision == "bf16-mixed"
    assert parts_of(tmp_path, "--trainer.precision", "32-true").trainer.precision == "32-true"
    assert parts_of(tmp_path, "--trainer.precision", "64").trainer.precision == "64-true"
    again = parts_of(tmp_path, base={"trainer": {"precision": parts.config["trainer"]["precision"]}})
    assert again.trainer.precision == "32-true" and "auto" not in (again.narrator.precision_note or "")


def test_a_plugin_that_says_the_precision_has_its_way(tmp_path):
    plugin = ("--trainer.plugins", "lightning.pytorch.plugins.DoublePrecision")
    parts = parts_of(tmp_path, *plugin)
    assert parts.trainer.precision == "64-true" and parts.config["trainer"]["precision"] is None

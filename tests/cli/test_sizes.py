"""Distillation and several sizes by real commands: killed and resumed, on two processes, and what they say."""

import csv
import json
import os
import signal

import pytest
import torch

from cli.test_fit import TINY, _wait_for_step, assert_bitwise_equal, run_folder, weights
from conftest import program
from mixer_finetune import load_backbone
from mixer_finetune.backbones.folder import save_model_folder


def teacher_of(path, names):
    """A model folder at 48 px with a head that is no zero."""
    model = load_backbone("mixer_nano_32", image_size=48, num_classes=len(names), seed=3)
    torch.manual_seed(0)
    with torch.no_grad():
        model.head.weight.normal_(std=0.5)
    save_model_folder(path, model, names)
    return path


def test_distillation_at_several_sizes_killed_and_resumed_ends_with_bitwise_the_same_weights(
    cli, begin, photos, tmp_path
):
    teacher = teacher_of(tmp_path / "teacher", ["red", "green", "blue", "more"])
    options = (
        "--data.source", photos, *TINY, "--trainer.max_epochs", 3, "--data.batch_size", 8, "--data.micro_batch_size", 4,
        "--data.mixup", 0.5, "--model.teacher", "teacher", "--model.teacher_temperature", 2, "--model.ema_decay", 0.9,
        "--model.train_sizes", "[24,32,[32,40]]", "--save_every_n_steps", 1, "--data.num_workers", 1,
        "--data.val_fraction", 0.25,
    )  # fmt: skip
    said = cli("fit", *options, "--name", "whole", check=0).stdout
    whole = run_folder(tmp_path, "whole")
    assert "a size drawn for each batch from 24, 32, 32 x 40 px" in said
    assert (
        "distilled from teacher at 48 x 48 px: its probabilities at temperature 2, 50% of the loss (3 of its 4" in said
    )
    process = begin("fit", *options, "--name", "killed").process
    _wait_for_step(tmp_path / "runs" / "killed", 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    killed = run_folder(tmp_path, "killed")
    assert not (killed / "results.json").exists(), "the run ended before it could be killed"
    before = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(before[:-4] + b"\0\0\0\0")
    refused = cli("fit", "--resume", killed, check=2).stderr
    assert "the weights of the teacher" in refused and "have changed since the run began" in refused
    (teacher / "model.safetensors").write_bytes(before)
    cli("fit", "--resume", killed, check=0)
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    assert_bitwise_equal(last[0]["state_dict"], last[1]["state_dict"])
    assert not any("teacher" in key for key in last[0]["state_dict"])
    assert_bitwise_equal(weights(whole), weights(killed))
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()

    # What it costs and gives at each size is in the results, the card and the report.
    sizes = json.loads((whole / "results.json").read_text())["sizes"]
    assert [each["image_size"] for each in sizes] == [[24, 24], [32, 32], [32, 40]] and sizes[1]["own"]
    assert sizes[0]["macs"] < sizes[1]["macs"] < sizes[2]["macs"]
    assert f"| 24 x 24 | {sizes[0]['macs'] / 1e9:.3g} |" in (whole / "model" / "README.md").read_text()
    assert "Accuracy against cost" in (whole / "report.html").read_text()

    # The model answers at each of its sizes, by any command.
    config = json.loads((whole / "model" / "config.json").read_text())
    assert config["mixer_finetune"]["image_sizes"] == [[24, 24], [32, 32], [32, 40]]
    cli("predict", whole, photos, "--image_size", "[32,40]", check=0)
    model = load_backbone(whole, image_size=(32, 40)).eval()
    with open(tmp_path / "predictions.csv", newline="") as file:
        row = next(csv.DictReader(file))
    (name, probability), *_ = model.predict(row["file"], 1).items()
    assert (row["label_1"], float(row["probability_1"])) == (name, pytest.approx(probability, abs=1e-5))
    measured = cli("validate", whole, "--model.image_size", 24, check=0).stdout
    assert f"accuracy       {sizes[0]['metrics']['accuracy']:.4f}" in measured


def test_distillation_at_several_sizes_on_two_processes_gives_the_result_of_one(cli, environment, tmp_path):
    teacher_of(tmp_path / "teacher", [str(i) for i in range(10)])
    options = (
        "--recipe", "digits", "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu",
        "--data.batch_size", 64, "--trainer.max_epochs", -1, "--trainer.max_steps", 4, "--data.micro_batch_size", 20,
        "--model.drop_path", 0.1, "--trainer.precision", "64-true", "--model.warmup_steps", 2, "--data.cutmix", 1,
        "--model.teacher", "teacher", "--model.train_sizes", "[16,24,32]",
    )  # fmt: skip
    one_thread = {**environment, "OMP_NUM_THREADS": "1"}
    program(tmp_path, one_thread, "fit", *options, "--recipe", "ddp", "--trainer.devices", 2, "--name", "two")
    cli("fit", *options, "--trainer.devices", 1, "--name", "one", check=0, OMP_NUM_THREADS="1")
    two, one = run_folder(tmp_path, "two"), run_folder(tmp_path, "one")
    for key, value in weights(one).items():
        assert (weights(two)[key] - value).abs().max() < 1e-12, key

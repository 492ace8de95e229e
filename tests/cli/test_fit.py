"""Real commands, from a folder of images to a run folder."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import program
from mixer_finetune.data.sampling import epoch_order

TINY = (
    "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    "--model.warmup_steps", "2",
)  # fmt: skip


def run_folder(tmp_path, name):
    (folder,) = (tmp_path / "runs" / name).iterdir()
    return folder


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_bitwise_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.fixture(scope="module")
def fitted_digits(environment, tmp_path_factory):
    """A short run of the digits recipe, and what it printed."""
    folder = tmp_path_factory.mktemp("digits")
    options = ("--recipe", "digits", *TINY, "--trainer.max_epochs", 1, "--data.batch_size", 128)
    result = program(folder, environment, "fit", *options)
    return run_folder(folder, "digits"), result.stdout


@pytest.fixture
def digits_run(fitted_digits, tmp_path):
    """A copy of that run."""
    run, output = fitted_digits
    return Path(shutil.copytree(run, tmp_path / "runs" / "digits" / run.name)), output


def test_a_run_leaves_the_whole_run_folder_and_replays_to_the_same_weights(digits_run, cli, tmp_path):
    run, output = digits_run
    assert "10 classes" in output and "652,650 of 652,650 parameters" in output and str(run.name) in output
    files = {
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard"
    }
    assert list((run / "tensorboard").glob("events.*"))
    assert files == {
        "config.yaml", "data.json", "metrics.csv", "results.json", "predictions.csv", "learning_curves.png",
        "confusion_matrix.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "model/config.json",
        "model/model.safetensors", "model/calibration.json", "model/README.md", "report.html", "training.json",
    }  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["samples"] == 359 and results["train_samples"] == 1295 and results["steps"] == 11
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["label_1"] for row in rows) / len(rows)
    assert len(rows) == 359 and right == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    temperature = json.loads((run / "model" / "calibration.json").read_text())["temperature"]
    trained = {key.removeprefix("backbone."): value for key, value in last.items()}
    for key in ("head.weight", "head.bias"):
        trained[key] = (trained[key].double() / temperature).float()
    assert_bitwise_equal(weights(run), trained)
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)]
    with open(run / "metrics.csv", newline="") as file:
        steps = {row["step"]: row for row in csv.DictReader(file)}
    assert float(steps["11"]["val/accuracy"]) > 0 and float(steps["10"]["train/loss"]) > 0

    cli("fit", "--config", run / "config.yaml", "--output_dir", "again", check=0)
    (again,) = (tmp_path / "again" / "digits").iterdir()
    assert_bitwise_equal(weights(run), weights(again))

    tested = cli("test", run, check=0).stdout
    assert f"{results['metrics']['accuracy']:.4f}" in tested and "359 images" in tested
    best = cli("validate", run / "checkpoints" / "best.ckpt", check=0).stdout
    assert "143 images" in best
    cli("predict", run, "--source", "digits", "--top_k", 2, "--output", "p.csv", check=0)
    with open(tmp_path / "p.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["label_1"] for row in predicted] == [row["label_1"] for row in rows]
    assert "label_3" not in predicted[0]


def test_a_run_killed_at_any_instant_and_resumed_ends_with_bitwise_the_same_weights(
    cli, begin, photos, environment, tmp_path
):
    """Photos are decoded by workers, in micro-batches, with every random thing switched on."""
    options = (
        "--data.source", photos, *TINY, "--trainer.max_epochs", 4, "--data.batch_size", 8, "--data.micro_batch_size", 4,
        "--data.color_jitter", 0.3, "--data.random_erasing", 0.5, "--data.rotation", 20,
        "--data.trivial_augment", "true",
        "--data.mixup", 0.5, "--data.cutmix", 1, "--data.mix_probability", 0.8, "--data.repeats", 2,
        "--model.drop_path", 0.3, "--save_every_n_steps", 1,
        "--data.num_workers", 2, "--data.val_fraction", 0.25, "--trainer.log_every_n_steps", 2,
    )  # fmt: skip
    cli("fit", *options, "--name", "whole", check=0)
    whole = run_folder(tmp_path, "whole")

    command = ("fit", *options, "--name", "killed")
    for kill_after in (2, 9, 14):  # steps; an epoch has 5, so inside the first, the second and the third
        process = begin(*command).process
        _wait_for_step(tmp_path / "runs" / "killed", kill_after, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        killed = run_folder(tmp_path, "killed")
        assert not (killed / "results.json").exists(), "the run ended before it could be killed"
        command = ("fit", "--resume", killed)
    resumed = program(tmp_path, environment, "fit", "--resume", killed)  # with another hash seed than its parts before
    assert "resuming   at step" in resumed.stdout
    assert_bitwise_equal(weights(whole), weights(killed))
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, killed)]
    assert_bitwise_equal(*last)
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_is_no_success(begin, photos, tmp_path, kind):
    options = (
        "--data.source",
        photos,
        *TINY,
        "--trainer.max_epochs",
        500,
        "--save_every_n_steps",
        1,
        "--data.num_workers",
        0,
    )
    running = begin("fit", *options, "--name", "stopped")
    _wait_for_step(tmp_path / "runs" / "stopped", 2, running.process)
    os.kill(running.process.pid, kind)
    result = running.finished(60)
    run = run_folder(tmp_path, "stopped")
    line = f"interrupted by {kind.name}; go on with: mixer-finetune fit --resume runs/stopped/{run.name}\n"
    assert result.stderr == line
    assert result.returncode == 1


def _wait_for_step(parent: Path, step: int, process, seconds=120):
    """Until a checkpoint of that step or a later one is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.is_alive(), "the run ended before it could be killed"
        for path in parent.glob("*/checkpoints/last.ckpt"):
            if torch.load(path, weights_only=True)["global_step"] >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} within {seconds} s")


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_is_used(cli, digits_run):
    run, _ = digits_run
    before = weights(run)
    (run / "training.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    resumed = cli("fit", "--resume", run, check=0)
    assert "last.ckpt can't be read" in resumed.stdout and "going on from best.ckpt" in resumed.stdout
    assert_bitwise_equal(before, weights(run))


def test_two_processes_give_the_result_of_one(cli, environment, tmp_path):
    options = (
        "--recipe", "digits", "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu",
        "--data.batch_size", 128, "--model.warmup_steps", 2, "--trainer.max_epochs", 1,
        "--data.micro_batch_size", 40, "--model.drop_path", 0.1, "--data.mixup", 0.5, "--data.cutmix", 1,
        "--trainer.precision", "64-true",
    )  # fmt: skip
    # best.ckpt is read by both processes, from the folder that the first one made.
    options += ("--weights", "best")
    one_thread = {**environment, "OMP_NUM_THREADS": "1"}
    program(tmp_path, one_thread, "fit", *options, "--recipe", "ddp", "--trainer.devices", 2, "--name", "two")
    cli("fit", *options, "--trainer.devices", 1, "--name", "one", check=0)
    two, one = run_folder(tmp_path, "two"), run_folder(tmp_path, "one")
    results = [json.loads((run / "results.json").read_text()) for run in (two, one)]
    assert results[0]["devices"] == 2 and results[0]["samples"] == results[1]["samples"] == 359
    assert results[0]["steps"] == results[1]["steps"] == 11
    for key, value in weights(one).items():
        assert (weights(two)[key] - value).abs().max() < 1e-12, key
    with open(two / "predictions.csv") as file:
        assert len(file.readlines()) == 360


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_train_and_evaluate(cli, tmp_path, precision):
    options = (
        "--recipe",
        "digits",
        *TINY,
        "--trainer.max_epochs",
        -1,
        "--trainer.max_steps",
        3,
        "--model.drop_path",
        0.1,
    )
    cli("fit", *options, "--trainer.precision", precision, check=0)
    run = run_folder(tmp_path, "digits")
    assert {value.dtype for value in weights(run).values()} == {
        torch.bfloat16 if precision == "bf16-true" else torch.float32
    }
    with open(run / "predictions.csv", newline="") as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == list(range(359))  # which bf16 can't count to


def test_the_best_weights_are_evaluated_and_exported_where_asked_for(cli, photos, tmp_path):
    options = ("--data.source", photos, *TINY, "--trainer.max_epochs", 4, "--data.batch_size", 8, "--model.lr", 0.5)
    cli("fit", *options, "--weights", "best", check=0)
    run = run_folder(tmp_path, "custom")
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert_bitwise_equal(weights(run), {k.removeprefix("backbone."): v for k, v in best["state_dict"].items()})
    refused = cli("fit", *options, "--weights", "best", "--data.val_fraction", 0, check=2)
    assert "the best weights need a dev split" in refused.stderr


def test_a_linear_probe_moves_the_head_alone(cli, photos, tmp_path):
    cli("fit", "--recipe", "linear_probe", "--data.source", photos, "--model.backbone", "mixer_nano_32",
        "--trainer.max_epochs", 1, check=0)  # fmt: skip
    from mixer_finetune import load_backbone

    fresh, probed = (
        load_backbone("mixer_nano_32", num_classes=3).state_dict(),
        weights(run_folder(tmp_path, "linear_probe")),
    )
    assert {key for key in fresh if not torch.equal(fresh[key], probed[key])} == {"head.weight", "head.bias"}


def test_what_the_user_types_wins_over_config_and_recipe(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {lr: 0.5, momentum: 0.1}\n")
    shown = cli("fit", "--model.lr", 0.25, "--print_config", "--config", "mine.yaml", "--recipe", "digits", check=0)
    config = yaml.safe_load(shown.stdout)
    assert config["model"]["lr"] == 0.25 and config["model"]["momentum"] == 0.1 and config["data"]["source"] == "digits"


def test_a_process_that_fails_takes_the_others_with_it(photos, environment, tmp_path):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    files = sorted(folder.rglob("*.png"))
    files[epoch_order(len(files), 0, 0)[0]].write_bytes(b"not an image")  # the first process's first
    options = ("--data.source", folder, *TINY[:4], "--recipe", "ddp", "--trainer.devices", 2, "--data.val_fraction", 0)
    options += ("--data.batch_size", 16, "--data.num_workers", 0)
    command = [sys.executable, "-m", "mixer_finetune", "fit", *map(str, options)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert "can't be decoded" in process.communicate(timeout=120)[1] and process.returncode == 2
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not (tmp_path / "runs").exists()


def test_a_logger_of_lightning_is_given_with_its_arguments(cli, photos, tmp_path):
    options = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--trainer.logger.name=mine")
    options += ("--trainer.log_every_n_steps", 2)
    cli("fit", "--data.source", photos, *TINY, "--trainer.max_epochs", 1, "--data.batch_size", 8, *options, check=0)
    (metrics,) = (tmp_path / "logs" / "mine").glob("*/metrics.csv")
    assert "train/loss" in metrics.read_text()
    assert not (run_folder(tmp_path, "custom") / "tensorboard").exists()
    refused = cli("fit", "--recipe", "digits", "--trainer.logger.save_dir", "logs", check=2)
    assert "'save_dir' needs a class that it is an argument of; change --trainer.logger" in refused.stderr


def test_bad_images_stop_the_run_or_are_skipped_and_counted(cli, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "red" / "003.png").write_bytes(b"not an image")
    options = ("fit", "--data.source", folder, *TINY, "--trainer.max_epochs", 1, "--data.batch_size", 8)
    options += ("--data.num_workers", 1)
    stopped = cli(*options, check=2)
    assert "003.png can't be decoded" in stopped.stderr and "--data.on_bad_image skip" in stopped.stderr
    assert not (tmp_path / "runs").exists()
    skipped = cli(*options, "--data.on_bad_image", "skip", check=0)
    assert "skipped 1 image(s)" in skipped.stdout
    run = run_folder(tmp_path, "custom")
    assert "003.png" in json.loads((run / "results.json").read_text())["bad_images"][0]
    for file in photos.rglob("*.png"):
        bad = tmp_path / "bad" / "test" / file.relative_to(photos)
        bad.parent.mkdir(parents=True, exist_ok=True)
        bad.write_bytes(b"not an image")
    shutil.copytree(photos, tmp_path / "bad" / "train")
    nothing = "no image of the evaluated split could be decoded; look at them, or change --data.source\n"
    assert cli("test", run, "--data.source", tmp_path / "bad", check=2).stderr == f"error: {nothing}"
    untested = cli(
        *options, "--data.source", tmp_path / "bad", "--data.on_bad_image", "skip", "--name", "untested", check=0
    )
    assert "not evaluated: no image of the evaluated split could be decoded\n" in untested.stdout
    assert (run_folder(tmp_path, "untested") / "report.html").is_file()


def test_predict_classifies_files_and_folders_and_names_what_is_not_there(cli, digits_run, photos, tmp_path):
    run, _ = digits_run
    said = cli("predict", run, photos / "red", photos / "blue" / "000.png", check=0).stdout
    assert f"wrote 17 rows to {run}/predict/red.csv\n" in said and not list(tmp_path.glob("*.csv"))
    with open(run / "predict" / "red.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 17 and rows[-1]["file"].endswith("blue/000.png")
    assert sum(float(rows[0][f"probability_{i}"]) for i in range(1, 6)) <= 1.00001
    finished = cli("fit", "--resume", run, check=0)
    assert "is finished" in finished.stdout and json.loads((run / "results.json").read_text())["seconds"] > 0
    missing = cli("predict", run, "nowhere", check=2)
    assert missing.stderr == "error: there is no file or folder 'nowhere' to classify\n"


def test_a_backbone_is_fine_tuned_and_evaluated_at_other_resolutions(cli, photos, tmp_path):
    options = ("--model.backbone", "mixer_nano", "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu")
    shown = cli(
        "fit", "--data.source", photos, *options, "--model.image_size", "[48,40]", "--model.in_chans", 1, check=0
    )
    assert (
        "48 x 40 px in 12 x 10 patches of 4, resized from 32 x 32 by interpolate (auto: it takes every size"
        in shown.stdout
    )
    run = run_folder(tmp_path, "custom")
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["model_args"] == {"img_size": [48, 40], "in_chans": 1}
    assert config["pretrained_cfg"]["input_size"] == [1, 48, 40]
    assert json.loads((run / "results.json").read_text())["backbone"]["resized"]["method"] == "interpolate"
    accuracy = json.loads((run / "results.json").read_text())["metrics"]["accuracy"]
    assert f"{accuracy:.4f}" in cli("validate", run, check=0).stdout
    cli("validate", run, "--model.image_size", 64, check=0)
    cli("predict", run, photos / "red", check=0)

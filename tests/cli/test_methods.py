"""Methods of training by real commands: killed and resumed, on two processes, and what they say and leave."""

import json
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cli.test_fit import TINY, _wait_for_step, assert_bitwise_equal, run_folder, weights
from conftest import make_photos, program
from mixer_finetune import load_backbone
from mixer_finetune.backbones.adapters import merged_state

# Together, as far as they go together.
FIRST = (
    "--model.sam_rho", 0.1, "--model.ema_decay", 0.9, "--model.layer_decay", 0.8, "--model.optimizer", "muon",
    "--model.lr", 0.01, "--model.weight_decay", 0.05, "--data.sampling", "balanced", "--model.loss", "focal",
)  # fmt: skip
SECOND = (
    "--model.head", "probe", "--model.unfreeze_every", 2, "--model.class_weights", "balanced", "--model.loss", "binary",
    "--model.sam_rho", 1.0, "--model.sam_adaptive", "--weights", "wise", "--early_stopping", 9, "--model.lr", 0.05,
    "--model.head_lr_factor", 2,
)  # fmt: skip
THIRD = (
    "--model.backbone", "mixer_nano", "--model.adapter", "lora", "--model.adapter_rank", 4, "--model.sam_rho", 0.05,
    "--model.ema_decay", 0.9, "--weights", "lines", "--model.optimizer", "adamw", "--model.lr", 0.01,
    "--model.weight_decay", 0.05, "--model.layer_decay", 0.9,
)  # fmt: skip
DORA = (
    "--model.backbone", "mixer_nano", "--model.adapter", "dora", "--model.ema_decay", 0.9, "--data.batch_size", 32,
    "--data.micro_batch_size", 10, "--trainer.max_steps", 3, "--data.val_fraction", 0.05, "--model.lr", 0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("unequal"), {"blue": 16, "green": 10, "red": 6})


@pytest.mark.parametrize("method", [FIRST, SECOND, THIRD], ids=["first", "second", "third"])
def test_every_method_killed_and_resumed_ends_with_bitwise_the_same_weights(cli, begin, unequal, tmp_path, method):
    options = (
        "--data.source", unequal, *TINY, "--trainer.max_epochs", 4, "--data.batch_size", 8,
        "--data.micro_batch_size", 4,
        "--model.drop_path", 0.2, "--save_every_n_steps", 1, "--data.num_workers", 0, "--data.val_fraction", 0.25,
        *method,
    )  # fmt: skip
    whole_log = cli("fit", *options, "--name", "whole", check=0).stdout
    whole = run_folder(tmp_path, "whole")
    process = begin("fit", *options, "--name", "killed").process
    _wait_for_step(tmp_path / "runs" / "killed", 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    killed = run_folder(tmp_path, "killed")
    assert not (killed / "results.json").exists(), "the run ended before it could be killed"
    resumed = cli("fit", "--resume", killed, check=0).stdout
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    assert_bitwise_equal(last[0]["state_dict"], last[1]["state_dict"])
    if method is not SECOND:
        assert_bitwise_equal(last[0]["ema"]["weights"], last[1]["ema"]["weights"])
    assert_bitwise_equal(weights(whole), weights(killed))
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for log in (whole_log, resumed):
        assert "each step is computed twice" in log and "weights    " in log
    training = [json.loads((run / "training.json").read_text()) for run in (whole, killed)]
    assert training[0]["weights"] == training[1]["weights"] != "best"
    if method is THIRD:
        assert "LoRA of rank 4 and alpha 16 on 32 linear maps: 37,888 parameters beside 651,680 frozen ones" in resumed
        assert "weights    " in resumed and ": lines 0 " in resumed
        adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, killed)]
        assert_bitwise_equal(*adapters)
        loaded = load_backbone(killed / "adapter").state_dict()
        assert_bitwise_equal(loaded, weights(killed))
        checkpoint = load_backbone(killed / "checkpoints" / "last.ckpt").state_dict()
        merged = merged_state(last[1]["state_dict"], 4.0)
        assert_bitwise_equal({name.removeprefix("backbone."): value for name, value in merged.items()}, checkpoint)
        cli("predict", killed / "adapter", unequal / "red", check=0)
        refused = cli("fit", *options, "--model.adapter", "dora", check=2).stderr
        assert "a DoRA can't be put on one; use --model.adapter lora" in refused and refused.count("\n") == 1


@pytest.mark.parametrize("method", [FIRST, SECOND, DORA], ids=["first", "second", "dora"])
def test_every_method_on_two_processes_gives_the_result_of_one(cli, environment, tmp_path, method):
    options = (
        "--recipe", "digits", "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu",
        "--data.batch_size", 128, "--trainer.max_epochs", -1, "--trainer.max_steps", 6, "--data.micro_batch_size", 40,
        "--model.drop_path", 0.1, "--trainer.precision", "64-true", *method, "--model.warmup_steps", 2,
    )  # fmt: skip
    one_thread = {**environment, "OMP_NUM_THREADS": "1"}
    program(tmp_path, one_thread, "fit", *options, "--recipe", "ddp", "--trainer.devices", 2, "--name", "two")
    cli("fit", *options, "--trainer.devices", 1, "--name", "one", check=0, OMP_NUM_THREADS="1")
    two, one = run_folder(tmp_path, "two"), run_folder(tmp_path, "one")
    training = [json.loads((run / "training.json").read_text()) for run in (one, two)]
    assert training[0]["weights"] == training[1]["weights"] and training[1]["devices"] == 2
    # Muon's other parameters are AdamW's, which divides tiny gradients, and their last bits, by their own size.
    limit = 1e-10 if method is FIRST else 1e-12
    for key, value in weights(one).items():
        # A probe's head has weights of up to ten, whose last bits count for as much more.
        assert (weights(two)[key] - value).abs().max() < limit * max(1.0, float(value.abs().max())), key


def test_a_run_ends_early_when_the_dev_split_gets_no_better_and_says_so(cli, photos, tmp_path):
    options = ("--data.source", photos, *TINY, "--data.batch_size", 8, "--data.val_fraction", 0.25)
    stopped = cli("fit", *options, "--trainer.max_epochs", 30, "--model.lr", 0, "--early_stopping", 2, check=0).stdout
    run = run_folder(tmp_path, "custom")
    training = json.loads((run / "training.json").read_text())
    assert training["ended_by"] == "early stopping" and training["steps"] == 15  # the first epoch, and two no better
    assert "ended by early stopping at step 15" in stopped
    # Killed between its last checkpoint and its end, it does not go on.
    (run / "training.json").unlink()
    (run / "results.json").unlink()
    cli("fit", "--resume", run, check=0)
    again = json.loads((run / "training.json").read_text())
    assert again["steps"] == 15 and again["ended_by"] == "early stopping"
    refused = cli("fit", *options, "--early_stopping", 2, "--data.val_fraction", 0, check=2).stderr
    assert "early stopping needs a dev split to watch" in refused and "\n" == refused[-1] and refused.count("\n") == 1


def test_the_rate_of_a_range_test_is_recorded_and_replayed(cli, tmp_path):
    options = ("--recipe", "digits", *TINY, "--trainer.max_epochs", 1, "--model.lr", "auto")
    said = cli("fit", *options, check=0).stdout
    run = run_folder(tmp_path, "digits")
    rate = yaml.safe_load((run / "config.yaml").read_text())["model"]["lr"]
    assert f"SGD with a learning rate of {rate:.3g}" in said
    assert 0.005 < rate < 3 and f"learning rate {rate:g} by a range test of" in said
    cli("fit", "--config", run / "config.yaml", "--output_dir", "again", check=0)
    (again,) = (tmp_path / "again" / "digits").iterdir()
    assert_bitwise_equal(weights(run), weights(again))
    assert "\n" == cli("fit", *options, "--model.head", "probe", check=2).stderr[-1]


def test_a_rate_that_nobody_gave_is_recorded_with_its_reason(cli, photos, tmp_path):
    said = cli("fit", "--data.source", photos, *TINY, "--trainer.max_epochs", 1, check=0).stdout
    run = run_folder(tmp_path, "custom")
    rate = yaml.safe_load((run / "config.yaml").read_text())["model"]["lr"]
    assert f"learning rate {rate:g} by default for this backbone, optimizer and what is trained" in said


def test_the_last_weights_are_on_the_line_from_the_start_that_wise_tries(cli, photos, tmp_path):
    options = ("--data.source", photos, *TINY, "--trainer.max_epochs", 2, "--model.lr", 0.05, "--weights", "wise")
    said = cli("fit", *options, check=0).stdout
    run = run_folder(tmp_path, "custom")
    chosen = json.loads((run / "training.json").read_text())["weights"]
    assert f"weights    {chosen}, by dev accuracy, then loss: wise 0.1 " in said
    start = load_file(run / "checkpoints" / "start.safetensors")
    end = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    alpha = 1.0 if chosen == "last" else float(chosen.removeprefix("wise "))
    for name, value in weights(run).items():
        key = name if name.startswith("head") else f"backbone.{name}"
        assert torch.allclose(value, (1 - alpha) * start[key] + alpha * end[key], atol=1e-6), name


FOLDS = [(name, ("--data.folds", 2, "--data.fold", fold)) for fold, name in enumerate("de")]


def test_a_soup_is_the_mean_of_the_runs_that_the_dev_split_wants(cli, photos, tmp_path):
    options = ("--data.source", photos, *TINY, "--trainer.max_epochs", 1, "--data.batch_size", 8)
    for name, more in (("a", ()), ("b", ("--model.lr", 0.03)), ("c", ("--seed_everything", 1)), *FOLDS):
        cli("fit", *options, "--name", name, *more, check=0)
    a, b, c, d, e = (run_folder(tmp_path, name) for name in "abcde")
    said = cli("soup", a, b, "--output", "mixed", check=0).stdout
    found = json.loads((tmp_path / "mixed" / "soup.json").read_text())
    names = found["ingredients"]
    assert names[0] == max(found["runs"], key=lambda n: (found["runs"][n]["accuracy"], -found["runs"][n]["loss"]))
    assert f"mixed: {len(names)} of 2 runs, dev accuracy {found['soup']['accuracy']:.2%}" in said
    states = [load_file(f"{name}/model/model.safetensors") for name in names]
    for key, value in load_file(tmp_path / "mixed" / "model.safetensors").items():
        assert torch.allclose(value, torch.stack([state[key] for state in states]).mean(0), atol=1e-6), key
    cli("predict", "mixed", photos / "red", check=0)
    for arguments, problem in (
        ((a, c), f"{c} has another data seed, by which the dev split is held out of train, than {a}"),
        ((d, e), f"{e} has another data fold than {d}"),
        ((a,), "a soup needs two runs or more"),
        ((a, a), "a run is named twice"),
        ((a, b, "--output", "mixed"), "mixed exists already; change --output"),
    ):
        assert problem in cli("soup", *arguments, check=2).stderr

"""The command probe, and runs whose frozen backbone computes each image once."""

import json
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

import forked
from cli import interrupting

PROBE = ("probe", "--device", "cpu", "--data.num_workers", 0)


def test_a_probe_compares_and_the_next_one_takes_its_features(cli, photos, tmp_path, environment):
    home = {"HF_HOME": str(tmp_path / "home")}
    options = (*PROBE, "--data.source", photos, "--data.val_fraction", 0.25, "--shots", "[1,2]", "--seeds", 2)
    first = cli(*options, "--backbone", "mixer_nano", "--image_size", 32, "--image_size", 64, "--layers", "all",
                "--output", "out", check=0, **home)  # fmt: skip
    header, *lines = first.stdout[first.stdout.index("backbone  ") :].splitlines()
    assert header.split() == [
        "backbone", "pixels", "resized", "by", "layer", "ridge", "logistic", "kNN", "1-shot", "2-shot", "seconds",
    ]  # fmt: skip
    table = [line for line in lines if line.startswith("mixer_nano")]
    assert len(table) == 18 and "interpolate" in table[-1] and sum(" *" in line for line in table) == 1
    assert re.search(r"^\* best on dev: .+ of mixer_nano at (32|64) px by \w+, 1?\d\d\.\d\d%", first.stdout, re.M)
    assert first.stdout.count("computing features of") == 4 and "on test" not in first.stdout
    assert (tmp_path / "out" / "probe.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert len(found["rows"]) == 18 and found["test"] is None and len(found["rows"][8]["few_shot"]["2"]) == 2

    second = cli(*options, check=0, **home)  # the default backbone at its own size, the pre-logits alone
    assert "computing features" not in second.stdout
    (folder,) = (tmp_path / "probes").iterdir()
    again = json.loads((folder / "probe.json").read_text())
    assert again["rows"][0]["dev"] == found["rows"][8]["dev"]
    assert again["rows"][0]["few_shot"] == found["rows"][8]["few_shot"]
    assert (
        "holds another probe already; use --output another folder" in cli(*options, "--output", "out", check=2).stderr
    )


def test_the_data_and_the_backbone_of_a_recipe_are_probed(cli, tmp_path):
    shown = cli(*PROBE, "--recipe", "digits", "--data.images_per_class", 20, "--shots", 0, check=0)
    assert "data       digits: " in shown.stdout and "mixer_nano" in shown.stdout and "1-shot" not in shown.stdout
    assert re.search(r"^  on test: \d\d\.\d\d% of 359 images \(95% interval ", shown.stdout, re.M)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--model.lr", "0.1"), "probe trains no network, so --model.lr has no effect; leave it out"),
        (("--model.backbone", "x"), "probe takes --backbone in place of --model.backbone"),
        (("--data.flip", "false"), "--data.flip has no effect"),
        (("--data.batch_size", "3"), "--data.batch_size has no effect"),
        (("--push", "a/b"), "--push has no effect"),
        (("--data.sources", "x"), "unknown option --data.sources; did you mean --data.source?"),
        (("--layers", "some"), "expected pre-logits or all, got some"),
        (("--image_size", "big"), "a size is a number of pixels or [height,width], got big; change --image_size"),
        (
            ("--image_size", "33"),
            "image size 33 is not a multiple of mixer_nano_32's patch size 4; use --image_size 32",
        ),
        (("--resize", "twice"), "'twice' is no way to resize weights; use --resize auto or"),
        (("--backbone", "mixer_nan"), "no backbone 'mixer_nan' (did you mean mixer_nano?)"),
        (("--data.val_fraction", "0"), "the data has none; name one with --data.val_split or set --data.val_fraction"),
        (("--shots", "-1"), "shots must be 1 or more, got -1; change --shots"),
        (("--backbone",), "--backbone needs a value"),
        (("digits",), "got digits"),
    ],
)
def test_a_mistake_is_one_line(cli, tmp_path, typed, said):
    words = typed if typed == ("digits",) else (*PROBE[1:], "--data.source", "digits", *typed)
    result = cli("probe", *words, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_help_has_its_options_and_the_datas(cli):
    text = cli("probe", "--help", check=0).stdout
    for option in ("--backbone", "--image_size", "--layers", "--data.source", "--data.val_split", "--recipe"):
        assert option in text
    assert (
        "--data.flip" not in text
        and "--data.batch_size" not in text
        and "--model" not in text.replace("--model.resize", "")
    )


FIT = (
    "fit", "--recipe", "linear_probe", "--recipe", "augment_none", "--trainer.accelerator", "cpu",
    "--trainer.devices", 1, "--trainer.max_epochs", 3, "--data.batch_size", 16, "--data.num_workers", 0,
    "--save_every_n_steps", 2,
)  # fmt: skip


def weights(folder, name):
    (run,) = (folder / "runs" / name).iterdir()
    return load_file(run / "model" / "model.safetensors")


def test_a_run_on_kept_features_that_is_killed_ends_with_the_same_weights(cli, photos, environment, tmp_path):
    whole = cli(*FIT, "--data.source", photos, "--name", "whole", check=0)
    assert "the frozen backbone computes each image once" in whole.stdout
    # Killed in the fourth of nine steps.
    given = ("mixer_finetune.training.log:TrainingLog.end_epoch", int(signal.SIGKILL), 1)
    arguments = tuple(map(str, (*FIT, "--data.source", photos, "--name", "killed")))
    killed = forked.start(interrupting.command_of_method, (*given, *arguments), environment, tmp_path).finished(120)
    assert killed.returncode == -signal.SIGKILL
    (run,) = (tmp_path / "runs" / "killed").iterdir()
    assert "resuming   at step" in cli("fit", "--resume", run, check=0).stdout
    one, other = weights(tmp_path, "whole"), weights(tmp_path, "killed")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_two_processes_share_the_features_and_train_one_head(cli, photos, environment, tmp_path):
    options = (*FIT, "--data.source", photos, "--trainer.precision", "64-true")
    cli(*options, "--name", "one", check=0, HF_HOME=str(tmp_path / "one"))
    from conftest import program

    two = (*options, "--name", "two", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    program(tmp_path, {**environment, "HF_HOME": str(tmp_path / "two")}, *two)
    one, other = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert (one["head.weight"] - other["head.weight"]).abs().max() < 1e-12

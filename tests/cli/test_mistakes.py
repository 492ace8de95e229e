"""Bad input gets one line, exit status 2 and leaves nothing behind; and no mistake waits for torch to be imported."""

import json
import os
import subprocess
import sys

import pytest

from conftest import FIT as FIT_OPTIONS
from conftest import make_photos
from mixer_finetune.engine.arguments import with_flags
from mixer_finetune.engine.parser import configure

FIT = ("fit", "--recipe", "digits")

# What is typed -> what the line must say.
LIGHT = {
    "unknown command": (("fitt",), "unknown command 'fitt' (did you mean fit?)"),
    "what others call it": (("train",), "unknown command 'train' (did you mean fit?)"),
    "unknown recipe": (("fit", "--recipe", "cifar1000"), "unknown recipe 'cifar1000'; did you mean cifar100?"),
    "misspelt option": ((*FIT, "--model.learning_rat", "1"), "unknown option --model.learning_rat"),
    "option of no group": ((*FIT, "--lr", "1"), "unknown option --lr; here it is --model.lr"),
    "epochs": ((*FIT, "--epochs", "1"), "unknown option --epochs; here it is --trainer.max_epochs"),
    "seed": ((*FIT, "--seed", "1"), "unknown option --seed; here it is --seed_everything"),
    "batch size": ((*FIT, "--batch_size=8"), "unknown option --batch_size; here it is --data.batch_size"),
    "gpus": ((*FIT, "--trainer.gpus", "1"), "unknown option --trainer.gpus; here it is --trainer.devices"),
    "root": ((*FIT, "--trainer.default_root_dir", "x"), "--trainer.default_root_dir; here it is --output_dir"),
    "accumulation": (
        (*FIT, "--trainer.accumulate_grad_batches", "2"),
        "--trainer.accumulate_grad_batches; here it is --data.micro_batch_size",
    ),
    "folder as word": (("fit", "photos/"), "did you mean --recipe imagefolder --data.source photos/?"),
    "recipe as word": (("fit", "digits"), "did you mean --recipe digits?"),
    "recipe as data": ((*FIT, "--data.source", "cifar100"), "'cifar100' is a recipe, not data; use --recipe cifar100"),
    "wrong type": ((*FIT, "--model.lr", "fast"), "expected float or auto or null, got fast; change --model.lr"),
    "wrong type of many": (
        (*FIT, "--trainer.max_epochs", "ten"),
        "expected int or null, got ten; change --trainer.max_epochs",
    ),
    "misspelt class": (
        (*FIT, "--trainer.callbacks+=EarlyStoping"),
        "there is no 'EarlyStoping' (did you mean EarlyStopping?); change --trainer.callbacks",
    ),
    "missing argument": (
        (*FIT, "--trainer.callbacks+=EarlyStopping"),
        "EarlyStopping: the following arguments are required: monitor",
    ),
    "argument of no class": ((*FIT, "--trainer.logger.save_dir", "logs"), "'save_dir' needs a class"),
    "logger without arguments": (
        (*FIT, "--trainer.logger", "CSVLogger"),
        "CSVLogger: the following arguments are required: save_dir",
    ),
    "optimizer": ((*FIT, "--optimizer", "AdmW"), "there is no 'AdmW' (did you mean AdamW?); change --model.optimizer"),
    "old optimizer": ((*FIT, "--model.optimizer", "lion"), "there is no 'lion'"),
    "no class": ((*FIT, "--model", "nowhere.Classifier"), "the class nowhere.Classifier can't be imported"),
    "no such class": ((*FIT, "--data", "json.Data"), "the class json.Data can't be imported"),
    "other class": ((*FIT, "--model", "lightning.pytorch.LightningModule"), "is no subclass of MixerClassifier"),
    "no value": (("fit", "--recipe"), "--recipe needs a value"),
    "value left out": ((*FIT, "--model.lr"), "a value is missing; give --model.lr one"),
    "no data": (("fit", "--model.lr", "0.1"), "no data; give --recipe"),
    "recipe without data": (("fit", "--recipe", "imagefolder"), "imagefolder names no data; give --data.source"),
    "name": ((*FIT, "--name", "../../evil"), "a name is one folder's inside the output folder, got '../../evil'"),
    "precision": ((*FIT, "--trainer.precision", "17"), "got 17; change --trainer.precision"),
    "no configuration": (("fit", "--config", "nowhere.yaml"), "the configuration nowhere.yaml can't be read"),
    "no run": (("fit", "--resume", "nowhere"), "nowhere is not a run folder"),
    "no help": (("fit", "--help", "modle"), "there is no help on 'modle'; use --help model, data, trainer or all"),
    "nothing to test": (("test",), "expected: test RUN|CHECKPOINT"),
    "no such checkpoint": (("test", "nowhere.ckpt"), "there is no run folder or checkpoint 'nowhere.ckpt'"),
    "nothing to predict": (("predict", "runs/x"), "expected: predict RUN|CHECKPOINT|MODEL FOLDER|FILE"),
    "unknown backbone": (
        ("backbones", "show", "mixer_b61"),
        "unknown backbone 'mixer_b61'; did you mean mixer_b16_224?",
    ),
    "unknown recipes command": (("recipes", "edit", "x"), "expected: recipes [show NAME"),
}
HEAVY = {
    "no such source": ((*FIT, "--data.source", "nowhere"), "there is no data 'nowhere'"),
    "contradicting classes": (
        (*FIT, "--model.num_classes", "7"),
        "the model is for 7 classes, but the data has 10; leave --model.num_classes out",
    ),
    "no such backbone": ((*FIT, "--model.backbone", "mixer_nan"), "no backbone 'mixer_nan' (did you mean mixer_nano?)"),
    "image size": (
        (*FIT, "--model.backbone", "mixer_nano_32", "--model.image_size", "33"),
        "image size 33 is not a multiple of mixer_nano_32's patch size 4; use --model.image_size 32 or 36",
    ),
    "output folder": ((*FIT, "--output_dir", "/dev/null/runs"), "can't be written"),
    "no epochs": ((*FIT, "--trainer.max_epochs", "0"), "the run has no step; raise --trainer.max_epochs"),
    "rotation": ((*FIT, "--data.rotation", "-5"), "rotation must be from 0 to 180, got -5.0; change --data.rotation"),
    "clipping": (
        (*FIT, "--trainer.gradient_clip_val", "-1"),
        "must be 0 or more, got -1; change --trainer.gradient_clip_val",
    ),
    "momentum": ((*FIT, "--model.momentum", "1"), "must be at least 0 and below 1, got 1.0; change --model.momentum"),
    "workers": ((*FIT, "--data.num_workers", "-1"), "num_workers must be 0 or more, got -1; change --data.num_workers"),
    "diverging": (
        (*FIT, "--model.lr", "1e30", "--model.warmup_steps", "0", "--trainer.gradient_clip_val", "null"),
        "the loss is not finite at step 10 with lr 1e+30; lower --model.lr or raise --model.warmup_steps",
    ),
    "negative batch": ((*FIT, "--data.batch_size", "-4"), "batch_size must be 1 or more, got -4; change --data.batch"),
    "crop": ((*FIT, "--data.crop_area", "[0.9, 0.1]"), "crop_area must be two shares"),
    "strategy": ((*FIT, "--trainer.strategy", "dpp"), "dpp"),
    "monitor": (
        (*FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc"),
        "EarlyStopping monitors 'val/acc', which this run does not log; its monitor can be train/loss,",
    ),
    "late average": (
        (*FIT, "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step=9999"),
        "EMAWeightAveraging is to start at step 9999, but the run has 315 steps",
    ),
    "package not installed": ((*FIT, "--trainer.logger", "CometLogger"), "pip install"),
    "backbone offline": (
        (*FIT, "--model.backbone", "nobody/nothing"),
        "and the model 'nobody/nothing' is not in the cache; to work offline, give --model.backbone a local folder",
    ),
    "data offline": ((*FIT, "--data.source", "nobody/nothing"), "--data.source"),
}


def one_line(result):
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.mark.parametrize("case", LIGHT)
def test_a_mistake_is_one_line(cli, tmp_path, case):
    arguments, expected = LIGHT[case]
    assert expected in one_line(cli(*arguments))
    assert list(tmp_path.iterdir()) == []


# Importing torch costs seconds, so these share a process: each runs in a folder of its own.
RUN_ALL = """
import contextlib, io, json, os, sys
from mixer_finetune.cli.main import main
results = {}
for number, (case, arguments) in enumerate(json.load(sys.stdin).items()):
    os.mkdir(str(number))
    os.chdir(str(number))
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    os.chdir("..")
    results[case] = [status, stderr.getvalue(), os.listdir(str(number))]
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def heavy(environment, tmp_path_factory):
    process = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps({case: arguments for case, (arguments, _) in HEAVY.items()}),
        # A port where nothing listens stands for a Hub that can't be reached.
        env={**environment, "HF_ENDPOINT": "http://127.0.0.1:9"},
        cwd=tmp_path_factory.mktemp("heavy"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", HEAVY)
def test_a_mistake_found_later_is_one_line_and_leaves_no_run_folder(heavy, case):
    status, stderr, left = heavy[case]
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and HEAVY[case][1] in errors[0], stderr
    assert "Traceback" not in stderr and left == []


def test_flags_may_be_followed_by_true_or_false():
    assert with_flags(["--a", "x", "--b", "--a", "true", "--a", "false", "y", "--a"], {"--a"}) == [
        "--a=true", "x", "--b", "--a=true", "--a=false", "y", "--a=true",
    ]  # fmt: skip


def test_a_commit_does_not_go_over_to_another_source(tmp_path):
    commit = "0" * 40
    pinned = {"model": {"backbone": "a/b", "revision": commit}, "data": {"source": "c/d", "revision": commit}}
    (tmp_path / "config.yaml").write_text(json.dumps(pinned))
    for typed, model, data in (
        ([], commit, commit),
        (["--data.source", "e/f"], commit, None),
        (["--data.source", "e/f", "--data.revision", "v1"], commit, "v1"),
        (["--model.backbone=g/h"], None, commit),
    ):
        config = configure(["--config", str(tmp_path / "config.yaml"), *typed]).config
        assert (config["model"]["revision"], config["data"]["revision"]) == (model, data)


def test_the_help_of_test_and_validate_is_their_own(cli):
    shown = cli("test", "--help", check=0).stdout
    assert "mixer-finetune test RUN|CHECKPOINT [options]" in shown and "on the test split" in shown


def test_yaml_that_does_not_parse_or_has_several_mistakes_names_the_file(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: [1,")
    assert "bad.yaml is not valid YAML" in one_line(cli("fit", "--config", "bad.yaml"))
    (tmp_path / "two.yaml").write_text("model: {lrr: 1, lr: fast}\ndata: 3\n")
    line = one_line(cli("fit", "--config", "two.yaml"))
    assert "two.yaml: unknown option model.lrr (and 2 more" in line and "did you mean --model.lr?" in line
    result = cli("recipes", "validate", "two.yaml", check=2)
    assert (
        len(result.stderr.splitlines()) == 3
        and "expected float or auto or null, got fast; change --model.lr" in result.stderr
    )


def test_recipes_are_listed_shown_copied_and_all_valid(cli, tmp_path):
    listed = cli("recipes", check=0).stdout
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert {"digits", "cifar10", "cifar100", "imagefolder", "pretrain_nano", "cpu", "ddp", "linear_probe"} <= set(names)
    for name in names:
        cli("recipes", "validate", name, check=0)
    assert cli("recipes", "show", "digits", check=0).stdout.startswith("# Handwritten digits")
    cli("recipes", "copy", "digits", "mine.yaml", check=0)
    assert "mine.yaml exists already" in one_line(cli("recipes", "copy", "digits", "mine.yaml"))


@pytest.mark.parametrize("arguments", [("--help",), ("recipes",), ("backbones",), ("fit", "--recipe", "x"), ("fitt",)])
def test_help_lists_and_unknown_names_import_neither_torch_nor_lightning(arguments, environment):
    code = (
        "import sys; from mixer_finetune.cli.main import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'datasets', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)


def test_threads_do_not_spin_unless_the_user_wants_them_to(environment):
    code = (
        "import os; from mixer_finetune.cli.main import main; main(['--version']); "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    unset = {key: value for key, value in environment.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for own, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**unset, **own}, check=True, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == expected


def test_a_model_of_other_classes_is_not_tested_silently(cli, photos, tmp_path):
    options = ("--model.backbone", "mixer_nano_32", "--trainer.max_epochs", "1")
    cli("fit", "--data.source", photos, *options, "--name", "three", check=0)
    (run,) = (tmp_path / "runs" / "three").iterdir()
    others = tmp_path / "others"
    for split in ("train", "test"):
        make_photos(others / split, {"cat": 4, "dog": 4, "cow": 4})
    assert "3 classes (cat, cow, dog) that the model has not" in one_line(cli("test", run, "--data.source", others))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_one_line(cli, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "can't be written" in one_line(cli(*FIT, "--output_dir", "locked"))


def test_a_full_disk_is_one_line_and_what_was_done_is_gone_on_with(cli, photos, small_disk, tmp_path):
    disk, make_room = small_disk
    make_room(8_000_000)  # bytes: for one of the two checkpoints
    options = ("--data.source", photos, "--model.backbone", "mixer_nano", *FIT_OPTIONS, "--output_dir", disk / "runs")
    line = one_line(cli("fit", *options))
    assert "can't be written (No space left on device)" in line and "--resume" in line
    (run,) = (disk / "runs" / "custom").iterdir()
    assert str(run) in line and [path.name for path in (run / "checkpoints").iterdir()] == ["best.ckpt"]
    make_room(64_000_000)
    cli("fit", "--resume", run, check=0)
    for path in disk.rglob("*"):
        if path.is_file() and path.name not in ("model.safetensors", "config.json"):
            path.unlink()
    used = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    assert make_room(used + 8_192)
    line = one_line(cli("predict", run / "model", *[photos] * 20, "--output", disk / "p.csv", "--batch_size", 64))
    assert "No space left on device" in line and "for --resume" in line
    make_room(64_000_000)
    cli("predict", run / "model", *[photos] * 20, "--output", disk / "p.csv", "--resume", check=0)
    assert len((disk / "p.csv").read_text().splitlines()) == 961

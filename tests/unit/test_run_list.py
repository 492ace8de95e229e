"""The list of runs, and what `last` means."""

import json
import logging
import os
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest

from making_runs import config_of, make_run
from mixer_finetune import UserError
from mixer_finetune.cli.runs import runs
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.results import Results
from mixer_finetune.evaluation.run_list import ListedRun, list_runs, method, run_title, seed_groups
from mixer_finetune.runs import RunFolder, find_run


def made(folder, value, **options):
    """A run that is right on that share of ten images."""
    right = np.arange(10) < 10 * value
    found = Predictions(["a", "b"], [str(i) for i in range(10)], np.arange(10), np.zeros(10, int),
                        np.where(right, 0, 1)[:, None], np.full((10, 1), 0.9))  # fmt: skip
    changes = options.pop("changes", {})
    return make_run(folder, found, {"accuracy": value}, config=config_of(**options), **changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """runs/ with three seeds of one method, one of them twice, another method, and what is not finished."""
    monkeypatch.chdir(tmp_path)
    for day, seed, value in ((1, 0, 0.5), (2, 1, 0.7), (3, 2, 0.9), (4, 2, 0.8)):
        made(tmp_path / f"runs/digits/2026-01-0{day}_10-00-00", value, name="digits", seed=seed)
    made(tmp_path / "runs/photos/2026-01-03_12-00-00", 0.6, source="my/Photos", name="photos", train="head")
    unfinished = RunFolder(tmp_path / "runs/digits/2026-01-05_10-00-00_1")
    unfinished.path.mkdir()
    unfinished.config_file.write_text("model: {backbone: mixer_nano}\ndata: {source: digits}\n")
    damaged = RunFolder(tmp_path / "runs/digits/2026-01-05_10-00-00")
    damaged.path.mkdir()
    damaged.config_file.write_text("- nothing")
    return tmp_path


def test_the_newest_run_comes_first_and_what_is_not_finished_is_named(folder, capsys):
    found = list_runs("runs")
    assert [each.run.path.name for each in found][:3] == [
        "2026-01-05_10-00-00_1", "2026-01-05_10-00-00", "2026-01-04_10-00-00",
    ]  # fmt: skip
    assert [each.state for each in found][:3] == ["unfinished", "damaged", "finished"]
    assert runs() == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "date", "data", "backbone", "method", "result"]
    assert "unfinished" in lines[0] and "damaged: " in lines[1] and "2026-01-04 10:00" in lines[2]
    assert "fine-tuned, sgd 0.1, 3 epochs" in lines[2]
    assert "80.00% top-1 accuracy (49.0% to 94.3%), 10 images of test" in lines[2]
    assert lines[-1] == (
        "over 3 seeds: top-1 accuracy 66.67%, standard deviation 15.28 (50.00% to 80.00%); digits, mixer_nano, "
        "fine-tuned, sgd 0.1, 3 epochs"
    )


def test_filters_sorting_and_json(folder, capsys):
    assert [each.source for each in list_runs("runs", source="PHOTOS")] == ["my/Photos"]
    assert len(list_runs("runs", backbone="nano")) == 6
    runs(sort="result", json=True)
    content = json.loads(capsys.readouterr().out)
    assert [each.get("value") for each in content["runs"]] == [0.9, 0.8, 0.7, 0.6, 0.5, None, None]
    assert content["runs"][3]["method"] == "head alone, sgd 0.1, 3 epochs" and content["runs"][-1]["state"] == "damaged"
    (group,) = content["seeds"]
    assert group["seeds"] == [0, 1, 2] and group["values"] == [0.5, 0.7, 0.8]  # the newest run of seed 2
    assert group["mean"] == pytest.approx(2 / 3)
    assert group["standard_deviation"] == pytest.approx(np.std([0.5, 0.7, 0.8], ddof=1))
    runs(source="nothing")
    assert capsys.readouterr().out == "no run in runs is like that\n"
    with pytest.raises(UserError, match="there is no folder elsewhere; change output_dir"):
        runs(output_dir="elsewhere")


def test_seeds_are_of_one_method_data_and_weights(folder):
    other = made(folder / "a", 0.5, seed=5, lr=0.2)
    weights = made(folder / "b", 0.5, seed=6, name="digits", changes={"weights": "best"})
    partial = made(folder / "c", 0.5, seed=7, name="digits", changes={"split_samples": 100})
    (group,) = seed_groups([*list_runs("runs"), *(ListedRun.of(run) for run in (other, weights, partial))])
    assert [each.seed for each in group.runs] == [0, 1, 2]


def test_last_is_the_newest_run_and_is_said(folder, caplog):
    with caplog.at_level(logging.INFO, "mixer_finetune"):
        run = RunFolder.open("last")
    assert str(run) == "runs/digits/2026-01-05_10-00-00_1"
    assert caplog.messages == ["last is runs/digits/2026-01-05_10-00-00_1"]
    assert str(find_run("photos/last")) == str(find_run("runs/photos/last")) == "runs/photos/2026-01-03_12-00-00"
    assert str(find_run("user/last")) == "user/last"  # a repository
    (folder / "last").mkdir()
    assert str(find_run("last")) == "last"
    (folder / "empty").mkdir()
    os.chdir(folder / "empty")
    with pytest.raises(UserError, match="there is no run in runs/ that 'last' could mean"):
        RunFolder.of("last")


def test_a_run_is_known_by_name_and_time_wherever_it_lies(folder):
    run = RunFolder(folder / "runs/digits/2026-01-02_10-00-00")
    assert run.started == datetime(2026, 1, 2, 10) and run.is_placed
    assert run_title(run, run.read_config()) == "digits, 2026-01-02 10:00:00"
    moved = RunFolder(run.path.rename(folder / "mine"))
    os.utime(moved.config_file, (0, datetime(2026, 2, 3, 4, 5, 6).timestamp()))
    assert moved.started == datetime(2026, 2, 3, 4, 5, 6) and not moved.is_placed
    results = Results.read(moved)
    made(folder / "other", 0.5, changes={"started": "2026-01-02T10:00:00", "name": "other"})
    kept = Results.read(RunFolder(folder / "other"))
    assert run_title(moved, {}, results).endswith(", 2026-02-03 04:05:06")
    assert run_title(moved, {}, kept) == "other, 2026-01-02 10:00:00"


def test_a_method_is_told_by_what_is_not_usual():
    config = config_of(image_size=[64, 48], layer_decay=0.75, sam_rho=0.05)
    config["data"] |= {"mixup": 0.2, "cutmix": 0.0}
    assert method(config) == "fine-tuned, sgd 0.1, 3 epochs, 64x48 px, layer_decay 0.75, sam_rho 0.05, mixup 0.2"
    assert method(config_of(adapter="lora", adapter_rank=4)) == "lora of rank 4, sgd 0.1, 3 epochs"
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    config = config_of(optimizer=adam, lr=None, train="norms-biases")
    config["trainer"] = {"max_steps": 50}
    assert method(config) == "norms-biases, Adam, 50 steps" and method({}) == ""


def test_the_list_starts_without_torch(folder, environment):
    code = (
        "import sys; from mixer_finetune.cli.main import main\n"
        "assert main(['runs']) == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "over 3 seeds" in done.stdout, done.stderr

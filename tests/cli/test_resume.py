"""A run goes on from wherever it was stopped, and does what is missing and nothing else."""

import json
import os
import shutil
import signal
import stat

import pytest
import torch
from safetensors.torch import load_file

import forked
from cli import interrupting

FINISH = "mixer_finetune.engine.finish"
OPTIONS = (
    "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    "--trainer.max_epochs", "2", "--data.batch_size", "16", "--data.val_fraction", "0.25", "--save_every_n_steps", "1",
    "--output_dir", "runs",
)  # fmt: skip
KEPT = ("model/model.safetensors", "predictions.csv", "metrics.csv", "config.yaml", "learning_curves.png")


@pytest.fixture(scope="module")
def finished(photos, environment, tmp_path_factory):
    """A whole run."""
    folder = tmp_path_factory.mktemp("finished")
    done = forked.start(forked.command, ("fit", "--data.source", str(photos), *OPTIONS), environment, folder)
    assert done.finished(120).returncode == 0
    (run,) = (folder / "runs" / "custom").iterdir()
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it that may be spoilt."""
    return shutil.copytree(finished, tmp_path / "runs" / "custom" / "copy")


@pytest.fixture
def stop(environment, tmp_path):
    """Run a command that gets a signal at a place."""

    def command(place, kind, *arguments, times=1, **changes):
        given = (place, int(kind), times, *map(str, arguments))
        return forked.start(interrupting.command, given, {**environment, **changes}, tmp_path).finished(120)

    return command


def contents(run, names=KEPT):
    return {name: (run / name).read_bytes() for name in names}


def test_a_finished_run_says_so_and_nothing_is_written(run, cli):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    said = cli("fit", "--resume", run, check=0).stdout
    assert f"{run} is finished (after 6 steps, ended by schedule)" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        (("report.html",), "report"),
        (("model/README.md",), "card"),
        (("results.json", "predictions.csv", "report.html", "model/README.md"), "results, report, card"),
    ],
)
def test_what_is_missing_is_made_again_and_nothing_else(run, cli, lost, missing):
    whole = contents(run, (*KEPT, *lost))
    for name in lost:
        (run / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".png"}
    resumed = cli("fit", "--resume", run, check=0)
    assert f"is trained; missing: {missing}" in resumed.stdout and "epoch " not in resumed.stdout
    again = contents(run, (*KEPT, *lost))
    timed = {"results.json", "report.html"} if "results.json" in lost else ()  # the seconds of the evaluation
    assert {name: value for name, value in again.items() if name not in timed} == {
        name: value for name, value in whole.items() if name not in timed
    }
    if "results.json" in lost:
        first, second = (json.loads(found["results.json"]) for found in (whole, again))
        assert first["metrics"] == second["metrics"] and first["seconds"] == second["seconds"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("function", "kind"),
    [("_evaluate", signal.SIGHUP), ("write_report", signal.SIGTERM), ("model_card", signal.SIGUSR1)],
)
def test_a_signal_behind_training_is_one_line_and_resuming_completes_the_run(
    finished, photos, stop, cli, tmp_path, function, kind
):
    stopped = stop(f"{FINISH}:{function}", kind, "fit", "--data.source", photos, *OPTIONS)
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    assert stopped.returncode == 1
    line = f"interrupted by {kind.name}; go on with: mixer-finetune fit --resume runs/custom/{run.name}\n"
    assert stopped.stderr == line
    cli("fit", "--resume", run, check=0)
    names = [name for name in KEPT if name != "config.yaml"]
    assert contents(run, names) == contents(finished, names)
    assert (run / "report.html").is_file() and (run / "model" / "README.md").is_file()


def test_ctrl_c_twice_ends_at_once_without_a_word(photos, stop):
    stopped = stop(f"{FINISH}:write_report", signal.SIGINT, "fit", "--data.source", photos, *OPTIONS, times=2)
    assert stopped.returncode == 1 and stopped.stderr == ""


def test_temporary_files_of_a_killed_process_are_swept_by_the_next_command(run, cli):
    dead = forked.start(forked.command, ("--version",), dict(os.environ), run.parent)
    dead.finished(60)
    host = os.uname().nodename
    stray = run / f".results.json.abc.{host}-{dead.process.pid}.partial"
    elsewhere = run / ".results.json.abc.anotherhost-1.partial"
    for path in (stray, elsewhere):
        path.write_text("half")
    cli("fit", "--resume", run, check=0)
    assert not stray.exists() and elsewhere.exists()  # nobody here can tell whether that one still writes


def test_a_run_from_a_relative_path_resumes_from_another_folder(photos, cli, environment, tmp_path):
    shutil.copytree(photos, tmp_path / "mine")
    cli("fit", "--data.source", "mine", *OPTIONS, "--trainer.max_epochs", 1, check=0)
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    (tmp_path / "elsewhere").mkdir()
    longer = ("fit", "--resume", str(run), "--trainer.max_epochs", "2")
    resumed = forked.start(forked.command, longer, environment, tmp_path / "elsewhere").finished(120)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "results.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("add", "train had 36 images and now has 37"),
        ("rename", "gone are the classes red; new are the classes rot"),
        ("swap", "has other files or labels"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(photos, cli, tmp_path, change, says):
    mine = shutil.copytree(photos, tmp_path / "mine")
    cli("fit", "--data.source", "mine", *OPTIONS, "--trainer.max_epochs", 1, check=0)
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    if change == "add":
        shutil.copy(mine / "red" / "000.png", mine / "red" / "999.png")
    elif change == "rename":
        (mine / "red").rename(mine / "rot")
    else:
        (mine / "red" / "000.png").rename(mine / "red" / "a.png")
    longer = ("fit", "--resume", run, "--trainer.max_epochs", 2)
    refused = cli(*longer, check=2).stderr
    assert "the data has changed since" in refused and says in refused and len(refused.splitlines()) == 1
    shutil.rmtree(mine)
    shutil.copytree(photos, mine)
    cli(*longer, check=0)


def test_early_stopping_ends_a_run_that_is_then_finished(photos, cli, tmp_path):
    early = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
    early += ("--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100", "--trainer.max_epochs=9")
    cli("fit", "--data.source", photos, *OPTIONS, *early, check=0)
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    assert "(after 6 steps, ended by EarlyStopping)" in cli("fit", "--resume", run, check=0).stdout


@pytest.fixture
def scontrol(tmp_path):
    """A stand-in for SLURM's own that notes what it is asked."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{tmp_path}/bin:{os.environ['PATH']}"


def test_a_job_of_slurm_is_queued_again_and_exports_what_was_trained(finished, photos, stop, cli, scontrol, tmp_path):
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    job |= {"SLURM_JOB_NAME": "tune", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1", "PATH": scontrol}
    command = ("fit", "--data.source", photos, *OPTIONS)
    place = "mixer_finetune.training.checkpoints:write_atomically"  # in the middle of training
    stopped = stop(place, signal.SIGUSR1, *command, **job)
    assert stopped.returncode == 1 and stopped.stderr == "interrupted by SIGUSR1\n"  # nothing was trained yet
    first = stop(f"{FINISH}:_evaluate", signal.SIGUSR1, *command, **job)
    assert first.stderr == "interrupted by SIGUSR1; job 77 is queued again and will go on with this run\n"
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    run = tmp_path / "runs" / "custom" / "slurm-77"
    (run / "training.json").unlink()
    resumed = cli(*command, **job, SLURM_RESTART_COUNT="1", check=0)
    assert "going on with runs/custom/slurm-77" in resumed.stdout
    assert not list(run.rglob("hpc_ckpt*"))
    for name in ("model/model.safetensors", "predictions.csv"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(exported[key], last.get(f"backbone.{key}", last.get(key))) for key in exported)

"""sweep: what is tried, what is chosen, and that a sweep goes on where it was. The runs are made by hand."""

import json

import numpy as np
import pytest

from making_runs import config_of, make_run
from mixer_finetune import UserError
from mixer_finetune.cli.main import main
from mixer_finetune.cli.sweep import _varied
from mixer_finetune.engine import sweep as engine
from mixer_finetune.engine.sweep import planned, sweep
from mixer_finetune.evaluation.predictions import Predictions

BASE = ["--recipe", "digits"]
RATES = [("model.lr", ["0.1", "0.2", "0.3"])]


class Fit:
    """In the place of fit: a run whose accuracy depends on rate and seed."""

    def __init__(self, accuracy):
        self.accuracy, self.lines = accuracy, []

    def __call__(self, arguments, output):
        self.lines.append(arguments)
        options = dict(part.removeprefix("--").split("=") for part in arguments if "=" in part)
        typed = dict(zip(arguments, arguments[1:], strict=False))
        fold = int(typed.get("--data.fold", typed.get("--seed_everything", 0)))
        value = self.accuracy(float(options["model.lr"]), fold)
        if value is None:
            return 2, "error: the loss is not finite at step 3"
        right = np.arange(100) < 100 * value
        found = Predictions(["a", "b"], [str(i) for i in range(100)], np.arange(100), np.zeros(100, int),
                            np.where(right, 0, 1)[:, None], np.full((100, 1), 0.9))  # fmt: skip
        from pathlib import Path

        folder = Path(typed["--output_dir"]) / typed["--name"] / "2026-01-01_10-00-00"
        role = "val" if "--evaluate_on" in typed else "test"
        config = config_of(seed=fold, lr=float(options["model.lr"]))
        run = make_run(folder, found, {"accuracy": value}, config=config, role=role, split=role)
        run.checkpoints.mkdir()
        run.report.write_text("")
        return 0, ""


def swept(folder, accuracy, monkeypatch, vary=RATES, **options):
    fit = Fit(accuracy)
    monkeypatch.setattr(engine, "_fit", fit)
    return sweep(planned(BASE, vary, **options), folder), fit.lines


def test_the_highest_mean_on_dev_is_trained_on_all_and_tested_once(tmp_path, monkeypatch):
    found, lines = swept(
        tmp_path / "s", lambda lr, seed: {0.1: 0.6, 0.2: 0.9, 0.3: 0.5}[lr] + 0.02 * seed, monkeypatch, seeds=3
    )
    assert found.best == 1 and [round(each.mean, 6) for each in found.trials] == [0.62, 0.92, 0.52]
    assert found.as_good == [] and found.metric == "accuracy" and found.split == "val"
    assert len(lines) == 10 and all("--evaluate_on" in line for line in lines[:9])
    assert "--evaluate_on" not in lines[9] and lines[9][-6:-4] == ["--data.val_fraction", "0"]
    assert found.note == "trained on train and dev images"
    assert (found.results["role"], found.results["value"]) == ("test", 0.9)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["best"] == 1


def test_those_within_a_standard_error_are_as_good(tmp_path, monkeypatch):
    found, _ = swept(tmp_path / "s", lambda lr, seed: {0.1: 0.87, 0.2: 0.9, 0.3: 0.86}[lr], monkeypatch)
    assert found.as_good == [0]  # of 100 images sqrt(0.9 * 0.1 / 100) = 0.03


def test_a_sweep_goes_on_where_it_was_and_another_is_refused(tmp_path, monkeypatch):
    done, lines = swept(tmp_path / "s", lambda lr, seed: lr, monkeypatch, seeds=2)
    assert len(lines) == 7
    again, lines = swept(tmp_path / "s", lambda lr, seed: 0.0, monkeypatch, seeds=2)
    assert lines == [] and again.best == done.best == 2 and again.results == done.results
    with pytest.raises(UserError, match="holds another sweep; use output another folder"):
        swept(tmp_path / "s", lambda lr, seed: lr, monkeypatch, seeds=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        swept(tmp_path / "full", lambda lr, seed: lr, monkeypatch)


def test_a_trial_that_fails_is_listed_and_never_the_best(tmp_path, monkeypatch):
    found, lines = swept(tmp_path / "s", lambda lr, seed: None if lr > 0.2 else lr, monkeypatch)
    assert found.best == 1 and found.trials[2].failed == "the loss is not finite at step 3" and len(lines) == 4
    with pytest.raises(UserError, match="no trial succeeded; the first says: the loss is not finite"):
        swept(tmp_path / "t", lambda lr, seed: None, monkeypatch)


def test_a_run_that_another_process_computes_is_waited_for(tmp_path, monkeypatch):
    from filelock import FileLock

    (tmp_path / "s" / "trials").mkdir(parents=True)
    taken = FileLock(tmp_path / "s" / "trials" / "001-0.lock")
    order = []

    def accuracy(lr, seed):
        order.append(lr)
        if lr == 0.3:
            taken.release()  # the other one is gone without having finished
        return lr

    plan = planned(BASE, RATES)
    (tmp_path / "s" / "plan.json").write_text(json.dumps(engine.asdict(plan), indent=2, ensure_ascii=False) + "\n")
    taken.acquire()
    monkeypatch.setattr(engine, "_fit", Fit(accuracy))
    assert sweep(plan, tmp_path / "s", final=False).best == 2 and order == [0.1, 0.3, 0.2]


def test_folds_are_the_repetitions_and_random_trials_are_of_the_seed():
    plan = planned(BASE, RATES, folds=3)
    assert [line[-1] for line in plan.repeats] == ["0", "1", "2"] and plan.repeats[0][:2] == ["--data.folds", "3"]
    many = [("model.lr", [str(i) for i in range(1, 21)]), ("data.batch_size", ["16", "32"])]
    first, same = (planned(BASE, many, trials=5).points for _ in range(2))
    assert first == same and len(first) == 5 and len({tuple(point) for point in first}) == 5
    assert planned([*BASE, "--seed_everything", "1"], many, trials=5).points != first


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ((), "nothing varies; give --vary an option and its values"),
        (("--vary", "model.lr"), "--vary needs an option and its values, as model.lr=0.01,0.03, got 'model.lr'"),
        (("--vary", "model.lr=0.1,"), "--vary needs an option"),
        (("--vary", "model.lr=0.1"), "nothing varies"),
        (("--vary", "model.lr=0.1,0.1"), "has a value twice"),
        (("--vary", "model.lr=0.1,0.2", "--vary", "model.lr=0.3,0.4"), "model.lr varies twice"),
        (("--vary", "model.lr=0.1,0.2", "--model.lr", "1"), "--model.lr is what the sweep sets itself; leave it out"),
        (("--vary", "model.lr=0.1,0.2", "--evaluate_on", "test"), "--evaluate_on is what the sweep sets itself"),
        (("--vary", "model.lr=0.1,0.2", "--folds", "3", "--seeds", "2"), "several seeds or on several folds, not both"),
        (("--vary", "model.lr=0.1,0.2", "--folds", "1"), "folds must be 2 or more, got 1; change --folds"),
        (("--vary", "model.lr=0.1,0.2", "--trials", "0"), "trials must be 1 or more, got 0"),
        (("photos/", "--vary", "model.lr=0.1,0.2"), "'photos/' belongs to no option"),
        (("--vary", "model.lr=0.1,0.2", "--modle.lr", "1"), "unknown option --modle.lr"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(line, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *BASE, *line]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_lists_are_cut_at_commas_outside_of_brackets():
    assert _varied(["--vary", "data.crop_area=[0.1,1],[0.5,1]", "--x", "1"]) == (
        [("data.crop_area", ["[0.1,1]", "[0.5,1]"])],
        ["--x", "1"],
    )

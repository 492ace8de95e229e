"""Some seconds of the fuzzer, and what it and people have found, each by its name."""

import json
import shutil
import warnings
from pathlib import Path

import pytest

from fuzzing import Targets, run_case
from mixer_finetune.backbones.folder import parse_config, read_config
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import Results
from mixer_finetune.runs import RunFolder

CASES = 15
NANO = Path(__file__).resolve().parents[2] / "mixer_finetune" / "assets" / "mixer_nano" / "config.json"


@pytest.fixture(scope="module")
def targets(a_run, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Targets(a_run, tmp_path_factory.mktemp("fuzzing")).all


@pytest.mark.parametrize(
    "name", ["images", "config_json", "weights", "results_json", "predictions_csv", "run_config", "recipes"]
)
@pytest.mark.filterwarnings("ignore")
def test_whatever_comes_is_taken_or_refused_in_one_line(name, targets):
    outcomes = [run_case(targets[name], name, number) for number in range(CASES)]
    assert "refused" in outcomes


CONFIG = json.loads(NANO.read_text())
CFG = CONFIG["pretrained_cfg"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_classes": -1}, "num_classes must be a whole number from 0 to 8388608, got -1"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": 10**400}, "num_classes must be a whole number"),
        ({"pretrained_cfg": {**CFG, "crop_pct": 1e-9}}, "crop_pct must be from 0.05 to 1, got 1e-09"),
        ({"pretrained_cfg": {**CFG, "std": [0, 0, 0]}}, "std above 0"),
        ({"pretrained_cfg": {**CFG, "mean": [float("nan")] * 3}}, "mean must be a list of numbers"),
        ({"pretrained_cfg": {**CFG, "mean": [{"a": "x" * 99999}]}}, "mean must be a list of numbers"),
        ({"pretrained_cfg": {**CFG, "interpolation": {}}}, "interpolation must be"),
        ({"label_names": list(range(10))}, "each of label_names must be text, got 0"),
        ({"label_names": [{"en": "cat"}] * 10}, "each of label_names must be text, got {'en': 'cat'}"),
        ({"label_names": {"0": "cat"}}, "label_names must be a list of names"),
        ({"architecture": "x" * 99999}, "is not supported"),
        ({"model_args": {"mlp_ratio": [float("nan"), 1]}}, "mlp_ratio must hold two numbers above 0"),
        ({"mixer_finetune": {"trained_grid": {"a": 1}}}, "trained_grid must be a list of 2 numbers"),
        ({"mixer_finetune": {"task": ["x"]}}, "task must be text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_json_that_makes_no_sense_is_one_line(changes, problem):
    with pytest.raises(UserError, match="it can't be used: ") as error:
        parse_config({**CONFIG, **changes}, "it")
    assert problem in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 2100


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "{", "null", "[]", '"x"', "\ufeff{}", "1e999"])
def test_a_config_json_that_is_none_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (is not valid JSON|can't be used): ") as error:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", [["a"], "b"]), ("classes", None), ("metrics", {"accuracy": "high"}), ("metrics", []),
        ("metrics", {"accuracy": True}), ("intervals", {"accuracy": [0.1]}), ("intervals", {"accuracy": "ab"}),
        ("samples", -1), ("samples", "many"), ("samples", 10**400), ("backbone", {"source": 1}), ("backbone", {}),
        ("backbone", {"source": "a", "weights": "b", "resized": {"from": 1}}), ("data", {"source": []}),
        ("task", "three_labels"), ("versions", {}), ("time", {"fit": []}), ("judgement", "x"), ("seconds", None),
        ("files", []), ("split", 1), ("dev", {"loss": {}}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_results_that_no_run_writes_are_refused_by_the_name_of_the_field(name, value, a_run, tmp_path):
    content = json.loads((a_run / "results.json").read_text())
    Results.read(RunFolder(a_run))
    (tmp_path / "results.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError, match=r"results\.json can't be read: .*" + name):
        Results.read(RunFolder(tmp_path))


def test_losses_that_are_no_numbers_and_data_of_no_commit_are_results(a_run, tmp_path):
    shutil.copy(a_run / "results.json", tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    content["dev"] = {"loss": float("nan"), "accuracy": 0}
    content["data"] = {"source": "digits"}
    (tmp_path / "results.json").write_text(json.dumps(content))
    found = Results.read(RunFolder(tmp_path))
    assert found.dev["accuracy"] == 0 and found.data == {"source": "digits", "revision": None, "license": None}

"""What a run says of how far it can be trusted, from fit to predict."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from conftest import program

TINY = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0")


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory):
    """Two epochs on the digits, and what was printed."""
    folder = tmp_path_factory.mktemp("trust")
    options = ("--recipe", "digits", *TINY, "--trainer.max_epochs", 2, "--data.batch_size", 64)
    said = program(folder, environment, "fit", *options).stdout
    (run,) = (folder / "runs" / "digits").iterdir()
    return run, said


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_temperature_is_in_the_exported_head_and_the_answers_are_those_of_training(trained, cli, tmp_path):
    run, said = trained
    results = json.loads((run / "results.json").read_text())
    kept = json.loads((run / "model" / "calibration.json").read_text())
    found = results["calibration"]
    assert found["temperature"] == kept["temperature"] and found["fitted_on_images"] == kept["images"] == 143
    assert found["images"] == 359 and f"temperature {kept['temperature']:.3g}, fitted on 143 images" in said
    assert kept["temperature"] != 1 and found["dev"]["after"]["nll"] < found["dev"]["before"]["nll"]
    assert found["after"]["calibration_error"] == pytest.approx(results["calibration_error"], abs=1e-4)
    assert f"{found['after']['nll']:.4f}" in cli("test", run, *TINY, check=0).stdout  # as `fit` said itself
    for text in ((run / "report.html").read_text(), (run / "model" / "README.md").read_text()):
        assert f"divided by a temperature of {kept['temperature']:.3g}" in text
        assert f"{found['before']['nll']:.4f}" in text and f"{found['after']['nll']:.4f}" in text

    options = ("--source", "digits", "--device", "cpu", "--top_k", 10)
    cli("predict", run, *options, "--output", "run.csv", check=0)
    cli("predict", run / "checkpoints" / "last.ckpt", *options, "--output", "last.csv", check=0)
    exported, trained_rows = rows_of(tmp_path / "run.csv"), rows_of(tmp_path / "last.csv")
    assert [row["label_1"] for row in exported] == [row["label_1"] for row in trained_rows]
    for one, other in zip(exported[:20], trained_rows, strict=False):
        logits = {other[f"label_{i}"]: np.log(float(other[f"probability_{i}"]) + 1e-30) for i in range(1, 11)}
        scaled = np.exp(np.array(list(logits.values())) / kept["temperature"])
        expected = dict(zip(logits, scaled / scaled.sum(), strict=True))
        assert float(one["probability_1"]) == pytest.approx(expected[one["label_1"]], abs=1e-4)


def test_predict_gives_sets_withholds_answers_and_tells_noise_from_digits(trained, cli, tmp_path):
    run, _ = trained
    rng = np.random.default_rng(0)
    (tmp_path / "odd").mkdir()
    for i in range(30):
        noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(noise[:4, :4]).resize((48, 48), Image.Resampling.BICUBIC))
        Image.fromarray(noise).save(tmp_path / "odd" / f"noise{i}.png")
        Image.fromarray(smooth).save(tmp_path / "odd" / f"smooth{i}.png")
    asked = ("--coverage", 0.9, "--abstain", 0.2, "--ood", "--device", "cpu")
    said = cli("predict", run, "--source", "digits", *asked, "--output", "digits.jsonl", check=0).stdout
    cli("predict", run, "odd", "--ood", "--device", "cpu", "--output", "odd.csv", check=0)
    digits, odd = rows_of(tmp_path / "digits.jsonl"), rows_of(tmp_path / "odd.csv")
    with open(run / "predictions.csv", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    covered = np.mean([label in row["set"] for label, row in zip(labels, digits, strict=True)])
    (promised,) = (s for s in json.loads((run / "results.json").read_text())["calibration"]["sets"]
                   if s["coverage"] == 0.9)  # fmt: skip
    assert covered == pytest.approx(promised["covered"], abs=1e-5) and covered > 0.85
    assert all(row["set"][0] == row["label_1"] for row in digits)
    answered = [row.get("answer") == label for label, row in zip(labels, digits, strict=True) if row.get("answer")]
    right = np.mean([row["label_1"] == label for label, row in zip(labels, digits, strict=True)])
    assert 0.6 < len(answered) / len(digits) < 0.95 and np.mean(answered) > right
    energies = [row["energy"] for row in digits] + [float(row["energy"]) for row in odd]
    assert roc_auc_score([0] * len(digits) + [1] * len(odd), energies) > 0.9
    assert np.mean([row["p_familiar"] <= 0.05 for row in digits]) < 0.12
    assert f"sets of {np.mean([len(row['set']) for row in digits]):.2f} labels on average" in said
    assert f"no answer to {len(digits) - len(answered)} of 359 images" in said
    assert "tta" in cli("predict", run, "odd", "--coverage", 0.9, "--tta", check=2).stderr
    refused = cli("predict", run / "checkpoints" / "last.ckpt", "odd", "--ood", check=2).stderr
    assert "is a file of weights, and has no calibration.json" in refused and refused.count("\n") == 1


def test_without_a_dev_split_there_is_no_temperature_and_that_is_said(cli, photos, tmp_path):
    options = ("--data.source", photos, "--model.backbone", "mixer_nano_32", *TINY, "--trainer.max_epochs", 1)
    said = cli("fit", *options, "--data.val_fraction", 0, check=0).stdout
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    assert "there is no dev split to fit a temperature on" in said and not Path(run / "model/calibration.json").exists()
    assert "has no calibration.json" in cli("predict", run, photos, "--ood", check=2).stderr

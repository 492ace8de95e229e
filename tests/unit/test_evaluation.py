"""Figures of a run, against worked examples and torchmetrics."""

import csv

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from mixer_finetune import UserError
from mixer_finetune.evaluation.predictions import Evaluation, macro_f1, wilson


@pytest.fixture
def evaluation():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-probabilities, axis=1)
    labels = np.where(rng.random(200) < 0.7, top[:, 0], rng.integers(0, 4, 200))
    ordered = np.take_along_axis(probabilities, top, 1)
    files = [str(i) for i in range(200)]
    return Evaluation(["a", "b", "c", "d"], files, np.arange(200), labels, top, ordered), probabilities


def test_calibration_and_macro_f1_are_torchmetrics(evaluation):
    found, probabilities = evaluation
    labels, scores = torch.from_numpy(found.labels), torch.from_numpy(probabilities)
    expected = multiclass_calibration_error(scores, labels, 4, n_bins=10, norm="l1")
    assert found.calibration()[1] == pytest.approx(float(expected), abs=1e-6)
    expected = multiclass_f1_score(scores, labels, 4, average="macro")
    assert macro_f1(found.confusion) == pytest.approx(float(expected), abs=1e-6)


def test_wilsons_interval_is_the_published_one():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_intervals_hold_the_figure_and_shrink_with_images(evaluation):
    found, _ = evaluation
    for name, (low, high) in found.intervals().items():
        assert 0 <= low < high <= 1, name
    low, high = found.intervals()["accuracy"]
    assert low < found.right.mean() < high
    assert np.subtract(*wilson(900, 1000)[::-1]) < np.subtract(*wilson(90, 100)[::-1])


def test_confusions_and_mistakes_come_worst_first(evaluation):
    found, _ = evaluation
    counts = [pair.images for pair in found.confusions(12)]
    assert counts == sorted(counts, reverse=True) and sum(counts) == (~found.right).sum()
    confidences = found.probabilities[found.mistakes(), 0]
    assert (np.diff(confidences) <= 0).all() and not found.right[found.mistakes()].any()


def test_predictions_are_read_back_and_another_file_is_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["index", "file", "label", "label_1", "probability_1", "label_2", "probability_2"],
                ["3", "x, y.png", "b", "a", "0.75", "b", "0.25"],
            ]
        )
    found = Evaluation.read(path, ["a", "b"])
    assert found.files == ["x, y.png"] and found.indices.tolist() == [3] and found.top.tolist() == [[0, 1]]
    assert found.intervals()["top5_accuracy"][1] == pytest.approx(1)
    with pytest.raises(UserError, match=r"not the predictions\.csv"):
        Evaluation.read(path, ["a", "c"])
    with pytest.raises(UserError, match="can't be read"):
        Evaluation.read(tmp_path / "none.csv", ["a"])

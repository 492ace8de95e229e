"""Figures of a split, against worked examples, torchmetrics and the plain way to compute them."""

import tracemalloc

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from mixer_finetune.evaluation import measures
from mixer_finetune.evaluation.measures import (
    ConfusionMatrix,
    calibration,
    class_figures,
    intervals,
    macro_f1,
    macro_f1_interval,
    most_confused,
    wilson,
)
from mixer_finetune.evaluation.predictions import Predictions


def made_up(classes, n, accuracy=0.7, k=2, absent=0, seed=0):
    """Predictions of n images; the last `absent` classes have none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - absent, n)
    first = np.where(rng.random(n) < accuracy, labels, rng.integers(0, classes, n))
    top = (first[:, None] + np.arange(k)) % classes
    probabilities = -np.sort(-rng.dirichlet(np.ones(k + 1), n), axis=1)[:, :k]
    names = [f"class {i}" for i in range(classes)]
    return Predictions(names, [f"{i}.png" for i in range(n)], np.arange(n), labels, top, probabilities)


@pytest.fixture
def predictions():
    return made_up(classes=7, n=200, absent=1)


def test_recall_precision_and_f1_of_each_class_are_torchmetrics(predictions):
    labels, answers = torch.from_numpy(predictions.labels), torch.from_numpy(predictions.top[:, 0])
    found = class_figures(ConfusionMatrix.of(predictions), predictions.names)
    for name, measure in (
        ("recall", multiclass_recall),
        ("precision", multiclass_precision),
        ("f1", multiclass_f1_score),
    ):
        expected = measure(answers, labels, 7, average="none").tolist()
        assert [getattr(c, name) or 0.0 for c in found] == pytest.approx(expected, abs=1e-6), name
    assert [c.images for c in found] == np.bincount(predictions.labels, minlength=7).tolist()


def test_recall_and_precision_of_a_worked_example():
    # Of 4 cats 3 are called so, and 1 dog is, too; of 2 dogs 1 is called so, and a cat.
    labels, answers = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    found = Predictions(["cat", "dog"], list("abcdef"), np.arange(6), labels, answers[:, None], np.ones((6, 1)))
    cat, dog = class_figures(ConfusionMatrix.of(found), found.names)
    assert (cat.recall, cat.precision, cat.f1) == (3 / 4, 3 / 4, 3 / 4)
    assert (dog.recall, dog.precision, dog.images) == (1 / 2, 1 / 2, 2)
    labels[5] = 0  # of 5 cats 4 are called so, and nothing else is
    cat, dog = class_figures(ConfusionMatrix.of(found), found.names)
    assert (cat.recall, cat.precision) == (4 / 5, 1.0) and (dog.recall, dog.precision) == (1.0, 1 / 2)


def test_a_class_without_images_has_no_recall(predictions):
    matrix = ConfusionMatrix.of(predictions)
    last = class_figures(matrix, predictions.names)[-1]
    assert last.images == 0 and last.recall is None and last.precision == 0.0
    assert matrix.without_images == 1 and matrix.called[-1] > 0 and 6 in matrix.occurring


def test_the_matrix_and_macro_f1_are_torchmetrics(predictions):
    labels, answers = torch.from_numpy(predictions.labels), torch.from_numpy(predictions.top[:, 0])
    matrix = ConfusionMatrix.of(predictions)
    every = np.arange(7)
    assert np.array_equal(matrix.dense(every, every), multiclass_confusion_matrix(answers, labels, 7).numpy())
    assert np.array_equal(matrix.dense(every[[2, 0]], every[[3]]), matrix.dense(every, every)[[2, 0]][:, [3]])
    expected = multiclass_f1_score(answers, labels, 7, average="macro")
    assert macro_f1(matrix) == pytest.approx(float(expected), abs=1e-6)


def test_groups_of_classes_share_the_counts_of_a_smaller_matrix(predictions):
    matrix = ConfusionMatrix.of(predictions)
    every = np.arange(7)
    dense = matrix.dense(every, every)
    assert np.array_equal(matrix.binned(1000), dense)
    groups = np.arange(7) * 3 // 7
    expected = [[dense[np.ix_(groups == i, groups == j)].sum() for j in range(3)] for i in range(3)]
    assert matrix.binned(3).tolist() == expected


def test_the_most_frequent_confusions_come_first(predictions):
    matrix = ConfusionMatrix.of(predictions)
    found = most_confused(matrix, 1000)
    counts = [pair.images for pair in found]
    assert counts == sorted(counts, reverse=True) and sum(counts) == (~predictions.right).sum()
    assert all(pair.true != pair.predicted for pair in found) and most_confused(matrix, 2) == found[:2]
    true, predicted, images = found[0]
    assert images == ((predictions.labels == true) & (predictions.top[:, 0] == predicted)).sum()


def test_wilsons_interval_is_the_published_one():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert np.subtract(*wilson(900, 1000)[::-1]) < np.subtract(*wilson(90, 100)[::-1])


def plain_bootstrap(predictions, seed):
    """The percentile bootstrap of macro-F1 on whole matrices."""
    classes, n = len(predictions.names), len(predictions)
    dense = np.zeros((classes, classes), np.int64)
    np.add.at(dense, (predictions.labels, predictions.top[:, 0]), 1)
    cells = np.nonzero(dense)
    scores = []
    for sample in np.random.default_rng(seed).multinomial(n, dense[cells] / n, 1000):
        drawn = np.zeros_like(dense)
        drawn[cells] = sample
        right, sums = np.diag(drawn), drawn.sum(0) + drawn.sum(1)
        scores.append((2 * right[sums > 0] / sums[sums > 0]).mean())
    return tuple(np.quantile(scores, (0.025, 0.975)))


@pytest.mark.parametrize(("classes", "n", "absent"), [(3, 6, 1), (10, 359, 0), (60, 300, 5)])
def test_the_interval_of_macro_f1_is_bitwise_the_plain_bootstraps(classes, n, absent):
    found = made_up(classes, n, absent=absent, seed=classes)
    matrix = ConfusionMatrix.of(found)
    assert macro_f1_interval(matrix) == plain_bootstrap(found, seed=0)
    assert macro_f1_interval(matrix, seed=1) == plain_bootstrap(found, seed=1)


def test_the_intervals_of_accuracies_are_wilsons(predictions):
    found = intervals(predictions)
    assert found["accuracy"] == wilson(int(predictions.right.sum()), 200)
    assert found["top5_accuracy"] == wilson(int(predictions.within_top.sum()), 200)
    assert found["macro_f1"] == macro_f1_interval(ConfusionMatrix.of(predictions))
    assert predictions.within_top.sum() > predictions.right.sum()


def test_drawing_images_and_drawing_entries_give_the_same_interval_but_for_chance(monkeypatch):
    matrix = ConfusionMatrix.of(made_up(classes=20, n=2000))
    by_entry = macro_f1_interval(matrix)
    monkeypatch.setattr(measures, "MOST_DRAWN_ENTRIES", 10)
    by_image = macro_f1_interval(matrix)
    assert by_image != by_entry and by_image == pytest.approx(by_entry, abs=0.004)
    assert by_image[0] < macro_f1(matrix) < by_image[1]


def test_ten_thousand_classes_cost_no_squares():
    found = made_up(classes=10_000, n=30_000, accuracy=0.5)
    matrix = ConfusionMatrix.of(found)
    tracemalloc.start()
    low, high = macro_f1_interval(matrix)
    class_figures(matrix, found.names)
    most_confused(matrix, 5)
    assert matrix.binned(1000).shape == (1000, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < low < high < 1 and peak < 100e6


def test_calibration_is_torchmetrics():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), 300)
    order = np.argsort(-scores, axis=1)
    labels = np.where(rng.random(300) < 0.6, order[:, 0], rng.integers(0, 4, 300))
    ordered = np.take_along_axis(scores, order, 1)
    found = Predictions(list("abcd"), [""] * 300, np.arange(300), labels, order, ordered)
    expected = multiclass_calibration_error(torch.from_numpy(scores), torch.from_numpy(labels), 4, n_bins=10, norm="l1")
    bins, error = calibration(found)
    assert error == pytest.approx(float(expected), abs=1e-6)
    assert sum(b.images for b in bins) == 300 and all(0 <= b.accuracy <= 1 for b in bins)

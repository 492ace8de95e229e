"""Paired tests, against scipy, worked examples and plain loops."""

import math

import numpy as np
import pytest

from mixer_finetune.evaluation.measures import ConfusionMatrix, macro_f1
from mixer_finetune.evaluation.paired import F1_DRAWS, holm, macro_f1_difference, mcnemar, share_difference
from mixer_finetune.evaluation.predictions import Predictions


def test_mcnemars_p_is_the_binomial_tests():
    stats = pytest.importorskip("scipy.stats")
    for one, other in [(0, 0), (0, 1), (3, 3), (7, 63), (63, 7), (1, 5), (10, 11), (0, 5000), (2400, 2600), (40, 3000)]:
        expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
        assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9), (one, other)


def test_mcnemars_p_by_counting_all_outcomes():
    # Of 6 images on which two equally good models differ, the one wins at most 1 or at least 5 in 14 of 64 ways.
    assert mcnemar(1, 5) == pytest.approx((1 + 6 + 6 + 1) / 64, abs=1e-15)
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10, abs=1e-15) and mcnemar(4, 4) == 1.0


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_the_interval_of_a_difference_is_that_of_drawing_images():
    rng = np.random.default_rng(1)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.86
    difference, (low, high) = share_difference(first, second)
    assert difference == pytest.approx(second.mean() - first.mean(), abs=1e-12)
    change = second.astype(int) - first
    drawn = [change[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.006)
    # Answers that go together are told apart far better than by their own intervals.
    together = first.copy()
    together[np.flatnonzero(~first)[:8]] = True
    _, (low, high) = share_difference(first, together)
    assert 0 < low < 8 / 400 < high < 0.04
    assert share_difference(np.zeros(0, bool), np.zeros(0, bool)) == (0.0, (-1.0, 1.0))


def test_the_difference_of_macro_f1_is_the_plain_bootstraps():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    first, second = (np.where(rng.random(120) < share, labels, rng.integers(0, 5, 120)) for share in (0.6, 0.75))
    difference, interval = macro_f1_difference(labels, first, second, 5)

    def score(labels, answers):
        names = list("abcde")
        found = Predictions(
            names, [""] * len(labels), np.arange(len(labels)), labels, answers[:, None], np.ones((1, 1))
        )
        return macro_f1(ConfusionMatrix.of(found))

    assert difference == pytest.approx(score(labels, second) - score(labels, first), abs=1e-12)
    kinds, images = np.unique(np.stack([labels, first, second], 1), axis=0, return_counts=True)
    drawn = []
    for draw in range(F1_DRAWS):
        counts = np.random.default_rng((0, draw)).multinomial(120, images / 120)
        true, one, other = np.repeat(kinds, counts, axis=0).T
        drawn.append(score(true, other) - score(true, one))
    assert interval == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=1e-12)
    assert math.isclose(macro_f1_difference(labels, first, first, 5)[1][0], 0.0)

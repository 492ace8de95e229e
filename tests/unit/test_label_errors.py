"""Likely label errors and outliers, against plain loops."""

import numpy as np
import pytest
import torch

from mixer_finetune.training.label_errors import find_label_errors
from mixer_finetune.training.out_of_fold import probe_probabilities
from mixer_finetune.training.outliers import neighbour_distances, unusual


def noisy_labels(n=3000, classes=5, wrong=0.1, seed=0):
    """Probabilities of a good model, labels of which a tenth is wrong, and which."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, classes)) + 4 * np.eye(classes)[truth] * rng.uniform(0.2, 1, (n, 1))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    flipped = rng.random(n) < wrong
    labels = np.where(flipped, (truth + rng.integers(1, classes, n)) % classes, truth)
    return probabilities, labels, flipped


def test_likely_errors_are_pruned_by_the_noise_rates_of_the_confident_joint():
    probabilities, labels, flipped = noisy_labels()
    found = find_label_errors(probabilities, labels)
    pairs = list(zip(probabilities, labels, strict=True))
    classes = range(probabilities.shape[1])
    thresholds = [np.mean([p[k] for p, y in pairs if y == k]) for k in classes]
    joint = np.zeros((5, 5))
    for p, y in pairs:
        if confident := [k for k in classes if p[k] >= thresholds[k]]:
            joint[y, max(confident, key=lambda k: p[k])] += 1
    likely = set()
    for given in classes:
        members = [i for i, y in enumerate(labels) if y == given]
        for other in classes:
            number = round(joint[given, other] / joint[given].sum() * len(members))
            assert found.counts[given, other] == number
            if other != given:
                ranked = sorted(members, key=lambda i: probabilities[i, given] - probabilities[i, other])
                likely |= set(ranked[:number])
    likely = {i for i in likely if probabilities[i].argmax() != labels[i] and probabilities[i].max() >= 0.5}
    assert set(np.flatnonzero(found.likely)) == likely and 100 < len(likely) < 600
    ranked = sorted(likely, key=lambda i: probabilities[i, labels[i]])
    assert found.order[: len(ranked)].tolist() == ranked
    rest = found.order[len(ranked) :]
    margins = [p[y] - max(p[k] for k in classes if k != y) for p, y in (pairs[i] for i in rest)]
    assert margins == pytest.approx(sorted(margins), abs=1e-6)
    assert found.suggested.tolist() == probabilities.argmax(1).tolist()
    assert flipped[found.order[:200]].mean() > 0.8  # of all a tenth is


def test_a_model_that_is_never_sure_and_a_class_without_images_give_no_errors():
    weak = np.where(np.eye(5)[np.arange(300) % 5] > 0, 0.4, 0.15)
    assert not find_label_errors(weak, (np.arange(300) + (np.arange(300) % 7 == 0)) % 5).likely.any()
    found = find_label_errors(np.array([[0.1, 0.0, 0.9], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]), np.array([0, 0, 0]))
    assert not found.likely.any() and found.order.tolist() == [0, 2, 1]
    assert found.counts.tolist() == [[3, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_an_image_is_answered_by_a_regression_on_all_the_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    features = torch.randn(40, 6, generator=generator) + 2 * torch.eye(6)[labels]
    others = torch.randn(7, 6, generator=generator)
    own, answered, accuracy = probe_probabilities(features, labels, 3, {"test": others})
    assert own.shape == (40, 3) and answered["test"].shape == (7, 3)
    assert accuracy == pytest.approx((own.argmax(1) == labels.numpy()).mean())

    from mixer_finetune.training.probe import fit_probe

    probe = fit_probe(features, labels, 3)

    def answer(rows, x):
        """Ridge regression with a bias, by the normal equations."""
        a, y = features[rows].double(), 2 * torch.nn.functional.one_hot(labels[rows], 3).double() - 1
        mean = a.mean(0)
        gram = (a - mean).T @ (a - mean) + probe.penalty * torch.eye(6)
        weight = torch.linalg.solve(gram, (a - mean).T @ (y - y.mean(0)))
        return (probe.scale * ((x.double() - mean) @ weight + y.mean(0))).softmax(-1)

    for i in (0, 11, 39):
        rows = [j for j in range(40) if j != i]
        np.testing.assert_allclose(own[i], answer(rows, features[i]).numpy(), atol=1e-6)
    np.testing.assert_allclose(answered["test"], answer(range(40), others).numpy(), atol=1e-6)


def test_outliers_are_far_from_their_nearest_neighbours():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.3, (300, 8)) + 5 * np.eye(8)[rng.integers(0, 3, 300)]
    features[17] = -5 * np.eye(8)[6]
    reference = np.arange(0, 300, 2)
    found = neighbour_distances(torch.from_numpy(features), reference, neighbours=4)
    mean = features[reference].mean(0)
    x = (features - mean) / np.linalg.norm(features - mean, axis=1, keepdims=True)
    for i in (0, 1, 17, 298):
        distances = sorted(1 - float(x[i] @ x[j]) for j in reference if j != i)
        assert found[i] == pytest.approx(np.mean(distances[:4]), abs=1e-9)
    assert found.argmax() == 17 and unusual(found)[17] and unusual(found).mean() < 0.1
    median, spread = np.median(found), 1.4826 * np.median(np.abs(found - np.median(found)))
    assert unusual(found).tolist() == [distance > median + 2.5 * spread for distance in found]
    assert len(neighbour_distances(torch.from_numpy(features[:3]), np.arange(2))) == 3  # fewer than ten neighbours

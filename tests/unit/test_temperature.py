"""The temperature: against scipy's minimum and plain loops; and where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from mixer_finetune.training.calibration import Calibration, Sample
from mixer_finetune.training.reliability import DevLogits, Reliability
from mixer_finetune.training.task import MULTI_LABEL, SINGLE_LABEL
from mixer_finetune.training.temperature import fit_temperature, fold_into, mean_loss


def single_loss(logits, labels):
    return SINGLE_LABEL.losses(logits, labels, 0.0)


def multi_loss(logits, labels):
    return MULTI_LABEL.losses(logits, labels, 0.0)


def drawn(n, classes, temperature, several=False):
    """Logits that are too large by a factor, and the labels that they were drawn for."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes)) * 2
    if several:
        labels = (rng.random((n, classes)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    else:
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = np.array([rng.choice(classes, p=p) for p in chances])
    return torch.from_numpy(logits * temperature).float(), torch.from_numpy(labels)


def plain_loss(logits, labels, temperature):
    """Of one label an image: a loop over the images."""
    total = 0.0
    for row, label in zip(logits.double().numpy() / temperature, labels.numpy(), strict=True):
        total += np.log(np.exp(row).sum()) - row[label]
    return total / len(labels)


def plain_binary_loss(logits, labels, temperature):
    """Of several labels: the sum over the classes."""
    z, y = logits.double().numpy() / temperature, labels.numpy()
    return float((np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y)).sum() / len(y))


@pytest.mark.parametrize(
    ("losses", "plain", "several"), [(single_loss, plain_loss, False), (multi_loss, plain_binary_loss, True)]
)
@pytest.mark.parametrize("true", [0.5, 2.5])
def test_the_temperature_is_the_minimum_that_scipy_finds(losses, plain, several, true):
    logits, labels = drawn(400, 5, true, several)
    found = fit_temperature(logits, labels, losses, all_right=False)
    best = minimize_scalar(lambda t: plain(logits, labels, t), bounds=(0.05, 20), options={"xatol": 1e-9})
    assert found.why_not is None and found.value == pytest.approx(best.x, rel=1e-5)
    assert found.value == pytest.approx(true, rel=0.2)
    assert mean_loss(logits, labels, losses, found.value) == pytest.approx(plain(logits, labels, found.value), rel=1e-9)
    # An image has no say in its own: image 3 is in the fold of 3, 8, 13, ...
    others = [i for i in range(400) if i % 5 != 3]
    without = minimize_scalar(
        lambda t: plain(logits[others], labels[others], t), bounds=(0.05, 20), options={"xatol": 1e-9}
    )
    assert float(found.held_out[3]) == float(found.held_out[8]) == pytest.approx(without.x, rel=1e-5)


def test_no_temperature_where_it_can_not_be_known_or_does_not_help():
    logits, labels = drawn(400, 5, 1.0)
    cases = {
        "400 images are answered rightly": (logits, labels, True),
        "9 images are too few": (logits[:9], labels[:9], False),
        "no finite numbers": (logits.clone().fill_(torch.nan), labels, False),
    }
    for why, (z, y, right) in cases.items():
        found = fit_temperature(z, y, single_loss, right)
        assert found.value == 1 and why in found.why_not and (found.held_out == 1).all()
    # One mistake among ten: without it the others would have the model as sure as can be.
    z, y = 3 * torch.eye(10).repeat(2, 1)[:10], torch.arange(10)
    y[4] = 5
    found = fit_temperature(z, y, single_loss, False)
    assert found.value == 1 and "no better on images that it was not fitted on" in found.why_not


def test_a_folded_head_gives_the_divided_logits_and_the_same_answers():
    head = nn.Linear(64, 10)
    features = torch.randn(500, 64)
    before = head(features)
    fold_into(head, 1.7)
    after = head(features)
    assert torch.allclose(after, before / 1.7, atol=1e-6) and torch.equal(after.argmax(-1), before.argmax(-1))


def calibration(logits, labels, temperature):
    true = logits.double().softmax(-1).gather(1, labels[:, None])[:, 0].numpy()
    return Calibration(
        "single_label", "val", len(labels), temperature, None, {}, Sample(1, [1], [0.0]), true=Sample.of(true)
    )


def test_figures_of_a_test_split_are_those_of_a_plain_loop():
    logits, labels = drawn(300, 4, 2.0)
    known = calibration(*drawn(99, 4, 2.0), 2.0)
    folded = logits / 2.0
    halves = [Reliability(SINGLE_LABEL, known) for _ in range(2)]  # of two devices
    for half, rows in zip(halves, (slice(0, 120), slice(120, 300)), strict=True):
        for start in range(rows.start, rows.stop, 50):
            half.update(folded[start : min(start + 50, rows.stop)], labels[start : min(start + 50, rows.stop)])
    sums = []
    halves[1].compute(lambda mine: sums.append(mine) or mine)
    found = halves[0].compute(lambda mine: mine + sums[0])
    assert found["images"] == 300
    for name, temperature in (("before", 1.0), ("after", 2.0)):
        assert found[name]["nll"] == pytest.approx(plain_loss(logits, labels, temperature), abs=2e-6)
        probabilities = (logits.double() / temperature).softmax(-1).numpy()
        first = probabilities.argmax(1)
        error = 0.0
        for b in range(10):
            inside = [i for i in range(300) if b / 10 <= round(probabilities[i].max(), 6) < (b + 1) / 10]
            if inside:
                confidence = np.mean([probabilities[i].max() for i in inside])
                error += len(inside) / 300 * abs(confidence - np.mean([first[i] == labels[i] for i in inside]))
        assert found[name]["calibration_error"] == pytest.approx(error, abs=1e-5)
    losses = [
        torch.nn.functional.cross_entropy(logits.double() / t, labels, reduction="none").numpy() for t in (1.0, 2.0)
    ]
    change = losses[1] - losses[0]
    low, high = found["nll_change_interval"]
    assert (low + high) / 2 == pytest.approx(change.mean(), abs=1e-5)
    assert (high - low) / 2 == pytest.approx(1.96 * change.std(ddof=1) / np.sqrt(300), rel=1e-3)
    (of_90,) = [each for each in found["sets"] if each["coverage"] == 0.9]
    threshold = np.sort(known.true.values)[9]  # the tenth of 99 is at (99 + 1) (1 - 0.9)
    sets = logits.double().softmax(-1).numpy() >= threshold
    sets[np.arange(300), logits.numpy().argmax(1)] = True
    assert of_90["labels"] == pytest.approx(sets.sum(1).mean(), abs=1e-5)
    assert of_90["covered"] == pytest.approx(sets[np.arange(300), labels.numpy()].mean(), abs=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_dev_logits_come_back_in_the_order_of_the_split_and_thinned_where_they_are_many(several, monkeypatch):
    task = MULTI_LABEL if several else SINGLE_LABEL
    logits, labels = drawn(20, 3, 1.0, several)
    order = np.random.default_rng(1).permutation(20)
    rows = DevLogits(task, 20, 3)
    for part in np.split(order, 4):
        rows.update(logits[part], labels[part], part)
    found, targets = rows.compute()
    assert torch.equal(found, logits) and torch.equal(targets, labels)
    monkeypatch.setattr("mixer_finetune.training.reliability.MOST_LOGITS", 30)
    thin = DevLogits(task, 20, 3)
    thin.update(logits, labels, None)
    assert torch.equal(thin.compute()[0], logits[::2])


def test_a_head_that_is_not_linear_and_16_bit_weights_are_left_as_they_are():
    from mixer_finetune.engine.calibrate import _temperature

    logits, labels = drawn(100, 3, 3.0)
    for head, why in (
        (nn.Sequential(nn.Linear(4, 3)), "a Sequential as head"),
        (nn.Linear(4, 3).bfloat16(), "16 bits"),
    ):
        parts = SimpleNamespace(
            options=SimpleNamespace(calibrate=True), model=SimpleNamespace(head=head, task=SINGLE_LABEL)
        )
        assert why in _temperature(parts, logits, labels).why_not
    parts.options.calibrate = False
    assert "not asked for" in _temperature(parts, logits, labels).why_not

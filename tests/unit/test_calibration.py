"""calibration.json: sets of labels against MAPIE, answers withheld, images unlike the data, and the file."""

import numpy as np
import pytest
import torch

from mixer_finetune import UserError
from mixer_finetune.evaluation.trusting import Trust, calibration_of
from mixer_finetune.training import calibration as module
from mixer_finetune.training.calibration import Calibration, Sample, familiarity

ONE = Sample(1, [1], [0.0])


def drawn(n, classes=5, seed=0):
    """Logits, and labels that are drawn by them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return torch.from_numpy(logits), np.array([rng.choice(classes, p=p) for p in chances])


def calibrated(n=200, temperature=1.0):
    logits, labels = drawn(n)
    probabilities = logits.softmax(-1).numpy()
    after = (logits / temperature).softmax(-1).numpy()
    order = np.argsort(after.max(1), kind="stable")
    right = (probabilities.argmax(1) == labels)[order]
    return Calibration(
        "single_label", "val", n, temperature, None, {},
        Sample.of(familiarity(logits, "single_label").numpy()),
        true=Sample.of(probabilities[np.arange(n), labels]),
        confidence=Sample.of(after.max(1)),
        accuracy=[float(right[i:].mean()) for i in range(n)],
    )  # fmt: skip


class Known:
    """A classifier as scikit-learn has them, whose images are their logits."""

    classes_ = np.arange(5)

    def fit(self, x, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, x):
        return torch.from_numpy(np.asarray(x)).softmax(-1).numpy()

    def predict(self, x):
        return self.predict_proba(x).argmax(1)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_sets_are_those_of_mapie_with_the_first_label_always_in(coverage):
    classification = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    known = type("KnownClassifier", (ClassifierMixin, Known, BaseEstimator), {})()
    (logits, labels), (others, _) = drawn(200), drawn(300, seed=1)
    oracle = classification.SplitConformalClassifier(known, confidence_level=coverage, prefit=True)
    oracle.conformalize(logits.numpy(), labels)
    expected = oracle.predict_set(others.numpy())[1][:, :, 0]
    found = calibrated()
    sets = found.sets(others, found.set_threshold(coverage)).numpy()
    expected[np.arange(300), others.numpy().argmax(1)] = True
    assert (sets == expected).all() and 1 <= sets.sum(1).mean() < 5


def test_the_threshold_is_the_order_statistic_that_the_guarantee_takes():
    found = calibrated(99)
    for coverage, rank in ((0.9, 10), (0.99, 1), (0.5, 50), (0.901, 9)):
        assert found.set_threshold(coverage) == found.true.values[rank - 1]
    with pytest.raises(UserError, match=r"needs more images than the 99 of the dev split; use coverage 0.99 or less"):
        found.set_threshold(0.995)
    with pytest.raises(UserError, match="between 0 and 1"):
        found.set_threshold(90)


def test_the_stated_coverage_is_kept_over_many_dev_splits_and_a_temperature_changes_no_set():
    logits, labels = drawn(4000)
    probabilities = logits.softmax(-1).numpy()[np.arange(4000), labels]
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        dev = rng.permutation(4000)[:51]
        known = Calibration("single_label", "val", 50, 1.0, None, {}, ONE, true=Sample.of(probabilities[dev[:50]]))
        covered.append(known.sets(logits[dev[50:]], known.set_threshold(0.8))[0, labels[dev[50]]].item())
    assert 0.8 - 0.05 < np.mean(covered) < 0.9
    plain, folded = calibrated(), calibrated(temperature=2.0)
    threshold = plain.set_threshold(0.9)
    assert torch.equal(plain.sets(logits, threshold), folded.sets(logits / 2, threshold))


def test_a_large_sample_is_kept_small_and_errs_to_the_safe_side(monkeypatch):
    values = np.random.default_rng(0).random(50_000)
    sample, ordered = Sample.of(values), np.sort(values)
    assert len(sample.ranks) <= 1000
    for rank in (1, 7, 500, 5_000, 50_000):
        assert ordered[max(int(rank * 0.985), 1) - 1] - 1e-6 < sample.below(rank) <= ordered[rank - 1]
    others = np.array([0.0, 0.001, 0.05, 0.5, 0.999])
    exact = np.array([(1 + (values <= other).sum()) / 50_001 for other in others])
    assert (sample.p_values(others) >= exact - 1e-9).all() and (sample.p_values(others) <= exact * 1.02 + 1e-4).all()
    small = Sample.of(values[:40])
    exact = [(1 + (values[:40] <= other).sum()) / 41 for other in others]
    assert small.ranks == list(range(1, 41)) and np.allclose(small.p_values(others), exact)


def test_the_least_sure_share_gets_no_answer():
    found = calibrated()
    confidence = np.sort(drawn(200)[0].softmax(-1).numpy().max(1))
    threshold, accuracy = found.answering_threshold(0.1)
    assert threshold == pytest.approx(confidence[20], abs=1e-6) and (confidence < threshold).sum() == 20
    assert accuracy == found.accuracy[20] > found.answering_threshold(0)[1]
    trust = Trust(found, abstain=0.1)
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0]])
    assert [row["answer"] for row in trust.cells(logits, logits.softmax(-1), list("abcde"))] == ["a", None]
    with pytest.raises(UserError, match="0 to below 1"):
        found.answering_threshold(1)


def test_energy_is_low_for_what_the_logits_speak_for_and_several_labels_have_one():
    found = calibrated()
    logits = torch.tensor([[30.0, 0, 0, 0, 0], [0.01, 0, 0, 0, 0]])
    energy, p = found.unfamiliar(logits)
    assert energy == pytest.approx([-np.log(np.exp(30) + 4), -np.log(np.exp(0.01) + 4)])
    known = np.array(found.familiarity.values)
    assert p == pytest.approx([1.0, (1 + (known <= -energy[1]).sum()) / 201]) and p[1] < 0.2
    assert familiarity(logits.double(), "multi_label")[1] == pytest.approx(np.log1p(np.exp(0.01)) + 4 * np.log(2))
    several = Calibration("multi_label", "val", 1, 1.0, None, {}, ONE)
    for asked in (several.set_threshold, several.answering_threshold):
        with pytest.raises(UserError, match="one label an image"):
            asked(0.5)


def test_the_file_is_read_as_it_was_written_and_its_absence_is_named(tmp_path, monkeypatch):
    found = calibrated(30, 1.5)
    found.write(tmp_path / module.FILE)
    (tmp_path / "config.json").write_text("{}")
    assert Calibration.read(tmp_path / module.FILE) == found == calibration_of(str(tmp_path))
    (tmp_path / module.FILE).write_text('{"task": "single_label"')
    with pytest.raises(UserError, match="can't be read"):
        calibration_of(str(tmp_path))
    (tmp_path / module.FILE).unlink()
    with pytest.raises(UserError, match="has no calibration.json.*leave out coverage, abstain and ood"):
        calibration_of(str(tmp_path))
    with pytest.raises(UserError, match="is a file of weights"):
        calibration_of(str(tmp_path / "config.json"))

"""What a probe is made of, against scikit-learn and against big_vision's few-shot evaluation written out."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mixer_finetune.engine.parser import configure
from mixer_finetune.engine.probe import ProbeOptions, Row, _as_good, _best, probe
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.probe_figure import probe_figure
from mixer_finetune.training.few_shot import chosen_images, few_shot_accuracies
from mixer_finetune.training.logistic import logistic_path
from mixer_finetune.training.neighbours import neighbours_answers
from mixer_finetune.training.probe import fit_probe
from mixer_finetune.training.ridge import PATH, Ridge


def blobs(n, channels, classes, seed=0, spread=1.5):
    """Features with a large offset and unequal scales, as pre-logits have them, and labels of unequal frequency."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes) // 2])
    centres = np.random.default_rng(99).normal(size=(classes, channels))
    x = centres[labels] + spread * rng.normal(size=(n, channels))
    return 3 + x * np.linspace(0.1, 4, channels), labels


@pytest.mark.parametrize(("n", "channels"), [(120, 17), (30, 80)])  # by the scatter matrix, and by the Gram matrix
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_ridge_is_scikit_learns(n, channels, penalty):
    x, labels = blobs(n, channels, 4)
    others, _ = blobs(50, channels, 4, seed=1)
    y = 2.0 * np.eye(4)[labels] - 1
    theirs = SklearnRidge(alpha=penalty, solver="svd").fit(x, y)
    ours = Ridge.fit(torch.from_numpy(x), torch.from_numpy(labels), 4)
    weight, bias = ours.solution(penalty)
    assert np.abs(weight.numpy() - theirs.coef_).max() < 1e-6 and np.abs(bias.numpy() - theirs.intercept_).max() < 1e-6
    ((rows, (answers,)),) = ours.answers(torch.from_numpy(others), [penalty])
    assert rows == slice(0, 50) and np.abs(answers.numpy() - theirs.predict(others)).max() < 1e-6
    without = SklearnRidge(alpha=penalty, solver="svd", fit_intercept=False).fit(x, y)
    weight, bias = Ridge.fit(torch.from_numpy(x), torch.from_numpy(labels), 4, intercept=False).solution(penalty)
    assert np.abs(weight.numpy() - without.coef_).max() < 1e-6 and not bias.any()


def test_ridge_in_pieces_of_rows_is_the_same(monkeypatch):
    x, labels = map(torch.from_numpy, blobs(120, 17, 4))
    whole = Ridge.fit(x, labels, 4)
    expected = whole.accuracies(x[:50], labels[:50], [1.0, 100.0])
    monkeypatch.setattr("mixer_finetune.training.ridge._ROWS", 7)
    pieces = Ridge.fit(x, labels, 4)
    assert torch.allclose(pieces.solution(1.0)[0], whole.solution(1.0)[0], atol=1e-12)
    assert pieces.accuracies(x[:50], labels[:50], [1.0, 100.0]) == expected


@pytest.mark.parametrize("channels", [5, 60])
@pytest.mark.parametrize("intercept", [True, False])
def test_answers_left_out_are_those_of_regressions_without_the_image(channels, intercept):
    x, labels = map(torch.from_numpy, blobs(25, channels, 3))
    answers = Ridge.fit(x, labels, 3, intercept).left_out(2.0)
    for i in (0, 7, 24):
        others = torch.arange(25) != i
        weight, bias = Ridge.fit(x[others], labels[others], 3, intercept).solution(2.0)
        assert torch.allclose(answers[i], weight @ x[i] + bias, atol=1e-9)


def test_the_probe_of_a_head_is_the_same_regression():
    x, labels = map(torch.from_numpy, blobs(60, 8, 3))
    found = fit_probe(x, labels, 3)
    weight, bias = Ridge.fit(x, labels, 3).solution(found.penalty)
    assert torch.equal(found.weight, weight) and torch.equal(found.bias, bias)


def test_logistic_regression_is_scikit_learns():
    x, labels = blobs(200, 12, 4)
    others, _ = blobs(80, 12, 4, seed=1)
    scaler = StandardScaler().fit(x)
    for fitted in logistic_path(torch.from_numpy(x), torch.from_numpy(labels), 4, (1e-1, 1e-3), iterations=1000):
        theirs = LogisticRegression(C=1 / (200 * fitted.l2), tol=1e-10, max_iter=10_000)
        theirs.fit(scaler.transform(x), labels)
        assert np.abs(fitted.weight.numpy() - theirs.coef_).max() < 1e-4
        assert (fitted.predict(torch.from_numpy(others)).numpy() == theirs.predict(scaler.transform(others))).all()


def test_a_channel_that_never_changes_does_not_matter():
    x, labels = map(torch.from_numpy, blobs(60, 5, 3))
    (fitted,) = logistic_path(torch.cat([x, torch.ones(60, 1)], 1).float(), labels, 3, (1e-2,))
    assert torch.isfinite(fitted.weight).all() and not fitted.weight[:, 5].any()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_nearest_neighbours_are_scikit_learns(k, monkeypatch):
    monkeypatch.setattr("mixer_finetune.training.neighbours._ROWS", 33)
    (x, labels), (others, _) = blobs(150, 6, 5), blobs(100, 6, 5, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(x, labels).predict(others)
    ours = neighbours_answers(torch.from_numpy(x), torch.from_numpy(labels), 5, torch.from_numpy(others))
    assert (ours[k].numpy() == theirs).all()


def test_fewer_images_than_neighbours():
    x = torch.eye(3)
    assert neighbours_answers(x, torch.tensor([0, 1, 1]), 2, x, (5,))[3].tolist() == [1, 1, 1]


def big_vision(x, labels, classes, others, answers, shots, seed):
    """Its `compute_fewshot_metrics` for one number of shots, with the normal equations solved outright."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.where(labels == each)[0]) for each in range(classes)]
    at = np.concatenate([images[:shots] for images in chosen])
    mean, std = x[at].mean(0, keepdims=True), x[at].std(0, keepdims=True) + 1e-5

    def prepared(features):
        return np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)

    a, y = prepared(x[at]), 2.0 * np.eye(classes)[labels[at]] - 1
    weight = np.linalg.solve(a.T @ a + 2.0**10 * np.eye(a.shape[1]), a.T @ y)
    return float((np.argmax(prepared(others) @ weight, 1) == answers).mean())


@pytest.mark.parametrize("channels", [9, 40])
def test_few_shot_accuracy_is_big_visions(channels):
    (x, labels), (others, answers) = blobs(300, channels, 5), blobs(200, channels, 5, seed=1)
    ours = few_shot_accuracies(torch.from_numpy(x), labels, 5, torch.from_numpy(others), answers, (1, 5, 25), 3)
    expected = {k: [big_vision(x, labels, 5, others, answers, k, seed) for seed in range(3)] for k in (1, 5, 25)}
    assert ours == {k: pytest.approx(values, abs=1e-12) for k, values in expected.items()}
    assert len(set(ours[5])) > 1  # seeds differ


def test_the_images_of_a_seed_are_those_of_numpys_generator():
    labels = np.array([1, 0, 1, 1, 0, 2])
    rng = np.random.default_rng(3)
    expected = [rng.permutation(np.where(labels == each)[0]).tolist() for each in range(3)]
    assert [images.tolist() for images in chosen_images(labels, 3, 3)] == expected


# The whole


def test_a_probe_chooses_on_dev_and_tests_once(tmp_path, monkeypatch):
    seen = []

    def watched(extractor, data, role, **options):
        from mixer_finetune.training.features import split_features

        seen.append(role)
        return split_features(extractor, data, role, **options)

    monkeypatch.setattr("mixer_finetune.training.features._folder", lambda: tmp_path / "features")
    monkeypatch.setattr("mixer_finetune.engine.probe.split_features", watched)
    arguments = ["--data.source", "digits", "--data.num_workers", "0", "--data.images_per_class", "30"]
    options = ProbeOptions(["mixer_nano", "mixer_nano_32"], [32], all_blocks=True, shots=[2, 5], seeds=2)
    found = probe(configure(arguments), options, tmp_path / "out")
    assert seen == ["train", "val"] * 2 + ["train", "test"]
    assert [row["layer"] for row in found["rows"]] == [*(f"block {i}" for i in range(1, 9)), "pre-logits"] * 2
    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert written["best"] == found["best"] and len(written["data"]["splits"]["train"]["hash"]) == 64
    trained, fresh = found["rows"][8], found["rows"][17]
    assert trained["dev"]["ridge"] > fresh["dev"]["ridge"] and set(trained["dev"]) == {"ridge", "logistic", "knn"}
    assert {k: len(values) for k, values in trained["few_shot"].items()} == {2: 2, 5: 2}
    best = found["best"]
    accuracies = [(row["dev"][method], i) for i, row in enumerate(found["rows"]) for method in row["dev"]]
    assert best["dev_accuracy"] == max(accuracies)[0]
    assert found["test"]["images"] == 359 and found["test"]["accuracy"] > 0.85
    low, high = found["test"]["interval"]
    assert low < found["test"]["accuracy"] < high
    with pytest.raises(UserError, match="holds another probe already; use output another folder"):
        probe(configure(arguments), options, tmp_path / "out")


def test_sizes_that_a_method_cannot_give_are_left_out_and_named(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("mixer_finetune.training.features._folder", lambda: tmp_path / "features")
    cli = configure(["--data.source", str(photos), "--data.num_workers", "0", "--data.val_fraction", "0.25"])
    options = ProbeOptions(["mixer_nano"], [32, 48], ["interpolate", "block_diagonal"], shots=())
    found = probe(cli, options, tmp_path / "out")
    assert [(row["image_size"], row["resize"]) for row in found["rows"]] == [
        ((32, 32), None),
        ((48, 48), "interpolate"),
    ]
    assert len(found["left_out"]) == 1 and "mixer_nano at 48 px by block_diagonal" in found["left_out"][0]
    assert found["test"] is None  # the photos have no test split
    with pytest.raises(UserError, match="no backbone 'mixer_nan'"):
        probe(cli, ProbeOptions(["mixer_nano", "mixer_nan"], shots=()), tmp_path / "other")


def test_data_without_a_dev_split_is_refused(photos, tmp_path):
    cli = configure(["--data.source", str(photos), "--data.val_fraction", "0"])
    with pytest.raises(UserError, match="a probe is chosen on the dev split, and the data has none; name one with"):
        probe(cli, ProbeOptions(["mixer_nano"]), tmp_path / "out")


def row(layer="pre-logits", size=32, **dev):
    return Row("one", (size, size), None, layer, dev, few_shot={1: [0.5, 0.6], 5: [0.7, 0.7]})


def test_of_equally_good_ones_the_pre_logits_of_the_fewest_pixels_are_best():
    rows = [row("block 1", ridge=0.9), row(size=64, ridge=0.9), row(ridge=0.9), row(ridge=0.8, knn=0.89)]
    assert _best(rows) == (rows[2], "ridge")
    assert _best([*rows, row("block 1", size=96, knn=0.91)])[1] == "knn"
    assert _as_good(rows, 0.9, 400) == 3 and _as_good(rows, 0.9, 4) == 4


def test_the_picture_has_a_curve_for_each_backbone_and_size():
    figure = probe_figure([row("block 1", ridge=0.7), row(ridge=0.9), row(size=64, ridge=0.8)], "data")
    depth, shots = figure.axes
    assert [line.get_label() for line in depth.get_lines()] == ["one at 32 px", "one at 64 px"]
    assert [line.get_ydata().tolist() for line in depth.get_lines()] == [[0.7, 0.9], [0.8]]
    assert shots.get_xlabel() == "images a class"
    (single,) = probe_figure([Row("one", (32, 32), None, "pre-logits", {"ridge": 0.7, "knn": 0.6})], "data").axes
    assert [label.get_text() for label in single.get_xticklabels()] == [
        "ridge", "logistic regression", "nearest neighbours",
    ]  # fmt: skip


def test_the_path_of_penalties_is_wide():
    assert PATH[0] == pytest.approx(1e-6) and PATH[-1] == pytest.approx(100)

"""Runs brought to one order of images and classes, compared, and shown."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from making_runs import config_of, make_run
from mixer_finetune import UserError, load_backbone, save_model_folder
from mixer_finetune.evaluation.comparison import compare_runs, option_text, p_text, verdict
from mixer_finetune.evaluation.comparison_files import write_comparison
from mixer_finetune.evaluation.label_measures import label_intervals
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.paired import mcnemar
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.previous import against_previous
from mixer_finetune.evaluation.results import Results

NAMES = ["cat", "dog", "<b>hen</b>"]


def answers(right, labels, names=NAMES, sure=0.7, files=None):
    """Predictions that are right where that is asked for, else the next class."""
    labels, right = np.array(labels), np.array(right, bool)
    first = np.where(right, labels, (labels + 1) % len(names))
    top = np.stack([first, (first + 1) % len(names)], 1)
    probabilities = np.stack([np.broadcast_to(sure, len(labels)), np.full(len(labels), 0.1)], 1)
    files = files or [f"test[{i}]" for i in range(len(labels))]
    return Predictions(names, files, np.arange(len(labels)), labels, top, probabilities)


LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
ONE = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
TWO = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]


@pytest.fixture
def pair(tmp_path):
    """Two runs: the second is right on four images more, the first on none."""
    found = [answers(ONE, LABELS, sure=np.linspace(0.9, 0.5, 10)), answers(TWO, LABELS)]
    folders = [tmp_path / "runs" / "made" / f"2026-01-0{day}_10-00-00" for day in (1, 2)]
    configs = [config_of(lr=lr) for lr in (0.1, 0.2)]
    return [
        make_run(folder, each, {"accuracy": float(each.right.mean())}, config=config)
        for folder, each, config in zip(folders, found, configs, strict=True)
    ]


def test_a_pair_is_counted_image_by_image(pair):
    found = compare_runs(pair)
    assert found.notes == [] and found.files == [f"test[{i}]" for i in range(10)]
    (each,) = found.pairs
    assert (each.only_first, each.only_second, each.both_wrong) == (0, 4, 1) and each.difference == pytest.approx(0.4)
    assert each.p == each.corrected == mcnemar(0, 4) == 0.125
    for run in found.runs:
        assert run.metrics["accuracy"] == run.results.metrics["accuracy"]
        intervals, error = run.measured
        assert {name: pytest.approx(value, abs=1e-5) for name, value in run.results.intervals.items()
                if name in intervals} == intervals  # fmt: skip
        assert error == pytest.approx(run.results.calibration_error, abs=1e-5)
    assert [(row.name, row.images, row.right) for row in found.classes] == [
        ("dog", 4, (2, 4)), ("<b>hen</b>", 2, (0, 1)), ("cat", 4, (3, 4)),
    ]  # fmt: skip
    assert found.classes[0].p == 1.0  # 0.5, corrected for three classes
    assert found.differing.tolist() == [3, 6, 7, 8]  # the surest wrong answer first
    assert dict(found.options) == {"model.lr": [0.1, 0.2]}
    assert verdict(each, 10, "A", "B") == (
        "Nothing beyond chance tells A and B apart: only B is right on 4, only A on 0 of 10 images (+40.00 points, 95% "
        "interval +10.00 to +70.00; exact McNemar test, p = 0.12)."
    )
    better = dataclasses.replace(each, p=1e-9, corrected=1e-9, difference=-0.4)
    assert verdict(better, 10, "A", "B").startswith("A is better than B, beyond chance: ")
    assert "p < 0.001, < 0.001 after Holm's correction for 2 tests" in verdict(better, 10, "A", "B", tests=2)


def test_three_runs_are_tested_against_the_first_with_holms_correction(pair, tmp_path):
    third = make_run(tmp_path / "third", answers(TWO, LABELS), {"accuracy": 0.9})
    found = compare_runs([*pair, third])
    assert [(each.first, each.second) for each in found.pairs] == [("A", "B"), ("A", "C")]
    assert [each.corrected for each in found.pairs] == [0.25, 0.25]
    assert found.classes[0].p is None and found.classes[0].right == (2, 4, 4)


def test_classes_in_another_order_are_matched_by_name(pair, tmp_path):
    expected = compare_runs(pair)
    order = [2, 0, 1]  # of the other list, by number of this one
    names = [NAMES[order.index(i)] for i in range(3)]
    number = np.array([names.index(name) for name in NAMES])
    plain = answers(TWO, LABELS)
    other = dataclasses.replace(plain, names=names, labels=number[plain.labels], top=number[plain.top])
    found = compare_runs([pair[0], make_run(tmp_path / "other", other, {"accuracy": 0.9})])
    assert "classes are in another order and matched by name" in found.notes[0]
    assert found.pairs == expected.pairs and found.classes == expected.classes
    assert np.array_equal(found.runs[1].found.top, plain.top)


def test_a_part_of_the_images_is_matched_by_name_and_said(pair, tmp_path):
    whole = answers(TWO, LABELS)
    rows = [9, 3, 5]
    values = {name: getattr(whole, name)[rows] for name in ("indices", "labels", "top", "probabilities")}
    part = dataclasses.replace(whole, files=[whole.files[row] for row in rows], **values)
    found = compare_runs([pair[0], make_run(tmp_path / "part", part, {"accuracy": 2 / 3}, split_samples=10)])
    assert found.notes == ["compared on the 3 images that all have, matched by name (A has 10, B has 3)"]
    assert found.files == ["test[3]", "test[5]", "test[9]"] and found.runs[0].metrics["accuracy"] == 1 / 3
    assert (found.pairs[0].only_first, found.pairs[0].only_second) == (0, 1)


def test_files_are_known_by_their_names_below_the_data_wherever_it_lies(tmp_path):
    runs = []
    for place, right in (("/here/photos", ONE), ("/there/photos", TWO)):
        files = [f"{place}/test/{i}.png" for i in range(10)]
        config = config_of(source=place)
        runs.append(
            make_run(tmp_path / place[1:], answers(right, LABELS, files=files), {"accuracy": 0.5}, config=config)
        )
    found = compare_runs(runs)
    assert found.notes == ["B was measured on split test of /there/photos, A on split test of /here/photos"]
    assert found.files[0] == "test/0.png" and found.pairs[0].only_second == 4
    # Files are called as the data was typed; the configuration keeps the whole path.
    files, data = [f"photos/test/{i}.png" for i in range(10)], {"source": "photos", "revision": None, "license": None}
    typed = make_run(
        tmp_path / "typed",
        answers(TWO, LABELS, files=files),
        {"accuracy": 0.5},
        config=config_of(source="/here/photos"),
        data=data,
    )
    assert compare_runs([runs[0], typed]).pairs[0].only_second == 4


def test_what_cannot_be_compared_is_refused_in_a_line(pair, tmp_path):
    def refused(found, metrics=("accuracy",), **changes):
        measured = dict.fromkeys(metrics, 0.5)
        run = make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", found, measured, **changes)
        with pytest.raises(UserError) as error:
            compare_runs([pair[0], run])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "answers with one label an image and " in refused(several(TWO, seed=0), ["map"], task="multi_label")
    other = answers(TWO, LABELS, names=["cat", "dog", "cow"])
    assert "has 1 class (cow) that " in refused(other)
    assert "they are not of the same data" in refused(answers(TWO, LABELS[::-1]))
    files = [f"validation[{i}]" for i in range(10)]
    assert "have no image in common: the one was measured on split test of digits, the other on split validation" in (
        refused(answers(TWO, LABELS, files=files), split="validation")
    )
    elsewhere = config_of(source="someone/else")
    assert "the other on split test of someone/else" in refused(answers(TWO, LABELS), config=elsewhere)
    assert "more than once" in refused(answers(TWO, LABELS, files=["a.png"] * 10))
    edited = make_run(tmp_path / "edited", answers(TWO, LABELS), {"accuracy": 0.9})
    results = json.loads(edited.results_file.read_text())
    edited.results_file.write_text(json.dumps({**results, "files": {"predictions.csv": "0" * 64}}))
    with pytest.raises(UserError, match=r"predictions\.csv is not as its run wrote it"):
        compare_runs([pair[0], edited])
    assert "was not evaluated on any split" in refused(answers(TWO, LABELS), metrics=())
    with pytest.raises(UserError, match="a run is named twice"):
        compare_runs([pair[0], pair[0].path / "."])
    with pytest.raises(UserError, match="takes 2 to 26 runs, got 1"):
        compare_runs(pair[:1])


def test_an_image_whose_label_was_mended_is_left_out(tmp_path):
    files = [f"{i}.png" for i in range(10)]
    mended = [2, *LABELS[1:]]
    runs = [
        make_run(tmp_path / name, answers(right, labels, files=files), {"accuracy": 0.5})
        for name, right, labels in (("a", ONE, LABELS), ("b", TWO, mended))
    ]
    found = compare_runs(runs)
    assert found.notes == ["left out: 1 image whose label is not the same in all runs"] and len(found.files) == 9


def test_runs_that_differ_by_seed_are_taken_together(tmp_path):
    values = (0.6, 0.9, 0.8)
    runs = []
    for seed, value in enumerate(values):
        found = answers([i < 10 * value for i in range(10)], LABELS)
        runs.append(make_run(tmp_path / str(seed), found, {"accuracy": value}, config=config_of(seed=seed)))
    (group,) = compare_runs(runs).seeds
    assert group.mean == pytest.approx(np.mean(values)) and group.spread == pytest.approx(np.std(values, ddof=1))
    assert dict(compare_runs(runs).options) == {"seed_everything": [0, 1, 2]}


def several(right, seed):
    """Answers of several labels; where an image is not right, one label is the other way round."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(7).random((len(right), 3)) < 0.5
    probabilities = np.where(labels, rng.uniform(0.6, 0.9, labels.shape), rng.uniform(0.1, 0.4, labels.shape))
    for row, good in enumerate(right):
        if not good:
            probabilities[row, row % 3] = 1 - probabilities[row, row % 3]
    return LabelSets(
        NAMES, [f"test[{i}]" for i in range(len(right))], np.arange(len(right)), labels, probabilities.round(6)
    )


def test_several_labels_are_compared_by_whether_all_are_right(tmp_path):
    sets = [several(ONE, 0), several(TWO, 1)]
    runs = [make_run(tmp_path / str(i), each, {"map": 0.5}, task="multi_label") for i, each in enumerate(sets)]
    found = compare_runs(runs)
    (each,) = found.pairs
    assert (each.only_first, each.only_second, each.both_wrong, each.f1) == (0, 4, 1, None)
    for run, answered in zip(found.runs, sets, strict=True):
        for name, (low, high) in label_intervals(answered).items():
            assert run.measured[0][name] == (low, high) and low - 0.05 <= run.metrics[name] <= high + 0.05, name
    labels = sets[0].labels
    for row in found.classes:
        i = NAMES.index(row.name)
        there = labels[:, i]
        assert row.images == there.sum() and row.right[0] == sets[0].answers[there, i].sum()
    write_comparison(found, tmp_path / "out", lambda line: None)
    with open(tmp_path / "out" / "differences.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and json.loads(rows[0]["label"]) == json.loads(rows[0]["answer_B"])


def test_what_is_written_shows_the_images_and_escapes_names(pair, tmp_path):
    for run in pair:
        backbone = load_backbone("mixer_nano", num_classes=3)
        save_model_folder(run.model, backbone, NAMES)
    said = []
    write_comparison(compare_runs(pair), tmp_path / "out", said.append)
    text = (tmp_path / "out" / "compare.html").read_text()
    assert not said and "<b>hen</b>" not in text and "&lt;b&gt;hen&lt;/b&gt;" in text
    assert text.count("<img") == 4 and "Images that only B answered rightly: 4" in text
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"#]+)"', text))
    assert "made, 2026-01-01 10:00:00" in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["pairs"][0]["only_second"] == 4 and content["runs"][1]["metrics"]["accuracy"] == 0.9
    lines = (tmp_path / "out" / "differences.csv").read_text().splitlines()
    assert lines[:2] == [
        "file,label,answer_A,probability_A,answer_B,probability_B", "test[3],cat,dog,0.766667,cat,0.700000",
    ]  # fmt: skip


def test_without_the_data_a_comparison_says_so(pair, tmp_path):
    for run in pair:
        run.config_file.write_text(run.config_file.read_text().replace("source: digits", "source: /gone"))
    said = []
    write_comparison(compare_runs(pair), tmp_path / "out", said.append)
    assert (
        said[0].startswith("the images can't be shown: ")
        and "can't be shown" in (tmp_path / "out" / "compare.html").read_text()
    )


def test_a_run_is_compared_with_the_newest_earlier_one_on_the_same_images(pair):
    first, second = pair
    assert against_previous(first, Results.read(first)) is None
    found = against_previous(second, Results.read(second))
    assert found is not None and found.runs[0].run.path.resolve() == first.path.resolve()
    assert found.pairs[0].only_second == 4 and found.runs[1].letter == "this run"
    make_run(second.path.parent / "2026-01-01_12-00-00", answers(TWO[:9], LABELS[:9]), {"accuracy": 1.0})
    (second.path.parent / "2026-01-01_13-00-00").mkdir()
    found = against_previous(second, Results.read(second))
    assert found is not None and found.runs[0].run.path.name == first.path.name


def test_values_are_told_in_words():
    assert (
        option_text([{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {}}]) == "EarlyStopping"
    )
    assert (option_text([0.5, 1.0]), option_text(None), option_text([])) == ("0.5, 1.0", "None", "none")
    assert (p_text(0.0123), p_text(0.0009)) == ("0.012", "< 0.001")

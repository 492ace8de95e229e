"""predictions.csv: the same bytes as ever, and names that come back as they were."""

import csv

import numpy as np
import pytest

from mixer_finetune import UserError
from mixer_finetune.evaluation.predictions import Predictions

NASTY = ["a\rb", "c\nd", "e\r\nf", 'g "h", i', "j,k", "", "ÿ 猫 ", "$x$", "-"]


def table(labels, top, probabilities, indices):
    columns = [np.array(indices)[:, None], np.array(labels)[:, None], np.array(top), np.array(probabilities)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def test_the_file_lists_the_images_in_the_order_of_the_split_with_six_decimals():
    rows = table([1, 0], [[0, 1], [0, 1]], [[0.75, 0.25], [2 / 3, 1 / 3]], [3, 1])
    found = Predictions.from_table(rows, lambda index: f"test[{index}]", ["zero", "one"])
    assert found.csv() == (
        "index,file,label,label_1,probability_1,label_2,probability_2\n"
        "1,test[1],zero,zero,0.666667,one,0.333333\n"
        "3,test[3],one,zero,0.750000,one,0.250000\n"
    )
    assert found.right.tolist() == [True, False] and found.within_top.all()


def test_what_is_computed_from_the_table_and_from_the_file_are_the_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = -np.sort(-rng.random((2000, 3)).astype(np.float32), axis=1)
    probabilities[:128, 0] = np.arange(1, 257, 2) / 256  # halfway between two numbers of six decimals
    top = np.argsort(rng.random((2000, 5)), axis=1)[:, :3]
    rows = table(rng.integers(0, 5, 2000), top, probabilities, rng.permutation(2000))
    made = Predictions.from_table(rows, str, list("abcde"))
    made.write(tmp_path / "predictions.csv")
    read = Predictions.read(tmp_path / "predictions.csv", list("abcde"))
    assert read.files == made.files == [str(i) for i in range(2000)]
    for name in ("indices", "labels", "top", "probabilities"):
        assert np.array_equal(getattr(read, name), getattr(made, name)), name
    order = np.argsort(rows[:, 0])
    expected = [f"{float(p):.6f}" for p in rows[order, 5]]
    assert [line.split(",")[4] for line in made.csv().splitlines()[1:]] == expected


def test_names_with_line_breaks_quotes_and_commas_survive_the_file(tmp_path):
    k, n = 2, len(NASTY)
    top = np.stack([np.arange(n), (np.arange(n) + 1) % n], 1)
    files = [f"{name}.png" for name in NASTY[:-1]] + [b"m\xfcller.png".decode("utf-8", "surrogateescape")]
    probabilities = np.tile([0.7, 0.2], (n, 1))
    made = Predictions(NASTY, files, np.arange(n), np.arange(n)[::-1].copy(), top, probabilities)
    path = tmp_path / "predictions.csv"
    made.write(path)
    read = Predictions.read(path, NASTY)
    assert read.files == files and read.top.shape == (n, k)
    assert np.array_equal(read.labels, made.labels) and np.array_equal(read.top, top)
    with open(path, newline="", errors="surrogateescape") as file:  # other programs read it, too
        assert [row["label_1"] for row in csv.DictReader(file)] == NASTY


def test_mistakes_come_with_the_most_confident_first():
    top = np.array([[0], [1], [1], [0], [1]])
    probabilities = np.array([[0.9], [0.6], [0.8], [0.99], [0.6]])
    found = Predictions(["a", "b"], list("vwxyz"), np.arange(5), np.zeros(5, int), top, probabilities)
    assert found.mistakes().tolist() == [2, 1, 4]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("index,file,label,label_1,probability_1\n0,x,c,a,0.5\n", "no class of it"),
        ("index,file,label,label_1,probability_1\n0,x,a,a\n", r"not the predictions\.csv of a run: a row of 4 cells"),
        ("index,file,label,label_1,probability_1\n0,x,a,a,most\n", r"not the predictions\.csv of a run"),
        ("file,label\nx,a\n", "unexpected columns file, label"),
        ("", r"unexpected columns \(none\)"),
    ],
)
def test_another_file_is_refused(tmp_path, content, says):
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        Predictions.read(tmp_path / "predictions.csv", ["a", "b"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv can't be read"):
        Predictions.read(tmp_path / "none.csv", ["a"])

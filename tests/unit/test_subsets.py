"""Dev splits, folds, fractions and few-shot, and what is said of the data before training."""

import numpy as np
import pytest
from test_folders import each, make

from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.data.checks import findings
from mixer_finetune.data.sources import open_source
from mixer_finetune.data.subsets import Subsets, fold_of_each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30, 20 and 10 images."""
    paths = each("a", count=30) + each("b", count=20) + each("c", count=10)
    return make(tmp_path_factory.mktemp("subsets"), *paths)


def names(split):
    return {split.image_name(i) for i in range(len(split))}


def test_each_image_is_in_exactly_one_dev_fold_and_each_class_is_spread_evenly(folder):
    held = []
    for fold in range(5):
        data = ImageDataModule(folder, folds=5, fold=fold, seed=3)
        assert np.bincount(data.splits["val"].labels).tolist() == [6, 4, 2]
        assert not names(data.splits["val"]) & names(data.splits["train"]) and len(data.splits["train"]) == 48
        assert f"12 of 60 are the dev split (fold {fold} of 5)" in data.description
        held.append(names(data.splits["val"]))
    assert len(set.union(*held)) == 60 == sum(map(len, held))
    assert held[0] != names(ImageDataModule(folder, folds=5, fold=0, seed=4).splits["val"])


def test_folds_differ_by_one_image_at_most():
    labels = np.repeat([0, 1, 2], [7, 1, 6])
    folds = fold_of_each(labels, 3, 0)
    assert np.ptp(np.bincount(folds)) <= 1
    for label in range(3):
        assert np.ptp(np.bincount(folds[labels == label], minlength=3)) <= 1


def test_few_shot_is_stratified_and_more_images_hold_fewer(folder):
    five, nine = (ImageDataModule(folder, images_per_class=n, val_fraction=0.1, seed=1) for n in (5, 9))
    assert np.bincount(five.splits["train"].labels).tolist() == [5, 5, 5]
    assert names(five.splits["train"]) < names(nine.splits["train"])
    assert names(five.splits["val"]) == names(nine.splits["val"])  # the dev split does not depend on it
    assert "trained on 15 of 54, 5 a class" in five.description
    many = ImageDataModule(folder, images_per_class=15, val_fraction=0)
    assert "15 a class (1 classes have fewer)" in many.description


def test_a_fraction_of_each_class(folder):
    data = ImageDataModule(folder, train_fraction=0.5, val_fraction=0)
    assert np.bincount(data.splits["train"].labels).tolist() == [15, 10, 5]
    assert "trained on 30 of 60" in data.description


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folds": 1}, "folds must be 2 or more, got 1"),
        ({"folds": 5, "fold": 5}, "there is no fold 5; fold must be 0 to 4"),
        ({"fold": 1}, "there is no fold 1; fold must be given with folds"),
        ({"images_per_class": 0}, "images_per_class must be 1 or more"),
        ({"train_fraction": 0.0}, "train_fraction must be above 0"),
        ({"train_fraction": 0.5, "images_per_class": 2}, "both say what is trained on"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1"),
    ],
)
def test_what_can_not_be_done_is_one_line(options, says):
    with pytest.raises(UserError, match=says):
        Subsets(**options).check()


def test_folds_are_not_cut_where_there_is_a_dev_split(tmp_path):
    make(tmp_path, *each("train/a", "train/b", "val/a"))
    with pytest.raises(UserError, match="folds are cut from train, but the data has a dev split, val; leave out folds"):
        ImageDataModule(tmp_path, folds=2)


def test_the_dev_split_of_a_small_folder_is_said_as_it_is(tmp_path):
    data = ImageDataModule(make(tmp_path, *each(*"abcdefgh", count=3)), val_fraction=0.02)
    assert "8 of 24 are held out, at least one a class, where 2% was asked for" in data.description


def look(source):
    opened = open_source(source)
    return findings(opened.splits, opened.label_names)


def test_good_data_has_no_findings(folder):
    assert look(folder) == []


def test_small_and_uneven_classes_are_named(tmp_path):
    lines = look(make(tmp_path, *each("rare", count=2), *each("common", count=40)))
    assert lines[0] == "1 of 2 classes have fewer than 5 training images: rare (2)"
    assert lines[1].startswith("the classes are uneven: common has 40 images, rare has 2; --data.sampling balanced")


def test_copies_across_splits_and_with_two_labels_are_counted(tmp_path):
    make(tmp_path, *each("train/a", "train/b", "val/a", "test/a", "test/b", count=6))
    same = (tmp_path / "train/a/0.png").read_bytes()
    for path in ("train/b/9.png", "test/a/9.png", "test/b/8.png", "test/b/9.png"):
        (tmp_path / path).write_bytes(same)  # in train with both labels, so that no test label is another one
    other = (tmp_path / "train/a/1.png").read_bytes()
    (tmp_path / "test/b/7.png").write_bytes(other)
    (tmp_path / "val/a/7.png").write_bytes(other)
    assert look(tmp_path) == [
        "4 of 16 images of test are also in train, 1 of them with another label",
        "1 of 7 images of val are also in train",
        "1 images stand in train with two labels or more",
    ]


def test_images_much_longer_than_wide_are_said_where_they_would_be_cut(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (90, 30), (i, 0, len(name))).save(tmp_path / name / f"{i}{name}.png")
            Image.new("RGB", (90, 30), (i, 9, ord(name))).save(tmp_path / name / f"{i}.png")
    lines = look(tmp_path)
    assert any(line.startswith("24 of 24 images looked at are more than twice as long as wide") for line in lines)
    opened = open_source(tmp_path)
    assert not any("as long as wide" in line for line in findings(opened.splits, opened.label_names, crops=False))

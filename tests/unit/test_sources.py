"""Columns, splits and labels of real parquet files and folders of images."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_photos
from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.data.sources import open_source


def table(n=4, images=("image",), labels=None, names=("a", "b")):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    columns = {name: [{"bytes": buffer.getvalue(), "path": None}] * n for name in images}
    features = {name: datasets.Image() for name in images}
    for name, values in (labels or {"label": [0, 1] * (n // 2)}).items():
        columns[name] = values
        is_class = names and isinstance(values[0], int)
        features[name] = datasets.ClassLabel(names=list(names)) if is_class else datasets.Value("string")
        if not names:
            features[name] = datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, data in splits.items():
        data.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return str(folder)


def test_columns_and_splits_are_found_by_type_and_usual_names(tmp_path):
    path = save(
        tmp_path / "d",
        train=table(images=("img",), labels={"fine_label": [0, 1, 0, 1]}),
        test=table(2, ("img",), {"fine_label": [1, 0]}),
    )
    found = open_source(path)
    assert {role: len(split) for role, split in found.splits.items()} == {"train": 4, "test": 2}
    assert found.label_names == ["a", "b"] and "images in 'img', labels in 'fine_label'" in found.description
    assert found.splits["train"].labels.tolist() == [0, 1, 0, 1]


def test_string_and_plain_integer_labels_become_classes(tmp_path):
    path = save(tmp_path / "s", train=table(labels={"label": ["dog", "cat", "dog", "cat"]}))
    found = open_source(path)
    assert found.label_names == ["cat", "dog"] and found.splits["train"].labels.tolist() == [1, 0, 1, 0]
    path = save(tmp_path / "i", train=table(labels={"label": [7, 3, 7, 3]}, names=None))
    found = open_source(path)
    assert found.label_names == ["3", "7"] and found.splits["train"].labels.tolist() == [1, 0, 1, 0]


def test_an_empty_text_is_no_class(tmp_path):
    images = table(labels={"label": ["dog", "", "cat", "dog"]})
    with pytest.raises(UserError, match="1 of 4 labels in 'label' .*missing"):
        open_source(save(tmp_path / "s", train=images))


def test_training_images_as_in_evaluation_are_not_those_of_training(tmp_path):
    make_photos(tmp_path / "p", {"x": 4, "y": 4}, size=(64, 64))
    options = {"val_fraction": 0.0, "batch_size": 8, "crop_area": [0.1, 0.2], "num_workers": 0}

    def first(loader):
        return next(iter(loader)).images

    data, other = (ImageDataModule(str(tmp_path / "p"), **options) for _ in range(2))
    evaluated = first(data.eval_dataloader("train"))
    trained = first(data.train_dataloader())
    assert torch.equal(first(other.train_dataloader()), trained)
    assert torch.equal(first(other.eval_dataloader("train")), evaluated) and not torch.equal(evaluated, trained)


def test_a_single_parquet_file_is_train_and_a_dev_split_is_held_out(tmp_path):
    table(20).to_parquet(tmp_path / "one.parquet")
    data = ImageDataModule(str(tmp_path / "one.parquet"), val_fraction=0.2)
    assert (len(data.splits["train"]), len(data.splits["val"])) == (16, 4)
    assert "4 of 20 are held out" in data.description
    assert np.bincount(data.splits["val"].labels).tolist() == [2, 2]


def test_folders_of_images_give_one_class_a_folder(photos):
    found = open_source(str(photos))
    assert found.label_names == ["blue", "green", "red"] and len(found.splits["train"]) == 48
    assert found.splits["train"].image_name(0).endswith(".png")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"images": ()}, {}, "no image column among label"),
        ({"images": ("left", "right")}, {}, "several image columns: left, right; choose one with image_column"),
        ({"labels": {"size": [0, 1] * 2, "shape": [0, 1] * 2}}, {}, "several label columns: size, shape; choose one"),
        ({"labels": {"caption": ["x"] * 4}}, {}, "no label column among image, caption"),
        ({}, {"label_column": "lable"}, "'lable' is not a label column; candidates: label"),
        ({}, {"image_column": "label"}, "'label' is not an image column; image columns: image; change image_column"),
        ({"labels": {"label": [0, 1, -1, 1]}, "names": None}, {}, "1 of 4 labels in 'label' of split 'train'"),
        ({"labels": {"label": [0, None, 1, 1]}}, {}, "1 of 4 labels in 'label' of split 'train'"),
        ({}, {"splits": {"train": "trian"}}, "there is no split 'trian'; use train_split train"),
    ],
)
def test_what_can_not_be_used_is_one_line_that_names_the_option(tmp_path, columns, options, message):
    path = save(tmp_path / "d", train=table(**columns))
    with pytest.raises(UserError) as error:
        open_source(path, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unlabelled_test_split_is_left_out(tmp_path):
    labels = {"label": [-1, -1]}
    path = save(
        tmp_path / "d",
        train=table(labels={"label": [0, 1, 0, 1]}, names=None),
        test=table(2, labels=labels, names=None),
    )
    assert set(open_source(path).splits) == {"train"}


def test_an_empty_split_and_a_class_without_training_samples_are_named(tmp_path):
    path = save(tmp_path / "empty", train=table(), test=table(2).select([]))
    with pytest.raises(UserError, match="the split 'test' of .* is empty"):
        open_source(path)
    path = save(tmp_path / "absent", train=table(names=("a", "b", "c")))
    with pytest.raises(UserError, match="1 of 3 classes have no training sample: c"):
        ImageDataModule(path, val_fraction=0).require("train")


def test_a_source_that_does_not_exist_or_holds_no_images_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no data 'digit' .did you mean digits"):
        open_source("digit")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "notes"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is no table of images"):
        open_source(str(tmp_path / "notes" / "readme.txt"))


def test_evaluation_does_not_depend_on_whether_images_are_kept_in_memory(tmp_path):
    """The gathered batch and the workers' one are the same pixels, for images of the backbone's size."""
    from mixer_finetune.backbones import Preprocessing
    from mixer_finetune.data.batches import DecodedImages, SmallImages, batch_dataset
    from mixer_finetune.data.preparing import evaluation_images
    from mixer_finetune.data.sampling import MicroBatch

    split = open_source(str(make_photos(tmp_path / "p", {"x": 3, "y": 3}, size=(32, 32)))).splits["train"]
    preprocessing = Preprocessing(image_size=32, crop_pct=0.875)
    small, decoded = batch_dataset(split, preprocessing), DecodedImages(split, preprocessing, None, 0)
    assert isinstance(small, SmallImages)
    micro = MicroBatch(0, np.arange(6), 0, 6, np.arange(6))
    first, second = (evaluation_images(data.__getitems__(micro), preprocessing) for data in (small, decoded))
    assert torch.equal(first, second)

"""Folders of images: what is a class, what a split, and what is left out and said."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.data.folders import images_below, read_image_folder, read_tree
from mixer_finetune.data.sources import open_source


def make(folder, *paths):
    """Files at those paths: small images, each different, or text."""
    for i, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg", ".avif", ".jfif"):
            kind = {".png": "PNG", ".avif": "AVIF"}.get(file.suffix.lower(), "JPEG")
            Image.fromarray(np.full((8, 8, 3), i % 251, np.uint8)).save(file, kind)
        else:
            file.write_text("text")
    return folder


def each(*folders, count=4):
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


def sizes(source):
    return {role: (split.name, len(split)) for role, split in source.splits.items()}


@pytest.mark.parametrize(
    ("paths", "names", "found"),
    [
        (each("red", "blue"), ["blue", "red"], {"train": ("train", 8)}),
        # Splits in any case.
        (each("Training/a", "Training/b", "TESTING/a"), ["a", "b"], {"train": ("Training", 8), "test": ("TESTING", 4)}),
        (each("train/a", "train/b", "val/a", "Eval/b"), ["a", "b"],
         {"train": ("train", 8), "val": ("val", 4), "test": ("Eval", 4)}),
        # A class's name may hold a word like train, or be one.
        (each("train station", "car park", "test track"), ["car park", "test track", "train station"],
         {"train": ("train", 12)}),
        (each("bus", "car", "train"), ["bus", "car", "train"], {"train": ("train", 12)}),
        # A file's name never decides.
        (["a/train_1.png", "a/test_2.png", "b/val.png"], ["a", "b"], {"train": ("train", 3)}),
        # However deep, a file is of the top folder's class.
        (["a/x/1.png", "a/2.png", "b/y/z/3.png"], ["a", "b"], {"train": ("train", 3)}),
        # Brackets, spaces, other scripts, numbers by size.
        (each("[v2] a*", "猫 ?"), ["[v2] a*", "猫 ?"], {"train": ("train", 8)}),
        (each("10", "9", "1"), ["1", "9", "10"], {"train": ("train", 12)}),
        (each("01", "1"), ["01", "1"], {"train": ("train", 8)}),
    ],
)  # fmt: skip
def test_classes_and_splits(tmp_path, paths, names, found):
    source = open_source(make(tmp_path / "photos [v2]", *paths))
    assert source.label_names == names and sizes(source) == found
    assert "left out" not in source.description
    for split in source.splits.values():
        shown = [source.label_names[label] for label in split.labels]
        where = [split.image_name(i) for i in range(len(split))]
        assert all(f"/{name}/" in path for name, path in zip(shown, where, strict=True))


def test_what_is_not_used_is_counted_and_named(tmp_path):
    paths = [*each("a", "b"), "cover.png", "a/0.txt", "a/1.txt", "back.zip", "README", "notes/readme.md"]
    source = open_source(make(tmp_path, *paths))
    assert sizes(source) == {"train": ("train", 8)}
    said = source.description.partition("; left out: ")[2]
    for part in ("1 archives (back.zip)", "2 .txt files (a/0.txt, a/1.txt)", "1 files without a suffix (README)"):
        assert part in said
    assert "1 .md files (notes/readme.md)" in said and "1 images beside the class folders (cover.png)" in said


def test_a_flat_test_folder_and_a_folder_that_is_no_split_are_left_out_and_said(tmp_path):
    paths = each("train/a", "train/b") + each("test", "extra") + each("val/a")
    source = open_source(make(tmp_path, *paths))
    assert sizes(source) == {"train": ("train", 8), "val": ("val", 4)}
    assert "4 images in test/ without a class folder (test/0.png, test/1.png, test/2.png, ...)" in source.description
    assert "4 images in extra/, which is no split's name" in source.description


def test_litter_and_hidden_files_are_passed_over_without_a_word(tmp_path):
    litter = ["a/.DS_Store", "a/._0.png", "__MACOSX/a/0.png", ".ipynb_checkpoints/b/0.png", "b/Thumbs.db", ".git/x.png"]
    source = open_source(make(tmp_path, *each("a", "b"), *litter))
    assert sizes(source) == {"train": ("train", 8)} and "left out" not in source.description
    assert images_below(tmp_path) == ([tmp_path / path for path in sorted(each("a", "b"))], "")


def test_every_suffix_in_any_case_counts_the_same_for_fit_and_predict(tmp_path):
    make(tmp_path, "a/0.JPG", "a/1.Jpg", "a/2.avif", "b/3.jfif", "b/4.PNG")
    source = open_source(tmp_path)
    assert sizes(source) == {"train": ("train", 5)} and len(images_below(tmp_path)[0]) == 5
    data = ImageDataModule(tmp_path, val_fraction=0)
    assert not next(iter(data.train_dataloader())).bad


def test_links_are_followed_once(tmp_path):
    store = make(tmp_path / "store", *each("a", "b"))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a").symlink_to(store / "a")
    (photos / "b").mkdir()
    (photos / "b" / "one.png").symlink_to(store / "b" / "0.png")
    (photos / "b" / "gone.png").symlink_to(store / "b" / "99.png")
    (photos / "b" / "up").symlink_to(photos)
    (photos / "c").symlink_to(store / "a")
    source = open_source(photos)
    assert sizes(source) == {"train": ("train", 5)} and source.label_names == ["a", "b"]
    assert "2 links to folders that are read already (b/up, c)" in source.description
    assert "1 links to files that are not there (b/gone.png)" in source.description


def test_names_that_are_not_utf_8_work_and_can_be_printed(tmp_path):
    folder = os.fsencode(tmp_path / "a")
    make(tmp_path, *each("a", "b"))
    os.rename(folder + b"/0.png", folder + b"/caf\xe9.png")
    source = open_source(tmp_path)
    split = source.splits["train"]
    names = [split.image_name(i) for i in range(len(split))]
    assert str(tmp_path / "a" / "caf") + "\\xe9.png" in names and "".join(names).encode("utf-8")
    assert not next(iter(ImageDataModule(tmp_path, val_fraction=0).train_dataloader())).bad


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (each("photos/a", "photos/b"), "holds one folder, photos, with the folders a, b in it; give source "),
        (each("a"), "has images of one class, a; expected two folders of images or more, one a class"),
        (each("train"), "train has 4 images, but no class folders"),
        (each("train", "test"), "train has 4 images, but no class folders"),
        (
            each("train/a", "train/b", "Train/a"),
            "has several train folders: Train and train; name one with train_split",
        ),
        (each("train/front", "train/rear", "bus"), "is train a split or a class?"),
        (
            each("train/a", "train/b", "test/a", "test/c"),
            "the test split has 1 class (c) that the training split has not",
        ),
        (each("train/cat", "train/dog", "test/Cat "), "(is 'Cat ' its 'cat'?)"),
    ],
)
def test_what_stands_in_the_way_is_named(tmp_path, paths, says):
    with pytest.raises(UserError) as error:
        open_source(make(tmp_path / "x", *paths))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_split_folder_can_be_named(tmp_path):
    make(tmp_path, *each("train/front", "train/rear", "bus/front"))
    source = open_source(tmp_path, splits={"train": "train", "test": "bus", "val": None})
    assert sizes(source) == {"train": ("train", 8), "test": ("bus", 4)}
    with pytest.raises(UserError, match="has no folder 'buss' with class folders in it; use test_split bus or train"):
        open_source(tmp_path, splits={"train": "train", "test": "buss", "val": None})


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_read_is_an_error(tmp_path):
    make(tmp_path, *each("a", "b"))
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(UserError, match="b can't be read"):
            read_tree(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_a_folder_without_images_in_folders_is_none_of_these(tmp_path):
    assert read_image_folder(make(tmp_path, "one.png", "notes/a.txt")) is None


def test_a_thousand_classes_of_links_and_files_take_time_by_their_number(tmp_path):
    """Twice the files take about twice the time: nothing is looked up in a list."""
    for i in range(200):
        (tmp_path / "small" / str(i)).mkdir(parents=True)
        for j in range(5):
            (tmp_path / "small" / str(i) / f"{j}.png").touch()
    for i in range(200):
        (tmp_path / "large" / str(i)).mkdir(parents=True)
        for j in range(50):
            (tmp_path / "large" / str(i) / f"{j}.png").touch()

    def seconds(folder):
        begin = time.perf_counter()
        read_image_folder(folder)
        return time.perf_counter() - begin

    small, large = (min(seconds(tmp_path / name) for _ in range(3)) for name in ("small", "large"))
    assert large < 100 * small  # ten times the files; a busy machine is given ten times the time


def test_a_class_folder_is_no_split_and_an_empty_folder_is_said(tmp_path):
    make(tmp_path, *each("hat", "shoes"))
    (tmp_path / "coat").mkdir()
    assert "left out: 1 empty folders (coat)" in open_source(tmp_path).description
    with pytest.raises(UserError, match="has no folder 'hat' with class folders in it, nor any other that could be"):
        open_source(tmp_path, splits={"test": "hat"})

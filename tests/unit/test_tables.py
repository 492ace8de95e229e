"""Tables of paths and labels, of any make, and classes matched by name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_folders import each, make, sizes

from mixer_finetune import ImageDataModule, MixerClassifier, UserError
from mixer_finetune.data.classes import in_order, match_classes
from mixer_finetune.data.sources import open_source

ROWS = [("a/0.png", "cat"), ("a/1.png", "dog"), ("b/0.png", "cat"), ("b/1.png", "dog")]


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "files", *each("a", "b"))


def write(path, header, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def labels(source, role="train"):
    return [source.label_names[label] for label in source.splits[role].labels]


@pytest.mark.parametrize(
    "header", [("file_name", "label"), ("Image", "Class"), ("path", "species name"), ("x", "Label")]
)
def test_a_csv_of_paths_and_labels(folder, header):
    source = open_source(write(folder / "labels.csv", header, ROWS))
    assert source.label_names == ["cat", "dog"] and labels(source) == ["cat", "dog", "cat", "dog"]
    assert source.splits["train"].image_name(2).endswith("files/b/0.png")


def test_tsv_json_lines_and_parquet_are_read_alike(folder):
    write(folder / "t.tsv", ("file", "label"), ROWS, "\t")
    write(folder / "s.csv", ("file", "label"), ROWS, ";")
    (folder / "j.jsonl").write_text("\n".join(json.dumps({"file": f, "label": c}) for f, c in ROWS))
    pq.write_table(pa.table({"file": [f for f, _ in ROWS], "label": [c for _, c in ROWS]}), folder / "p.parquet")
    for name in ("t.tsv", "s.csv", "j.jsonl", "p.parquet"):
        assert labels(open_source(folder / name)) == ["cat", "dog", "cat", "dog"], name


def test_labels_are_text_as_they_stand_there(folder):
    rows = [("a/0.png", "01"), ("a/1.png", "1"), ("b/0.png", "None"), ("b/1.png", "NA")]
    assert open_source(write(folder / "l.csv", ("file", "label"), rows)).label_names == ["01", "1", "NA", "None"]
    numbers = [(file, i * 5) for i, (file, _) in enumerate(ROWS)]
    assert open_source(write(folder / "n.csv", ("file", "label"), numbers)).label_names == ["0", "5", "10", "15"]


def test_a_split_column_and_files_elsewhere(folder, tmp_path):
    rows = [(f, c, s) for (f, c), s in zip(ROWS, ["Train", "train", "test", "unused"], strict=True)]
    table = write(tmp_path / "labels.csv", ("file", "label", "split"), rows)
    with pytest.raises(UserError, match="4 of 4 files .* are not in .*the first is a/0.png.; say where they are"):
        open_source(table)
    source = open_source(table, image_root=folder)
    assert sizes(source) == {"train": ("Train", 2), "test": ("test", 1)}
    assert "left out: 1 rows of split 'unused'" in source.description


def test_a_column_of_splits_names_some(folder):
    def rows(*values):
        return [(*row, value) for row, value in zip(ROWS, values, strict=True)]

    folds = write(folder / "f.csv", ("file", "label", "fold"), rows(0, 0, 1, 1))
    source = open_source(folds)
    assert sizes(source) == {"train": ("train", 4)} and "left out: column 'fold', which names no split" in (
        source.description
    )
    assert sizes(open_source(folds, splits={"train": "0", "test": "1"})) == {"train": ("0", 2), "test": ("1", 2)}
    other = write(folder / "s.csv", ("file", "label", "split"), rows("old", "old", "new", "new"))
    with pytest.raises(UserError, match="column 'split' of .* no split of a usual name .it has old, new"):
        open_source(other)
    assert sizes(open_source(other, splits={"train": "old"})) == {"train": ("old", 2)}
    both = write(folder / "b.csv", ("file", "label", "fold", "subset"), [(*row, "train") for row in rows(0, 0, 1, 1)])
    assert sizes(open_source(both)) == {"train": ("train", 4)}
    with pytest.raises(UserError, match="has no row of split 'x'; change train_split"):
        open_source(write(folder / "n.csv", ("file", "label"), ROWS), splits={"train": "x"})


def test_a_suffix_may_be_in_capitals(folder):
    (folder / "J.JSONL").write_text("\n".join(json.dumps({"file": f, "label": c}) for f, c in ROWS))
    write(folder / "T.TSV", ("file", "label"), ROWS, "\t")
    pq.write_table(pa.table({"file": [f for f, _ in ROWS], "label": [c for _, c in ROWS]}), folder / "P.PARQUET")
    for name in ("J.JSONL", "T.TSV", "P.PARQUET"):
        assert labels(open_source(folder / name)) == ["cat", "dog", "cat", "dog"], name


def test_metadata_in_a_folder_gives_the_classes_where_it_has_some(folder):
    write(folder / "metadata.csv", ("file_name", "label"), ROWS)
    assert labels(open_source(folder)) == ["cat", "dog", "cat", "dog"]
    write(folder / "metadata.csv", ("file_name", "text"), ROWS)  # captions
    source = open_source(folder)
    assert source.label_names == ["a", "b"] and "1 .csv files (metadata.csv)" in source.description


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        (("file", "left", "right"), [("a/0.png", "x", "y")], "several that could be the label column: left, right"),
        (("file",), [("a/0.png",)], "no label column (it has file); name it with label_column"),
        (("file", "label"), [("a/0.png", "x"), ("a/1.png", "")], "1 of 2 rows of"),
        (("file", "label"), [("a/0.png", "x", "y")], "line 2 of"),
        (("file", "label"), [("a/0.png", "x"), ('"a/1.png\n"', "x"), ("b/0.png",)], "line 5 of"),
        (("file", "label", "label "), [("a/0.png", "x", "y")], "has several columns 'label'"),
        (("file", "label"), [], "has no rows"),
        (("number", "label"), [("1", "x")], "several that could be"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(folder, header, rows, says):
    with pytest.raises(UserError) as error:
        open_source(write(folder / "labels.csv", header, rows))
    assert says in str(error.value) or "no column of image files" in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_above_the_last_class_are_named(tmp_path):
    import datasets
    from test_training_values import png

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [png(np.full((4, 4, 3), i, np.uint8)) for i in range(4)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 2]}, features=features)
    features["label"] = datasets.ClassLabel(names=["x", "y"])
    with pytest.raises(UserError, match="2 of 4 labels in 'label' .* above the last of its 2 classes"):
        open_source(datasets.Dataset(table.data, info=datasets.DatasetInfo(features=features)))


def test_a_parquet_row_may_not_read_a_file_outside_its_data_set(folder, tmp_path):
    import datasets

    secret = make(tmp_path / "private", "secret.png") / "secret.png"
    rows = [(str(secret), "cat"), ("b/1.png", "dog")]
    pq.write_table(pa.table({"file": [f for f, _ in rows], "label": [c for _, c in rows]}), folder / "p.parquet")
    with pytest.raises(UserError, match="1 of 2 files of .* lie outside of .*secret.png"):
        open_source(folder / "p.parquet")
    up = pa.table({"file": ["../private/secret.png", "b/1.png"], "label": ["cat", "dog"]})
    pq.write_table(up, folder / "p.parquet")
    with pytest.raises(UserError, match="1 of 2 files of .* lie outside of"):
        open_source(folder / "p.parquet")
    assert labels(open_source(write(folder / "mine.csv", ("file", "label"), rows))) == ["cat", "dog"]  # one's own

    images = pa.array([{"bytes": None, "path": str(secret)}] * 4)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = pa.table({"image": images, "label": [0, 1, 0, 1]}, schema=features.arrow_schema)
    (tmp_path / "stranger").mkdir()
    pq.write_table(table, tmp_path / "stranger" / "data.parquet")
    for source in (tmp_path / "stranger", tmp_path / "stranger" / "data.parquet"):
        with pytest.raises(UserError, match="4 images of split 'train' of .* are files outside of it .*secret.png"):
            open_source(source)


def test_classes_are_matched_by_name():
    same = match_classes(["a", "b"], ["a", "b"], "the data", "the model")
    assert same.numbers.tolist() == [0, 1] and same.note == "" and same.absent == []
    other = match_classes(["c", "a"], ["a", "b", "c"], "the data", "the model")
    assert other.numbers.tolist() == [2, 0] and other.absent == ["b"]
    assert other.note == "the data: classes are in another order and matched by name; 1 of 3 classes absent: b"
    with pytest.raises(UserError, match="the data has 2 classes .d, A. that the model has not .is 'A' its 'a'.."):
        match_classes(["a", "d", "A"], ["a", "b"], "the data", "the model")


def test_names_in_order():
    assert in_order({"10", "9"}) == ["9", "10"] and in_order({"10", "9", "x"}) == ["10", "9", "x"]
    assert in_order({"²", "1"}) == ["1", "²"]


def test_a_model_of_the_same_classes_in_another_order_trains_and_tests_by_name(photos):
    import lightning.pytorch as pl

    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
             "enable_model_summary": False, "enable_checkpointing": False}  # fmt: skip
    names = ["red", "blue", "green"]
    model = MixerClassifier("mixer_nano_32", label_names=names, optimizer="adamw", lr=0.003)
    data = ImageDataModule(photos, batch_size=12, val_fraction=0.25, seed=1)
    pl.Trainer(**quiet, max_epochs=4).fit(model, data)
    assert data.label_names == names and model.label_names == names
    # Data that number the classes as the alphabet does: as accurate, since they are matched by name.
    fresh = ImageDataModule(photos, val_fraction=0.25, test_split="train", seed=1)
    found = pl.Trainer(**quiet).test(model, fresh, verbose=False)[0]
    assert found["test/accuracy"] > 0.9
    folder = make(photos.parent / "others", *each("red", "violet"))
    with pytest.raises(UserError, match="the data has 1 class .violet. that the model has not"):
        pl.Trainer(**quiet).test(model, ImageDataModule(folder, val_fraction=0.25), verbose=False)

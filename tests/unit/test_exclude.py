"""Images that a table leaves out: found by file or row, compared with the data, part of what a run saw."""

import csv
import io

import datasets
import numpy as np
import pytest
from PIL import Image

from mixer_finetune import ImageDataModule
from mixer_finetune.data.exclude import content_digest
from mixer_finetune.data.fingerprint import difference, fingerprint
from mixer_finetune.errors import UserError


def table(path, columns, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


@pytest.fixture
def of_rows():
    """Six images without names, and two to test on."""

    def images(seed, n):
        for pixels in np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            yield {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    made = {
        name: datasets.Dataset.from_dict(
            {"image": list(images(n, n)), "label": [2 * i // n for i in range(n)]}, features
        )
        for name, n in (("train", 6), ("test", 2))
    }
    return datasets.DatasetDict(made)


def test_files_are_found_by_their_names_wherever_they_stand_now(photos, tmp_path):
    digest = content_digest({"bytes": (photos / "blue" / "003.png").read_bytes()})
    exclude = table(
        tmp_path / "audit.csv",
        ("exclude", "split", "file", "row", "digest"),
        ("yes", "train", "blue/003.png", 40, digest),
        ("no", "train", "blue/004.png", 4, ""),
        ("YES", "train", "red/000.png", "", ""),
    )
    data = ImageDataModule(photos, exclude=exclude, val_fraction=0.25)
    names = {data.splits[role].image_name(i) for role in data.splits for i in range(len(data.splits[role]))}
    assert len(names) == 46 and f"{photos}/blue/003.png" not in names and f"{photos}/red/000.png" not in names
    assert "left out by audit.csv: 2 of train" in data.description and "12 of 46 are held out" in data.description
    assert data.excluded["train"]["images"] == 2


def test_rows_are_found_by_number_and_compared_by_content(of_rows, tmp_path):
    digests = [
        content_digest(each) for each in of_rows["train"].cast_column("image", datasets.Image(decode=False))["image"]
    ]
    columns = ("split", "row", "digest")
    exclude = table(tmp_path / "out.csv", columns, ("train", 1, digests[1]), ("train", 4, digests[4]))
    data = ImageDataModule(of_rows, exclude=exclude, val_fraction=0)
    assert data.splits["train"].rows.tolist() == [0, 2, 3, 5] and len(data.splits["test"]) == 2
    assert data.splits["train"].labels.tolist() == [0, 0, 1, 1]
    other = table(tmp_path / "other.csv", columns, ("train", 1, digests[1]), ("train", 4, digests[3]))
    with pytest.raises(UserError, match=r"row 4 of train is not the image that .*other.csv leaves out \(1 are not\)"):
        ImageDataModule(of_rows, exclude=other)


def test_what_is_left_out_is_part_of_what_a_run_saw(of_rows, tmp_path):
    def seen(*rows):
        exclude = table(tmp_path / "out.csv", ("split", "row"), *rows) if rows else None
        data = ImageDataModule(of_rows, exclude=exclude, val_fraction=0)
        return fingerprint(data.label_names, data.splits, data.excluded)

    none, one, another = seen(), seen(("train", 0)), seen(("train", 2))
    assert "excluded" not in none and one["excluded"]["train"]["images"] == 1
    # Rows 0 and 2 have one label, so that only the hash of what is left out tells them apart.
    assert one["splits"] == another["splits"]
    assert difference(one, another) == "other images of train are left out"
    assert difference(one, one) == ""
    assert difference(none, one).endswith("0 images of train were left out and now 1 are")


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (("file",), [("x.png",)], r"needs a column 'split' and a column 'file' or 'row' .* \(it has file\)"),
        (("split", "row"), [("valid", 0)], "leaves out images of split 'valid', and the data has train, test; audit"),
        (("split", "row"), [("train", 6)], "train has no row 6 of those that"),
        (("split", "row"), [("train", 9), ("train", 7)], "train has no row 9 and lacks 1 more of those that"),
        (("split", "row"), [("train", "-1")], "line 2 of .* has '-1' in 'row'; expected a number"),
        (("split", "row"), [("train", "")], "line 2 of .* names no image"),
        (("split", "row", "exclude"), [("train", 1, "maybe")], "line 2 of .* has 'maybe' in 'exclude'; expected yes"),
        (("split", "row"), [("test", 0), ("test", 1)], "leaves out all 2 images of test; change exclude"),
        (("split", "row", "file"), [("train", 1, "x.png")], "'x.png' of train is not the image that"),
    ],
)
def test_a_table_that_does_not_match_is_refused(of_rows, tmp_path, columns, rows, said):
    with pytest.raises(UserError, match=said):
        ImageDataModule(of_rows, exclude=table(tmp_path / "out.csv", columns, *rows))


def test_a_table_that_is_none_is_refused(of_rows, photos, tmp_path):
    with pytest.raises(UserError, match="there is no file .*none.csv"):
        ImageDataModule(of_rows, exclude=str(tmp_path / "none.csv"))
    (tmp_path / "bad.csv").write_bytes(b"split,row\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="can't be read as a CSV table"):
        ImageDataModule(of_rows, exclude=str(tmp_path / "bad.csv"))
    with pytest.raises(UserError, match="train has no 'blue/999.png'"):
        ImageDataModule(photos, exclude=table(tmp_path / "file.csv", ("split", "file"), ("train", "blue/999.png")))
    changed = table(tmp_path / "c.csv", ("split", "file", "digest"), ("train", "blue/001.png", "0" * 16))
    with pytest.raises(UserError, match="'blue/001.png' of train is not the image"):
        ImageDataModule(photos, exclude=changed)


def test_a_file_that_a_table_lists_twice_needs_its_row(photos, tmp_path):
    lines = [f"{photos}/{color}/00{i}.png,{color}" for color in ("blue", "red") for i in range(4)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["file,label", *lines, f"{photos}/blue/001.png,red"]) + "\n")
    name = f"{photos}/blue/001.png"
    with pytest.raises(UserError, match="several times; give its row, too"):
        ImageDataModule(labels, exclude=table(tmp_path / "a.csv", ("split", "file"), ("train", name)))
    exclude = table(tmp_path / "b.csv", ("split", "file", "row"), ("train", name, 8))
    data = ImageDataModule(labels, exclude=exclude, val_fraction=0)
    assert data.splits["train"].rows.tolist() == list(range(8))

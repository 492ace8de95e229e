"""The command audit, and runs that leave out what its table marks."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import FIT, make_photos

AUDIT = ("audit", "--device", "cpu", "--data.num_workers", 0)


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    """Photos with something of everything that an audit looks for."""
    folder = tmp_path_factory.mktemp("flawed")
    train = make_photos(folder / "train", {"blue": 16, "green": 16, "red": 16})
    test = make_photos(folder / "test", {"blue": 4, "green": 4, "red": 4}, seed=1)
    rng = np.random.default_rng(2)

    def scene(width=40, height=30):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)

    shutil.copy(test / "blue" / "001.png", train / "blue" / "leak.png")
    shutil.copy(test / "green" / "002.png", train / "red" / "other.png")
    one = scene()
    one.save(train / "red" / "first.png")
    one.save(train / "red" / "again.jpg", quality=60)
    one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(train / "red" / "turned.png")
    shutil.move(train / "blue" / "005.png", train / "green" / "wrong.png")
    Image.new("RGB", (40, 30), (20, 30, 200)).save(train / "blue" / "blank.png")
    scene(200, 30).save(train / "green" / "long.png")
    scene(6, 5).save(train / "green" / "tiny.png")
    (test / "red" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def audited(flawed, tmp_path_factory):
    from mixer_finetune.cli.main import main

    output = tmp_path_factory.mktemp("audit") / "out"
    assert main([*map(str, AUDIT), str(flawed), "--output", str(output)]) == 0
    with open(output / "audit.csv", encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    return output, rows


def test_each_flaw_is_found_and_marked_as_the_docs_say(audited):
    output, rows = audited
    found = json.loads((output / "audit.json").read_text())
    assert found["shared"]["identical"] == {"test": {"images": 2, "with_another_label": 1}}
    assert {kind: found["findings"][kind] for kind in ("identical", "near", "mirrored", "blank", "size", "broken")} == {
        "identical": 2, "near": 1, "mirrored": 1, "blank": 1, "size": 1, "broken": 1,
    }  # fmt: skip
    expected = {
        "train/blue/leak.png": ("yes", "identical", "test: test/blue/001.png"),
        "test/blue/001.png": ("no", "identical", "train: train/blue/leak.png"),
        "train/red/other.png": ("yes", "identical", "test: test/green/002.png"),
        "train/red/first.png": ("no", "near", "train: train/red/again.jpg"),
        "train/red/turned.png": ("no", "mirrored", "train: train/red/again.jpg"),
        "train/green/wrong.png": ("no", "label", ""),
        "train/blue/blank.png": ("yes", "blank", ""),
        "train/green/long.png": ("no", "shape", ""),
        "train/green/tiny.png": ("no", "size", ""),
        "test/red/broken.png": ("yes", "broken", ""),
    }
    for name, (exclude, kind, copy) in expected.items():
        row = rows[name]
        assert kind in row["findings"].split() and len(row["digest"]) == 16, row
        if name != "train/red/first.png":  # of two copies the one that stands first stays
            assert row["exclude"] == exclude, row
        if copy and name not in ("train/red/first.png", "train/red/turned.png"):
            assert row["copy_of"] == copy
    assert rows["train/green/wrong.png"]["suggested"] == "blue"
    assert {rows[f"train/red/{name}"]["exclude"] for name in ("first.png", "again.jpg")} == {"yes", "no"}


def test_the_page_has_the_pictures_and_nothing_from_elsewhere(audited):
    output, rows = audited
    text = (output / "audit.html").read_text(encoding="utf-8")
    assert "2 test image(s) stand in train too, 1 with another label" in text
    assert text.count("data:image/") >= len(rows) and "rather <b>blue</b>" in text and "no picture" in text
    assert "http" not in text and "<script" not in text and str(output.parent) not in text
    # The same picture with two labels comes before the one with one label.
    assert text.index("other.png") < text.index("leak.png")


def test_a_run_leaves_out_what_the_table_marks_and_is_not_resumed_with_another(cli, flawed, audited, tmp_path):
    output, rows = audited
    shutil.copy(output / "audit.csv", tmp_path / "audit.csv")
    shown = cli(
        "fit", *FIT, "--recipe", "linear_probe", "--model.backbone", "mixer_nano", "--trainer.max_steps", 1,
        "--data.source", flawed, "--data.exclude", "audit.csv", "--name", "clean", check=0,
    )  # fmt: skip
    marked = [row["split"] for row in rows.values() if row["exclude"] == "yes"]
    assert f"left out by audit.csv: {marked.count('train')} of train, 1 of test" in shown.stdout
    (run,) = (tmp_path / "runs" / "clean").iterdir()
    seen = json.loads((run / "data.json").read_text())
    assert {role: each["images"] for role, each in seen["excluded"].items()} == {
        "train": marked.count("train"), "test": 1,
    }  # fmt: skip
    assert seen["splits"]["test"]["images"] == 12
    with open(tmp_path / "audit.csv", "a", encoding="utf-8") as file:
        file.write("yes,train,train/blue/000.png,,blue,,,,,\n")
    result = cli("fit", "--resume", run, "--trainer.max_steps", 2, check=2)
    assert "the data has changed since" in result.stderr and "images of train were left out and now" in result.stderr
    refused = cli("fit", "--recipe", "digits", "--data.exclude", "audit.csv", check=2).stderr
    assert refused.count("\n") == 1 and "audit this data again, or leave out --data.exclude" in refused


def test_several_labels_have_copies_and_outliers_but_no_label_errors(cli, photos, tmp_path):
    lines = [f"{photos}/blue/{i:03d}.png,{'a|b' if i % 2 else 'a'}" for i in range(12)]
    lines += [f"{photos}/red/{i:03d}.png,b" for i in range(12)] + [f"{photos}/red/000.png,a"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    shown = cli(*AUDIT, "labels.csv", "--data.label_separator", "|", "--output", "out", check=0).stdout
    assert "label errors are not looked for: images have several labels" in shown
    with open(tmp_path / "out" / "audit.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"] == "identical"]
    assert [(row["label"], row["exclude"]) for row in rows] == [("b", "yes"), ("a", "yes")]
    assert "holds another audit already" in cli(*AUDIT, "digits", "--output", "out", check=2).stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--exclude", "outliers"), "there is no finding 'outliers'; use --exclude identical or near or"),
        (("--near", "-1"), "near must be 0 or more, got -1.0; change --near"),
        (("--show", "0"), "show must be 1 or more, got 0; change --show"),
        (("--data.val_fraction", "0.2"), "audit trains no network, so --data.val_fraction has no effect"),
        (("--model.backbone", "x"), "audit takes --backbone in place of --model.backbone"),
        (("photos",), "got photos beside digits"),
    ],
)
def test_a_mistake_is_one_line(cli, tmp_path, typed, said):
    result = cli("audit", "digits", *typed, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())

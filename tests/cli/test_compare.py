"""`last`, `runs`, `compare` and what predict prints, by the real commands."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mixer_finetune import ImageDataModule, load_backbone


@pytest.fixture
def runs(a_run, tmp_path):
    """Two runs on the same photos: the second answers red where the first does not, and trained at another rate."""
    folders = [tmp_path / "runs" / "shapes" / f"2026-01-0{day}_10-00-00" for day in (1, 2)]
    for folder in folders:
        shutil.copytree(a_run, folder)
        results = json.loads((folder / "results.json").read_text())
        results |= {"name": "shapes", "started": f"2026-01-0{folder.name[9]}T10:00:00"}
        del results["files"]  # the hashes of what is edited here
        (folder / "results.json").write_text(json.dumps(results))
    config = yaml.safe_load((folders[1] / "config.yaml").read_text())
    config["model"]["lr"] = 0.5
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(config))
    with open(folders[1] / "predictions.csv", newline="") as file:
        header, *rows = csv.reader(file)
    for row in rows:
        row[3] = row[2] if row[3] != row[2] else next(name for name in ("blue", "green") if name != row[2])
    with open(folders[1] / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folders


def test_runs_are_listed_compared_and_reported_as_last(runs, cli, tmp_path):
    listed = cli("runs", "--source", "shapes", check=0).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [f"runs/shapes/{run.name}" for run in runs[::-1]]
    said = cli("compare", runs[0], "last", "--output", "out", check=0).stdout
    assert "last is runs/shapes/2026-01-02_10-00-00\n" in said
    with open(runs[0] / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["label_1"] for row in rows)
    wrong = len(rows) - right
    assert f"only B is right on {wrong}, only A on {right} of {len(rows)} images" in said
    assert re.search(r"^model.lr +0.05 +0.5", said, re.M)
    text = (tmp_path / "out" / "compare.html").read_text()
    assert text.count("<img") == len(rows) and "red &lt;b&gt;" in text and "red <b>" not in text
    assert "private_place" not in text
    assert "use --output another folder" in cli("compare", *runs, "--output", "out", check=2).stderr
    assert "expected: compare RUN RUN ..." in cli("compare", "last", check=2).stderr
    cli("report", "last", check=0)
    report = (runs[1] / "report.html").read_text()
    assert "<h1>shapes, 2026-01-02 10:00:00</h1>" in report and "Against the previous run of this data" in report
    assert "only this run is right on" in report and "It was shapes, 2026-01-01 10:00:00" in report
    said = cli("push", "last", "user/name", "--dry_run", check=0).stdout
    assert said.startswith("last is runs/shapes/2026-01-02_10-00-00\n")
    said = cli("validate", "shapes/last", check=0).stdout
    assert "shapes/last is runs/shapes/2026-01-02_10-00-00" in said and f"{right / len(rows):.4f}" in said


def test_predict_tells_the_answer_to_a_photo_and_writes_nothing(runs, cli, photos, tmp_path):
    photo = photos / "red" / "000.png"
    said = cli("predict", "last", photo, check=0).stdout.splitlines()
    probabilities = load_backbone(runs[1]).predict(photo)
    (first, p), (second, q), *_ = sorted(probabilities.items(), key=lambda item: -item[1])
    assert said == ["last is runs/shapes/2026-01-02_10-00-00", f"{photo}: {first} ({p:.1%}), then {second} ({q:.1%})"]
    assert not (runs[1] / "predict").exists() and not list(tmp_path.glob("*.csv"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    result = cli("predict", "last", broken, check=2)
    assert "broken.jpg can't be decoded" in result.stdout and "wrote" not in result.stdout


def test_predict_sums_a_folder_up_and_overwrites_nothing_unasked(runs, cli, photos, tmp_path):
    first = cli("predict", runs[0], photos, check=0).stdout
    place = runs[0] / "predict" / f"{photos.name}.csv"
    assert f"wrote 48 rows to {place}\n" in first
    with open(place, newline="") as file:
        rows = list(csv.DictReader(file))
    for label in {row["label_1"] for row in rows}:
        count = sum(row["label_1"] == label for row in rows)
        assert re.search(rf"^  {re.escape(label)} +{count} +{count / 48:.1%}$", first, re.M)
    told = first.partition("least sure:\n")[2].splitlines()
    unsure = sorted(rows, key=lambda row: float(row["probability_1"]))[:5]
    assert [line.partition(": ")[0].strip() for line in told] == [row["file"] for row in unsure]
    before = place.read_bytes()
    again = cli("predict", runs[0], photos, check=0).stdout
    assert f"{photos.name}-2.csv" in again and place.read_bytes() == before
    refused = cli("predict", runs[0], photos, "--output", place, check=2).stderr
    assert "exists already; give --output another name, or --overwrite" in refused
    cli("predict", runs[0], photos / "red", "--output", place, "--overwrite", check=0)
    assert len(place.read_text().splitlines()) == 17


def test_a_split_is_named_as_fits_header_names_it(runs, cli, tmp_path):
    for split, count in (("train", 3), ("validation", 2)):
        for name in ("blue", "green"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), 50 + i, np.uint8)).save(folder / f"{i}.png")
    for name in ("validation", "val", "dev"):
        said = cli("predict", runs[0], "--source", tmp_path / "data", "--split", name, check=0).stdout
        assert "wrote 4 rows" in said, name
    said = cli("predict", runs[0], "--source", tmp_path / "data", "--split", "test", check=2).stderr
    assert "has no test split; use --split train or val (which is validation)" in said
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    held_out = ImageDataModule(config["data"]["source"], seed=config["seed_everything"]).splits["val"]
    said = cli("predict", runs[0], "--split", "val", "--output", "own.csv", check=0).stdout
    with open(tmp_path / "own.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [held_out.image_name(i) for i in range(len(held_out))]
    assert "is no run, whose data" in cli("predict", "mixer_nano", "--split", "val", check=2).stderr

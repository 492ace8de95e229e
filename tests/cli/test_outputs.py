"""What comes out of a run: report, exports and predictions, by the real commands."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from conftest import FIT
from mixer_finetune import load_backbone
from mixer_finetune.cli.predict import predict
from mixer_finetune.errors import Interrupted
from mixer_finetune.evaluation.explain import evidence, opposite_pairs
from mixer_finetune.evaluation.predict import Predictor


@pytest.fixture
def run(a_run, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(a_run, tmp_path / "run"))


class Page(HTMLParser):
    """What a page loads, runs and shows."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_loads_nothing_and_escapes_names(run, cli):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.sources and all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not re.search(r"@import|url\(['\"]?http", text)
    results = json.loads((run / "results.json").read_text())
    assert f"{results['metrics']['accuracy']:.2%}" in page.text and "red <b>" in page.text
    for heading in (
        "Learning curves",
        "Confusion matrix",
        "Calibration",
        "Trust",
        "What the weights look like",
        "Where the time went",
    ):
        assert heading in page.text
    assert page.tags.count("html") == 1 and len(text) < 10e6
    card = (run / "model" / "README.md").read_text()
    assert "\n# mixer_nano_32 on shapes\n" in card and "- name: mixer_nano_32 on shapes\n" in card


def test_a_run_of_several_labels_an_image_from_table_to_export(cli, tmp_path):
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    generator, lines = np.random.default_rng(0), ["file,labels,split"]
    for i in range(48):
        pixels = np.full((24, 24, 3), 128, np.uint8)
        there = [name for name in colours if generator.random() < 0.5]
        for name in there:
            pixels[:, 8 * list(colours).index(name) :][:, :8] = colours[name]
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(there)},{'train' if i < 36 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = (
        "--data.source",
        tmp_path / "labels.csv",
        "--data.label_separator",
        "|",
        "--model.backbone",
        "mixer_nano",
    )
    said = cli(
        "fit", *options, *FIT, "--trainer.max_epochs", 2, "--data.flip", "false", "--name", "tags", check=0
    ).stdout
    assert "labels in 'labels' between '|' (3 classes)" in said and re.search(r"dev: loss \S+ map \S+%", said)
    (run,) = (tmp_path / "runs" / "tags").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert (
        results["task"] == "multi_label" and results["monitor"] == "map" and not (run / "confusion_matrix.png").exists()
    )
    assert set(results["metrics"]) == {"map", "macro_f1", "micro_f1", "exact_match"} == set(results["intervals"])
    tested = cli("test", run, check=0).stdout
    assert f"map            {results['metrics']['map']:.4f}" in tested
    text = Page((run / "report.html").read_text()).text
    assert "average precision" in text and "Confusion matrix" not in text and "Learning curves" in text
    card = (run / "model" / "README.md").read_text()
    assert "Says which of 3 classes an image shows" in card and "| class | images | average precision |" in card
    assert "type: mAP" in card and "confusion_matrix.png" not in card
    cli("predict", run, tmp_path / "1.png", "--output", "p.csv", check=0)
    with open(tmp_path / "p.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    model = load_backbone(run)
    expected = model.predict(tmp_path / "1.png")
    assert set(json.loads(row["labels"])) == {name for name, p in expected.items() if p >= 0.5}
    assert float(row["probability_1"]) == pytest.approx(max(expected.values()), abs=1e-5)
    cli("predict", run, "--source", tmp_path / "labels.csv", "--output", "all.jsonl", check=0)
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    with open(run / "predictions.csv", newline="") as file:
        tested = list(csv.DictReader(file))
    assert [row["labels"] for row in rows] == [json.loads(line["answers"]) for line in tested] and len(rows) == 12
    said = cli("test", run, "--model.task", "single_label", check=2).stderr
    assert "the model was trained for multi_label, not for single_label; leave out --model.task" in said
    said = cli("export", run, "--format", "safetensors", check=0).stdout
    assert "largest difference of a probability" in said
    assert load_backbone(run / "export" / "model").task == "multi_label"


def test_a_report_made_again_is_the_same_and_does_without_the_data(run, cli):
    first = (run / "report.html").read_text()
    cli("report", run, check=0)
    assert (run / "report.html").read_text() == first
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("source: .*", "source: /gone", config))
    results = json.loads((run / "results.json").read_text())
    del results["files"]["predictions.csv"]  # else the edit would be noticed
    (run / "results.json").write_text(json.dumps(results))
    (run / "predictions.csv").write_text(
        re.sub("(?m)^(.*),red <b>,red <b>,", r"\1,blue,red <b>,", (run / "predictions.csv").read_text())
    )
    out = cli("report", run, "--output", "other.html", check=0).stdout
    assert "other.html" in out and "The images can't be shown" in (run.parent / "other.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report"], "expected: report RUN"),
        (["report", "nowhere"], "not a run folder"),
        (["report", "RUN", "--explain", "magic"], "integrated_gradients or occlusion"),
        (["report", "RUN", "--output", "."], "is a folder"),
        (["report", "RUN", "--output", "/dev/null/page.html"], "can't be written (File exists); change --output"),
        (["export", "RUN", "--format", "tflite"], "onnx or torch-export or safetensors"),
        (["export", "RUN", "--dtype", "float16"], "use --dtype float32"),
        (["export", "RUN", "--format", "torch-export", "--quantize", "int8"], "use --format onnx"),
        (["export", "RUN", "--output", "."], "is a folder"),
        (["export", "RUN", "extra"], "expected: export RUN"),
    ],
)
def test_mistakes_are_one_line(run, cli, words, says):
    result = cli(*[run if word == "RUN" else word for word in words], check=2)
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_an_unfinished_run_is_named_as_such(run, cli):
    (run / "results.json").unlink()
    line = cli("report", run, check=2).stderr
    assert "did not finish" in line and f"--resume {run}" in line


def test_onnx_computes_the_models_outputs_and_carries_what_using_it_needs(run, cli):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = cli("export", run, "--format", "onnx", "--quantize", "int8", "--output", "8.onnx", check=0).stdout
    assert "accuracy of int8" in out and "largest difference of a probability" in out
    out = cli("export", run, "--format", "onnx", check=0).stdout
    assert "largest difference" in out
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    backbone = load_backbone(run / "model").eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = backbone(images).numpy()
    difference = session.run(None, {"images": images.numpy()})[0] - expected
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(expected)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["label_names"]) == backbone.label_names
    assert json.loads(metadata["preprocessing"])["mean"] == list(backbone.preprocessing.mean)
    assert metadata["calibration"] == (run / "model" / "calibration.json").read_text()
    quantized = onnxruntime.InferenceSession(run.parent / "8.onnx", providers=["CPUExecutionProvider"]).get_modelmeta()
    assert json.loads(quantized.custom_metadata_map["label_names"]) == backbone.label_names


def test_torch_export_and_half_precision_folders(run, cli):
    cli("export", run, "--format", "torch-export", check=0)
    extra = {"label_names": ""}
    program = torch.export.load(run / "export" / "model.pt2", extra_files=extra)
    backbone = load_backbone(run / "model").eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(program.module()(images), backbone(images), atol=1e-5)
    assert json.loads(extra["label_names"]) == backbone.label_names
    cli("export", run, "--format", "safetensors", "--dtype", "bfloat16", check=0)
    full, half = (path / "model.safetensors" for path in (run / "model", run / "export" / "model"))
    assert half.stat().st_size < 0.52 * full.stat().st_size
    assert load_backbone(run / "export" / "model").label_names == backbone.label_names
    kept = [(path / "calibration.json").read_text() for path in (run / "model", run / "export" / "model")]
    assert kept[0] == kept[1]
    assert "exists already" in cli("export", run, "--format", "safetensors", check=2).stderr


def test_integrated_gradients_find_the_pixels_that_decide(a_run):
    """Of an image whose two halves differ, a head that reads only what the left half changes has its evidence there."""
    backbone = load_backbone("resmlp_12_224", num_classes=2, image_size=64).eval()
    with torch.no_grad():
        for block in backbone.blocks:  # no mixing: each token stays what its patch is
            block.ls1.zero_()
            block.ls2.zero_()
        backbone.head.weight[1].normal_(generator=torch.Generator().manual_seed(0))
    images = torch.zeros(1, 3, 64, 64)
    images[..., :32] = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(1))
    for method in ("integrated_gradients", "occlusion"):
        heat = evidence(backbone, images, torch.tensor([1]), method)
        assert heat.shape == (1, 64, 64) and 0 <= heat.min() and heat.max() == pytest.approx(1)
        assert heat[..., 48:].max() < 1e-6


def test_units_are_shown_in_pairs_of_opposite_phase_from_low_to_high_frequency():
    waves = [np.cos(np.pi * k * (np.arange(8) + 0.5) / 8)[:, None] * np.ones(8) for k in (1, 3, 6)]
    units = np.array([waves[2], -waves[0], waves[1], -waves[2], waves[0], -waves[1]], np.float32)
    order = opposite_pairs(units)
    assert [set(order[i : i + 2].tolist()) for i in (0, 2, 4)] == [{1, 4}, {2, 5}, {0, 3}]


def test_a_report_of_200_classes_is_light_and_shows_them_all(cli, tmp_path):
    rng = np.random.default_rng(0)
    for label in range(200):
        folder = tmp_path / "many" / f"class {label:03d}"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    cli(
        "fit",
        "--data.source",
        tmp_path / "many",
        "--model.backbone",
        "mixer_nano",
        *FIT,
        "--data.batch_size",
        128,
        check=0,
    )
    (run,) = (tmp_path / "runs" / "custom").iterdir()
    text = (run / "report.html").read_text()
    page = Page(text)
    assert len(text) < 10e6 and page.tags.count("th") > 2 * 25 + 5 + 200
    confusion = json.loads(re.search(r'id="confusion">(.*?)</script>', text)[1])
    assert len(confusion["names"]) == 200 and sum(count for _, _, count in confusion["cells"]) == 200


def test_a_run_without_a_test_split_says_what_evaluates_it(run, cli):
    said = cli("test", run, check=2).stderr
    assert "has no test split, so the results of fit are of its dev split; evaluate that by `validate`" in said
    assert said.count("\n") == 1


def test_predict_writes_each_form_with_features_and_a_row_for_a_bad_image(run, cli, photos, tmp_path):
    folder = Path(shutil.copytree(photos / "red", tmp_path / "some"))
    (folder / "003.png").write_bytes(b"no image")
    out = cli("predict", run, folder, "--output", "p.csv", "--top_k", 2, check=0).stdout
    assert "16 rows" in out and "1 of them" in out and "003.png can't be decoded" in out
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == [f"{i:03d}.png" for i in range(16)]
    assert rows[3]["label_1"] == "" and "can't be decoded" in rows[3]["error"] and rows[4]["error"] == ""
    cli("predict", run, f"{folder}/*.png", "--output", "p.jsonl", "--features", "--top_k", 2, check=0)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line.get("label_1", "") for line in lines] == [row["label_1"] for row in rows] and len(
        lines[0]["features"]
    ) == 96
    cli("predict", run / "model", folder, "--output", "p.parquet", "--tta", "--features", "--explain", "why", check=0)
    pictures = sorted((tmp_path / "why").iterdir())
    assert len(pictures) == 15 and Image.open(pictures[0]).size == (64, 32)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 16 and table["error"].null_count == 15
    plain, mirrored = lines[0]["features"], table["features"][0].as_py()
    assert plain != mirrored and np.abs(np.subtract(plain, mirrored)).mean() < 1
    assert not list(tmp_path.glob("*.part"))


def test_predict_imports_torch_but_neither_lightning_nor_torchvision(run, photos, environment, tmp_path):
    """Either of the first two takes about as long to import as torch, or longer."""
    code = (
        "import sys; from mixer_finetune.cli.main import main\n"
        f"assert main({['predict', str(run), str(photos), '--output', 'p.csv']!r}) == 0\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'lightning', 'torchvision', 'matplotlib'} & set(sys.modules), 'heavy import'"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_predict_compiled_and_in_bf16_gives_the_same_answers(run, cli, photos, tmp_path):
    cli("predict", run, photos, "--output", "plain.csv", check=0)
    cli(
        "predict",
        run,
        photos,
        "--output",
        "fast.csv",
        "--compile",
        "--precision",
        "bf16-mixed",
        "--batch_size",
        32,
        check=0,
    )
    plain, fast = (list(csv.DictReader((tmp_path / name).open(newline=""))) for name in ("plain.csv", "fast.csv"))
    assert len(plain) == len(fast) == 48  # of which the second batch is half full
    for one, other in zip(plain, fast, strict=True):
        assert one["file"] == other["file"] and one["label_1"] == other["label_1"]
        assert float(one["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=0.03)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--precision", "fp8"], "32-true or bf16-mixed"),
        (["--top_k", "0"], "top_k must be 1 or more, got 0"),
        (["--device", "abacus"], "use --device cpu, or cuda"),
        (["--source", "digits"], "give either files or --source"),
        (["--output", "p.xlsx"], "must end in .csv, .jsonl, .parquet"),
        (["--features"], "give --output a name that ends in .jsonl or .parquet"),
        (["--resume"], "leave out --resume"),
        (["--output", "nowhere/p.csv"], "can't be written"),
        (["--split", "val"], "give either files or --split"),
    ],
)
def test_predict_refuses_in_one_line(run, cli, photos, words, says):
    result = cli("predict", run, photos / "red", *words, check=2)
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_an_interrupted_predict_says_how_to_go_on(run, photos, tmp_path, monkeypatch):
    def stop(self, images):
        raise Interrupted("SIGTERM")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "__call__", stop)
        with pytest.raises(Interrupted) as stopped:
            predict(str(run), str(photos), output="p.csv")
    assert stopped.value.advice == f"go on with: mixer-finetune predict {run} ... --output p.csv --resume"
    assert predict(str(run), str(photos), output="p.csv", resume=True) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 49


def test_predict_killed_and_resumed_writes_what_one_never_interrupted_writes(run, cli, begin, photos, tmp_path):
    inputs = [str(photos / name) for name in ("red", "blue", "green")] * 20  # 960 images
    cli("predict", run, *inputs, "--output", "whole.csv", "--batch_size", 2, check=0)
    process = begin("predict", run, *inputs, "--output", "p.csv", "--batch_size", 2).process
    part = tmp_path / "p.csv.part"
    while process.is_alive() and not (part.exists() and part.stat().st_size > 20_000):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert part.exists() and not (tmp_path / "p.csv").exists(), "it ended before it could be killed"
    with open(part, "ab") as file:
        file.write(b"\xff\xff\xff\xff torn")
    assert "--resume" in cli("predict", run, *inputs, "--output", "p.csv", check=2).stderr
    other = cli("predict", run, inputs[1], "--output", "p.csv", "--resume", check=2)
    assert "other images" in other.stderr
    mixed = cli("predict", run, *inputs, "--output", "p.csv", "--batch_size", 2, "--resume", "--tta", check=2)
    assert "options or another model" in mixed.stderr
    cli("predict", run, *inputs, "--output", "p.csv", "--batch_size", 2, "--resume", check=0)
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "whole.csv").read_text() and not part.exists()

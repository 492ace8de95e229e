"""Each file of examples/ does what it says."""

import importlib.util
import io
import re
import shutil
import sys

import pytest
from PIL import Image

import forked
import scripts
from conftest import ROOT
from mixer_finetune import load_backbone

EXAMPLES = ROOT / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.new("RGB", (60, 40), (200, 60, 60)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(a_run, photo):
    return load_backbone(a_run).predict(photo)


def test_own_data_by_an_own_recipe(cli, tmp_path):
    for name in ("own_data.py", "own_recipe.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    options = ("--recipe", "own_recipe.yaml", "--data", "own_data.Shades", "--data.images_per_class", "20")
    said = cli("fit", *options, "--trainer.accelerator", "cpu", check=0).stdout
    assert "test (60 images): top-1 accuracy 100.00%" in said


def test_an_own_network_on_the_data_module(environment, tmp_path):
    process = forked.start(scripts.script, (str(EXAMPLES / "own_backbone.py"),), environment, tmp_path)
    done = process.finished(240)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"test/accuracy\D+([0-9.]+)", done.stdout)[1]) > 0.3


def test_onnx_without_torch_gives_the_models_answer(a_run, photo, expected, cli, environment, tmp_path):
    pytest.importorskip("onnxruntime")
    assert "torch" not in re.findall(
        r"^(?:import|from) (\w+)", (EXAMPLES / "onnx_predict.py").read_text(), re.MULTILINE
    )
    cli("export", a_run, "--format", "onnx", "--output", "model.onnx", check=0)
    script = (str(EXAMPLES / "onnx_predict.py"), "model.onnx", str(photo))
    done = forked.start(scripts.script, script, environment, tmp_path).finished(120)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"(\S+|red <b>) ([0-9.]+)%", done.stdout.removeprefix(str(photo)))
    assert len(answers) == 3
    for name, percent in answers:
        assert float(percent) / 100 == pytest.approx(next(p for n, p in expected.items() if n.endswith(name)), abs=0.01)


def test_fastapi_answers_with_probabilities(a_run, photo, expected, monkeypatch):
    pytest.importorskip("fastapi", reason="it is installed by .ci/docs alone")
    from fastapi.testclient import TestClient

    monkeypatch.setenv("MODEL", str(a_run))
    client = TestClient(example("serve_fastapi").app)
    assert sorted(client.get("/labels").json()) == sorted(expected)
    answer = client.post("/predict", content=photo.read_bytes())
    assert answer.json() == pytest.approx(expected, abs=1e-3)
    assert len(client.post("/predict?top_k=1", content=photo.read_bytes()).json()) == 1
    assert client.post("/predict", content=b"no image").status_code == 415


def test_gradio_shows_the_models_answer(a_run, photo, expected, monkeypatch):
    pytest.importorskip("gradio", reason="it is installed by .ci/docs alone")
    monkeypatch.setattr(sys, "argv", ["serve_gradio.py", str(a_run)])
    demo = example("serve_gradio").demo
    assert demo.fn(Image.open(io.BytesIO(photo.read_bytes()))) == pytest.approx(expected, abs=1e-3)
    assert demo.fn(None) is None

"""The wheel holds all that the first command needs, and works from an empty folder."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_recipes_and_assets_and_stays_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "mixer_finetune/_recipes/digits.yaml",
        "mixer_finetune/_recipes/overlays/ddp.yaml",
        "mixer_finetune/assets/mixer_nano/model.safetensors",
        "mixer_finetune/assets/mixer_micro/model.safetensors",
        "mixer_finetune/assets/digits/README.md",
    } <= names
    assert not any(name.startswith("tests") for name in names)
    assert wheel.stat().st_size < 14e6


def test_the_installed_wheel_runs_the_first_command_from_an_empty_folder(wheel, environment, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    # The dependencies come from the environment of the tests; a path of a .pth file comes after the wheel's own.
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    with open(f"{site}/dependencies.pth", "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")

    alone = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [tmp_path / "env" / "bin" / "mixer-finetune", "fit", "--recipe", "digits", "--recipe", "cpu"]
    command += ["--trainer.max_epochs", "-1", "--trainer.max_steps", "25"]
    subprocess.run(command, cwd=empty, env=alone, check=True, capture_output=True, text=True, timeout=240)
    (run,) = (empty / "runs" / "digits-cpu").iterdir()
    assert json.loads((run / "results.json").read_text())["steps"] == 25
    where = [python, "-c", "import mixer_finetune; print(mixer_finetune.__file__)"]
    found = subprocess.run(where, cwd=empty, env=alone, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(tmp_path / "env"))

"""Classes that a configuration names are imported by `fit` alone, which says so before it does."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from mixer_finetune.cli.main import main

# Its import leaves a trace, as the code of a stranger would.
EVIL = """
import pathlib
import lightning.pytorch as pl
import torch
from mixer_finetune import MixerClassifier

print("evil module runs")
pathlib.Path(__file__).with_suffix(".trace").touch()


class Watch(pl.Callback):
    pass


class Adam(torch.optim.Adam):
    pass


class Classifier(MixerClassifier):
    def __init__(self, *args, knob: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
"""
WATCH = {"class_path": "evil.Watch"}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder with a module of a stranger's; whether it was imported."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield lambda: (tmp_path / "evil.trace").exists()
    sys.modules.pop("evil", None)


CONFIGS = [
    {"trainer": {"callbacks": [WATCH]}},
    {"trainer": {"callbacks": ["evil.Watch"]}},
    {"trainer": {"callbacks": "evil.Watch"}},
    {"trainer": {"logger": {"class_path": "evil.Logger"}}},
    {"trainer": {"strategy": {"class_path": "evil.Strategy", "init_args": {"a": 1}}}},
    {"model": {"optimizer": {"class_path": "evil.Adam", "init_args": {"lr": 0.1}}}},
    {"optimizer": "evil.Adam", "lr_scheduler": {"class_path": "evil.Step"}},
    {"model": {"class_path": "evil.Classifier", "init_args": {"knob": 3, "lr": 0.5}}},
    {"model": "evil.Classifier", "data": "evil.Data"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_printing_and_checking_a_configuration_imports_nothing_that_it_names(config, evil, capsys):
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "mine.yaml", "--trainer.max_epochs", "7", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"]["max_epochs"] == 7 and "evil" in str(shown)
    if "init_args" in config.get("model", ()):
        assert shown["model"]["class_path"] == "evil.Classifier"
        assert shown["model"]["init_args"]["knob"] == 3 and shown["model"]["init_args"]["lr"] == 0.5
    for group, options in config.items():
        for name, value in options.items() if isinstance(options, dict) and "class_path" not in options else ():
            assert shown[group][name] == value  # as it was written
    main(["recipes", "validate", "mine.yaml"])
    assert not evil()


def test_fit_says_what_it_imports_before_it_does(evil, capsys):
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [WATCH, "lightning.pytorch.Callback"]}}))
    status = main(["fit", "--config", "mine.yaml", "--data.source", "nowhere", "--model.backbone", "mixer_nano"])
    said = capsys.readouterr()
    assert status == 2 and evil()
    line = "imports    evil.Watch: named in mine.yaml, from outside lightning, torch, torchvision, mixer_finetune\n"
    assert line + "evil module runs\n" in said.out


def test_a_run_folder_of_a_stranger_runs_no_callbacks(a_run, evil, tmp_path, capsys):
    run = Path(shutil.copytree(a_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"callbacks": [WATCH], "logger": [{"class_path": "evil.Logger"}], "plugins": ["evil.Plugin"]}
    config["model"]["optimizer"] = {"class_path": "evil.Adam", "init_args": {"lr": 0.1}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in ("results.json", "training.json"):  # of a stranger, whose hashes are what he wishes
        text = (run / file).read_text().replace('"config.yaml"', '"other.yaml"')
        (run / file).write_text(text)
    images = ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    for arguments in (
        ["validate", str(run), *images],
        ["test", str(run), "--print_config"],
        ["report", str(run)],
        ["push", str(run), "user/name", "--dry_run"],
        ["fit", "--resume", str(run), "--print_config"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
    assert not evil()
    assert "imports" not in capsys.readouterr().out

"""What a Lightning user types: typed callbacks, loggers, own classes, torch's optimizers."""

import json
from importlib.util import find_spec

import pytest
import torch
import yaml

FIT = (
    "fit", "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    "--trainer.max_epochs", "2", "--data.batch_size", "12", "--data.val_fraction", "0.25", "--name", "run",
)  # fmt: skip


@pytest.fixture
def fit(cli, photos, tmp_path):
    """Run fit on photos: the run folder, and what was printed."""

    def run(*options, check=0, **changes):
        result = cli(*FIT, "--data.source", photos, *options, check=check, **changes)
        assert "Traceback" not in result.stderr + result.stdout
        if check:
            assert not (tmp_path / "runs").exists()
            return result.stderr
        (folder,) = (tmp_path / "runs" / "run").iterdir()
        return folder, result.stdout + result.stderr

    return run


def callback(name, **options):
    return (f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in options.items()))


@pytest.mark.parametrize(
    "options",
    [
        callback("StochasticWeightAveraging", swa_lrs=0.01),
        callback("BackboneFinetuning", unfreeze_backbone_at_epoch=1),
        callback("LearningRateFinder", num_training_steps=5),
        callback("BatchSizeFinder", max_trials=2),
        callback("LearningRateMonitor", logging_interval="step"),
        callback("TQDMProgressBar", refresh_rate=5),
        callback("EMAWeightAveraging", decay=0.9),
        callback("ModelCheckpoint", monitor="val/loss", save_top_k=2) + callback("EarlyStopping", monitor="val/loss"),
    ],
    ids=lambda options: options[0].partition("=")[2],
)
def test_a_callback_runs_and_its_configuration_runs_again(fit, cli, options):
    run, _ = fit(*options)
    assert json.loads((run / "results.json").read_text())["metrics"]["accuracy"] >= 0
    written = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [entry["class_path"].rpartition(".")[2] for entry in written] == [
        option.partition("=")[2] for option in options if "+=" in option
    ]
    again = cli("fit", "--config", run / "config.yaml", "--print_config", check=0).stdout
    assert yaml.safe_load(again)["trainer"]["callbacks"] == written


def test_model_checkpoints_lie_in_the_run_folder_and_can_be_gone_on_from(fit, cli, photos, tmp_path):
    run, _ = fit(*callback("ModelCheckpoint", save_top_k=-1))
    found = sorted((run / "checkpoints" / "lightning").iterdir())
    assert [path.name for path in found] == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]
    rest = (*FIT, "--data.source", photos, "--ckpt_path", found[0], "--output_dir", "rest")
    assert "resuming   at step 3 of 6" in cli(*rest, check=0).stdout
    (other,) = (tmp_path / "rest" / "run").iterdir()
    assert (other / "model/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()


@pytest.mark.skipif(find_spec("psutil") is not None, reason="psutil is installed")
def test_a_package_that_a_callback_needs_is_named(fit):
    line = fit(*callback("DeviceStatsMonitor", cpu_stats="true"), check=2)
    assert "psutil" in line and len(line.splitlines()) == 1


def test_torchs_optimizers_and_schedules_by_name_and_in_yaml(fit, cli, photos, tmp_path):
    by_name = ("--optimizer", "Adam", "--optimizer.lr", "0.002", "--lr_scheduler", "StepLR")
    run, _ = fit(*by_name, "--lr_scheduler.step_size", "1", "--lr_scheduler.gamma", "0.5")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    groups = last["optimizer_states"][0]["param_groups"]
    assert "betas" in groups[0] and [group["initial_lr"] for group in groups] == [0.002, 0.002]
    assert groups[0]["lr"] == pytest.approx(0.002 * 0.5**2)
    (tmp_path / "mine.yaml").write_text(
        "optimizer:\n  class_path: torch.optim.Adam\n  init_args: {lr: 0.002}\n"
        "lr_scheduler:\n  class_path: torch.optim.lr_scheduler.StepLR\n  init_args: {step_size: 1, gamma: 0.5}\n"
    )
    cli(*FIT, "--data.source", photos, "--config", "mine.yaml", "--output_dir", "again", check=0)
    (again,) = (tmp_path / "again" / "run").iterdir()
    assert (again / "model/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()


OWN = '''
import torch
from mixer_finetune import ImageDataModule, MixerClassifier


class Classifier(MixerClassifier):
    """A loss of its own.

    Args:
        factor: On the loss.
    """

    def __init__(self, *args, factor: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return self.factor * super().training_step(batch, batch_idx)


class Data(ImageDataModule):
    """The same data, under another name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.description = "data of my own"
'''


def test_own_classes_by_their_paths(fit, cli, tmp_path):
    (tmp_path / "my.py").write_text(OWN)
    own = ("--model", "my.Classifier", "--model.factor", "0.0", "--data", "my.Data")
    run, said = fit(*own)
    assert "data of my own" in said
    head = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["head.weight"]
    assert (head == 0).all()  # a loss of zero trains nothing
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "my.Classifier" and config["data"]["class_path"] == "my.Data"
    assert "is finished" in cli("fit", "--resume", run, check=0).stdout
    assert "12 images" in cli("validate", run, check=0).stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "my.Nothing"), "the class my.Nothing can't be imported"),
        (("--model", "torch.nn.Linear"), "torch.nn.Linear is no LightningModule"),
        (("--optimizer", "Adm"), "did you mean Adam"),
        (("--optimizer", "Adam", "--optimizer.lrr", "1"), "lrr"),
        (callback("GradientAccumulationScheduler", scheduling="{0: 2}"), "set --data.batch_size"),
        (callback("ModelCheckpoint", monitor="val/acc"), "monitors 'val/acc', which this run does not log"),
        (("--trainer.logger", "WandbLogger"), "wandb"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1][:40],
)
def test_what_does_not_fit_is_one_line(fit, options, says, tmp_path):
    (tmp_path / "my.py").write_text(OWN)
    line = fit(*options, check=2)
    assert says in line and len(line.splitlines()) == 1


def test_flags_may_stand_alone_and_help_of_a_class_is_shown(fit, cli):
    run, said = fit("--model.freeze_backbone", "--trainer.max_epochs", "1")
    assert "training   291 of " in said
    shown = cli("fit", "--trainer.logger.help", "CSVLogger", check=0).stdout
    assert "--trainer.logger.save_dir" in shown

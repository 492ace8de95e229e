"""The parts used from Python, as a Lightning user would: any Trainer, any DataLoader, any module."""

import datasets
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from mixer_finetune import ImageDataModule, MixerClassifier, UserError, load_backbone

QUIET = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def loader():
    """Noise of three means: easy to tell apart."""
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None] - 1
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def test_it_trains_on_any_loader_of_images_and_labels(loader):
    model = MixerClassifier("mixer_nano_32", num_classes=3, optimizer="adamw", lr=0.003)
    trainer = pl.Trainer(**QUIET, max_epochs=6, gradient_clip_val=1.0)
    before = trainer.validate(model, loader, verbose=False)[0]
    trainer.fit(model, loader, loader)
    assert model.run_steps == 18
    after = trainer.validate(model, loader, verbose=False)[0]
    assert after["val/loss"] < before["val/loss"] and after["val/accuracy"] > 0.9
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(images), labels).item()
    assert after["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_its_loss_over_any_loader_is_the_batch_mean(loader):
    model = MixerClassifier("mixer_nano_32", num_classes=3)
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    model.head = torch.nn.Linear(96, 3)  # not zero
    with torch.no_grad():
        images, labels = next(iter(loader))
        expected = F.cross_entropy(model(images), labels).item()
    pl.Trainer(**QUIET, max_steps=1, callbacks=[Losses()]).fit(model, loader)
    assert losses == [pytest.approx(expected, rel=1e-5)]


def test_a_checkpoint_restores_backbone_classes_and_options(tmp_path, photos):
    data = ImageDataModule(photos, batch_size=16, val_fraction=0.0)
    model = MixerClassifier("mixer_nano_32", lr=0.02, label_smoothing=0.1)
    logger = CSVLogger(tmp_path)
    trainer = pl.Trainer(**{**QUIET, "logger": logger}, max_steps=2)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    found = MixerClassifier.load_from_checkpoint(tmp_path / "some.ckpt")
    assert found.label_names == ["blue", "green", "red"] and found.hparams.lr == 0.02
    assert found.hparams.label_smoothing == 0.1 and found.hparams.backbone == "mixer_nano_32"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(x), model.eval()(x))
    assert "label_smoothing: 0.1" in (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text()
    # And alone, without Lightning.
    assert torch.equal(load_backbone(tmp_path / "some.ckpt").eval()(x), model(x))


@pytest.mark.slow
def test_the_head_fits_the_data_before_callbacks_copy_the_model(photos):
    for callback in (StochasticWeightAveraging(0.01, swa_epoch_start=1), EMAWeightAveraging(decay=0.5)):
        data = ImageDataModule(photos, batch_size=24, val_fraction=0.0)
        model = MixerClassifier("mixer_nano_32")
        pl.Trainer(**QUIET, max_epochs=2, callbacks=[callback]).fit(model, data)
        assert model.label_names == ["blue", "green", "red"] and model.assembled().num_classes == 3


def test_averaged_weights_are_the_running_average_of_the_steps(photos):
    class Steps(pl.Callback):
        def __init__(self):
            self.heads = []

        def on_train_batch_end(self, trainer, module, *_):
            self.heads.append(module.head.weight.detach().clone())

    data, steps = ImageDataModule(photos, batch_size=12, val_fraction=0.0), Steps()
    model = MixerClassifier("mixer_nano_32", lr=0.1)
    pl.Trainer(**QUIET, max_steps=4, callbacks=[steps, EMAWeightAveraging(decay=0.5)]).fit(model, data)
    average = steps.heads[0]
    for head in steps.heads[1:]:
        average = 0.5 * average + 0.5 * head
    assert torch.allclose(model.head.weight, average, atol=1e-6)


def test_a_freezing_callback_freezes_the_backbone_alone(photos):
    data = ImageDataModule(photos, batch_size=24, val_fraction=0.0)
    model = MixerClassifier("mixer_nano_32", lr=0.1)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=5)]).fit(model, data)
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert model.head.weight.abs().sum() > 0


@pytest.mark.slow
def test_finders_try_what_they_say_they_try(photos, tmp_path):
    data, model = ImageDataModule(photos, batch_size=8, val_fraction=0.0), MixerClassifier("mixer_nano_32")
    sizes, rates = [], []

    def training_step(batch, batch_idx):  # the finders switch callbacks off
        sizes.append(len(batch[0]))
        rates.append(model.optimizers().param_groups[0]["lr"])
        return MixerClassifier.training_step(model, batch, batch_idx)

    model.training_step = training_step
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)  # where they leave a checkpoint, if killed
    Tuner(trainer).scale_batch_size(model, data, init_val=2, max_trials=3, steps_per_trial=1)
    assert sizes[:3] == [2, 4, 8] and data.batch_size == 8

    rates.clear()
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)  # where they leave a checkpoint, if killed
    found = Tuner(trainer).lr_find(model, data, min_lr=1e-4, max_lr=1.0, num_training=5, early_stop_threshold=None)
    assert rates == pytest.approx(found.results["lr"], rel=1e-6) and rates[0] < 1e-3 and rates[-1] > 0.1


def test_a_rate_that_is_found_before_training_holds_from_the_first_step(loader):
    class Finder(pl.Callback):
        def on_fit_start(self, trainer, module):
            module.hparams.lr = 0.3  # as LearningRateFinder does, after the optimizer was made

    model, rates = MixerClassifier("mixer_nano_32", num_classes=3, lr=0.01), []
    model.on_train_batch_start = lambda batch, i: rates.append(model.optimizers().param_groups[0]["lr"])
    pl.Trainer(**QUIET, max_steps=2, callbacks=[Finder()]).fit(model, loader)
    assert rates == pytest.approx([0.3, 0.15])


class Foreign(pl.LightningModule):
    """Somebody's own module, which knows nothing of this project."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 32 * 32, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((images.shape, images.dtype, labels.dtype))
        return F.cross_entropy(self.linear(images.flatten(1)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_data_module_feeds_any_module(photos):
    from mixer_finetune.backbones import Preprocessing

    module = Foreign()
    data = ImageDataModule(photos, batch_size=16, val_fraction=0.0, preprocessing=Preprocessing(image_size=32))
    pl.Trainer(**QUIET, max_epochs=1).fit(module, data)
    assert module.seen == [((16, 3, 32, 32), torch.float32, torch.int64)] * 3


def test_trainer_predict_gives_probabilities(photos):
    data = ImageDataModule(photos, batch_size=24, test_split="train", val_fraction=0.0, eval_batch_size=20)
    model = MixerClassifier("mixer_nano_32", label_names=["blue", "green", "red"])
    found = torch.cat(pl.Trainer(**QUIET).predict(model, data))
    assert found.shape == (48, 3) and torch.allclose(found.sum(1), torch.ones(48), atol=1e-5)


def test_sources_from_python_are_a_table_tables_or_paths_with_labels(photos):
    paths = sorted(photos.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    table = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "label": labels})
    table = table.cast_column("image", datasets.Image())
    of = {"val_fraction": 0.25, "batch_size": 12}
    by_paths = ImageDataModule((paths, labels), **of)
    by_table, by_tables = ImageDataModule(table, **of), ImageDataModule(datasets.DatasetDict(train=table), **of)
    for data in (by_paths, by_table, by_tables):
        assert data.label_names == ["blue", "green", "red"]
        assert {role: len(split) for role, split in data.splits.items()} == {"train": 36, "val": 12}
        assert np.bincount(data.splits["train"].labels).tolist() == [12, 12, 12]
    with pytest.raises(UserError, match="48 paths but 47 labels"):
        ImageDataModule((paths, labels[:-1])).splits  # noqa: B018


def test_a_model_of_other_classes_is_refused(photos):
    data = ImageDataModule(photos, batch_size=24, val_fraction=0.0)
    with pytest.raises(UserError, match="the model is for 4 classes, but the data has 3"):
        pl.Trainer(**QUIET, max_epochs=1).fit(MixerClassifier("mixer_nano_32", num_classes=4), data)


def test_a_backbone_prepares_and_predicts(photos):
    from PIL import Image

    model = MixerClassifier("mixer_nano_32", label_names=["blue", "green", "red"]).assembled().eval()
    path = photos / "red" / "000.png"
    x = model.preprocessing(path)
    assert x.shape == (3, 32, 32) and torch.equal(x, model.preprocessing(Image.open(path)))
    with torch.no_grad():
        expected = model(x[None]).softmax(-1)[0]
    found = model.predict(path, top_k=2)
    assert list(found) == [["blue", "green", "red"][i] for i in expected.topk(2).indices]
    assert list(found.values()) == pytest.approx(expected.topk(2).values.tolist(), rel=1e-5)

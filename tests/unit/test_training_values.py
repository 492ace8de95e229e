"""What training computes, against loops written out in plain PyTorch around timm's Mixer."""

import io
import math

import datasets
import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from mixer_finetune import MixerClassifier
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.data.sampling import epoch_order
from mixer_finetune.engine.parser import configure
from mixer_finetune.engine.parts import build
from mixer_finetune.randomness import AUGMENT, DROP_PATH, MIX, uniform
from mixer_finetune.training.schedule import WarmupCosine

IMAGES, CLASSES, BATCH, SEED = 24, 3, 8, 5


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """The pictures as a data set on disk, and a model with a head for them."""
    path = tmp_path_factory.mktemp("values")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    table = datasets.Dataset.from_dict(
        {"image": [png(p) for p in pictures], "label": [i % CLASSES for i in range(IMAGES)]}, features=features
    )
    datasets.DatasetDict(train=table).save_to_disk(str(path / "data"))
    torch.manual_seed(1)
    model = MixerClassifier("mixer_nano_32", label_names=list("abc"))
    with torch.no_grad():
        for parameter in model.head.parameters():  # a fresh head is zero, and gives the body no gradient
            parameter.normal_(std=0.5)
    save_model_folder(path / "model", model.assembled(), list("abc"))
    return path


class Note(pl.Callback):
    def __init__(self):
        self.losses, self.epochs = [], []

    def on_train_batch_end(self, trainer, module, *_):
        if module.logged:  # which ends a step
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if trainer.is_last_batch:
            self.epochs.append(float(trainer.callback_metrics["train/loss_epoch"]))


def trained(folder, *options):
    """Losses of the steps, and the weights at the end, of a run as `fit` builds it."""
    cli = configure([
        "--model.backbone", str(folder / "model"), "--data.source", str(folder / "data"), "--trainer.accelerator",
        "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "2", "--data.batch_size", str(BATCH), "--model.lr",
        "0.05", "--seed_everything", str(SEED), "--data.crop_area", "[1,1]", "--data.flip", "false",
        "--data.val_fraction", "0", "--trainer.log_every_n_steps", "1", *options,
    ])  # fmt: skip
    parts = build(cli, folder)
    note = Note()
    parts.trainer.callbacks.append(note)
    parts.trainer.fit(parts.model, parts.data)
    assert note.epochs == pytest.approx([np.mean(note.losses[:3]), np.mean(note.losses[3:])], rel=1e-6)
    return note.losses, parts.model.assembled().state_dict()


class Plain(torch.nn.Module):
    """timm's Mixer, with stochastic depth by given factors."""

    def __init__(self, folder, dtype=torch.float32):
        super().__init__()
        self.mixer = timm.models.mlp_mixer.MlpMixer(
            img_size=32, patch_size=4, num_blocks=8, embed_dim=96, num_classes=CLASSES
        )
        from safetensors.torch import load_file

        self.mixer.load_state_dict(load_file(folder / "model" / "model.safetensors"))
        self.to(dtype)

    def forward(self, x, factors=None):
        x = self.mixer.stem(x)
        for i, block in enumerate(self.mixer.blocks):
            first, second = (1.0, 1.0) if factors is None else (f[:, None, None] for f in factors[i])
            x = x + first * block.mlp_tokens(block.norm1(x).transpose(1, 2)).transpose(1, 2)
            x = x + second * block.mlp_channels(block.norm2(x))
        return self.mixer.head(self.mixer.norm(x).mean(1))


def jittered(pictures, epoch, indices, strength):
    """Brightness, contrast and saturation, an image and a pixel at a time."""
    u = uniform(SEED, AUGMENT, epoch, indices, 10)
    out = []
    for i, index in enumerate(indices):
        x = pictures[index].astype(np.float64) / 255
        brightness, contrast, saturation = 1 + strength * (2 * u[i, 1:4] - 1)
        x = x * brightness
        x = contrast * x + (1 - contrast) * x.mean()
        x = saturation * x + (1 - saturation) * x.mean(-1, keepdims=True)
        out.append(np.clip(x, 0, 1))
    return np.stack(out)


def depth_factors(rate, step):
    """For each block and branch, for each image of the batch."""
    u = uniform(SEED, DROP_PATH, step, np.arange(BATCH), 16)
    factors = torch.empty(8, 2, BATCH)
    for block in range(8):
        drop = rate * block / 7
        for branch in range(2):
            for image in range(BATCH):
                kept = u[image, 2 * block + branch] >= drop
                factors[block, branch, image] = (1 / (1 - drop)) if kept else 0.0
    return factors


def mixed(x, target, epoch, indices):
    """Mixup with shares from Beta(1, 1), which are uniform: by Bailey's formula for a t with two degrees of freedom."""
    u = uniform(SEED, MIX, epoch, indices, 6)
    out, soft = torch.empty_like(x), torch.empty_like(target)
    for i in range(len(x)):
        t = math.sqrt(2 * (1 / (1 - u[i, 2]) - 1)) * math.cos(2 * math.pi * u[i, 3])
        share = (1 + t / math.sqrt(2 + t * t)) / 2
        out[i] = share * x[i] + (1 - share) * x[i - 1]
        soft[i] = share * target[i] + (1 - share) * target[i - 1]
    return out, soft


def plain(folder, pictures, optimizer_of, jitter=0.0, drop_path=0.0, smoothing=0.0, mixup=False, binary=False):
    """Six steps: losses, gradient norms before clipping, and the weights at the end."""
    model, losses, norms = Plain(folder), [], []
    optimizer = optimizer_of(model)
    schedule = CosineAnnealingLR(optimizer, 6)
    for epoch in range(2):
        order = epoch_order(IMAGES, SEED, epoch)
        for i in range(3):
            indices = np.asarray(order[i * BATCH : (i + 1) * BATCH])
            x = jittered(pictures, epoch, indices, jitter) if jitter else pictures[indices] / 255
            x = torch.from_numpy((x - 0.5) / 0.5).permute(0, 3, 1, 2).float()
            labels = torch.from_numpy(indices % CLASSES)
            target = F.one_hot(labels, CLASSES).float()
            if mixup:
                x, target = mixed(x, target, epoch, indices)
            logits = model(x, depth_factors(drop_path, 3 * epoch + i) if drop_path else None)
            target = target * (1 - smoothing) + smoothing / CLASSES
            loss = -(target * logits.log_softmax(-1)).sum(-1).mean()
            if binary:
                p = logits.sigmoid()
                loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses, norms, model.mixer.state_dict()


def matrices_and_others(model):
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1]
    return matrices, [p for name, p in model.named_parameters() if p.ndim <= 1]


def sgd(model):
    matrices, others = matrices_and_others(model)
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def adamw(model):
    matrices, others = matrices_and_others(model)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.003)


def test_six_steps_of_sgd_are_those_of_a_plain_loop(folder, pictures):
    ours, weights = trained(folder, "--model.weight_decay", "0.01")
    losses, norms, expected = plain(folder, pictures, sgd)
    assert 1.5 < max(norms) < 90  # the clipping at 1 takes part, at 100 it would not
    assert len(ours) == 6 and ours == pytest.approx(losses, rel=1e-5)
    for key, value in expected.items():
        assert torch.allclose(weights[key], value, rtol=1e-4, atol=1e-5), key


def test_six_steps_of_adamw_with_smoothing_drop_path_and_jitter_are_those_of_a_plain_loop(folder, pictures):
    options = ("--model.optimizer", "adamw", "--model.lr", "0.003", "--model.weight_decay", "0.1")
    regularised = ("--model.label_smoothing", "0.1", "--model.drop_path", "0.3", "--data.color_jitter", "0.4")
    ours, _ = trained(folder, *options, *regularised)
    losses, _, _ = plain(folder, pictures, adamw, jitter=0.4, drop_path=0.3, smoothing=0.1)
    assert len(ours) == 6 and ours == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_six_steps_with_mixup_are_those_of_a_plain_loop(folder, pictures, loss):
    ours, _ = trained(folder, "--data.mixup", "1", "--model.label_smoothing", "0.1", "--model.loss", loss)
    losses, _, _ = plain(folder, pictures, lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9), jitter=0.0,
                         smoothing=0.1, mixup=True, binary=loss == "binary")  # fmt: skip
    assert len(ours) == 6 and ours == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    "augmented",
    [
        ("--data.color_jitter", "0.2"),
        ("--data.mixup", "0.8", "--data.cutmix", "1", "--data.trivial_augment", "true", "--data.repeats", "2"),
        ("--data.cutmix", "1", "--data.rand_augment", "9", "--data.three_augment", "true"),
    ],
)
def test_micro_batches_give_the_weights_of_whole_batches(folder, augmented):
    options = ("--trainer.precision", "64-true", "--model.drop_path", "0.2", *augmented)
    whole, one = trained(folder, *options)
    _, cut = trained(folder, *options, "--data.micro_batch_size", "3")
    assert len(whole) == 6
    for key, value in one.items():
        assert (cut[key] - value).abs().max() < 1e-12, key


@pytest.mark.parametrize(("warmup", "steps"), [(0, 30), (3, 30), (10, 100)])
def test_the_schedule_is_torchs_linear_warm_up_and_cosine(warmup, steps):
    ours = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = WarmupCosine(ours, warmup, steps)
    cosine = CosineAnnealingLR(theirs, steps - warmup)
    expected = cosine
    if warmup:
        linear = LinearLR(theirs, start_factor=1 / (warmup + 1), total_iters=warmup)
        expected = SequentialLR(theirs, [linear, CosineAnnealingLR(theirs, steps - warmup)], [warmup])
    for _ in range(steps):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        for each in (ours, theirs):
            each.step()
        schedule.step()
        expected.step()
    assert ours.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_warm_up_takes_at_most_a_tenth_of_the_run():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert WarmupCosine(optimizer, 500, 100).warmup_steps == 10
    assert math.isclose(WarmupCosine(optimizer, 500, 5).get_lr()[0], 1.0)

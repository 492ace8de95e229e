"""Distillation, against a loop written out in plain PyTorch around timm's Mixers."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_methods import assert_same, batches, sgd
from test_training_values import CLASSES, Plain, folder, pictures, trained  # noqa: F401
from torch.optim.lr_scheduler import CosineAnnealingLR

from mixer_finetune import MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.training.task import MULTI_LABEL, SINGLE_LABEL

pytestmark = pytest.mark.slow

# In another order than the data's, and one class more.
THEIRS = ["c", "other", "a", "b"]
COLUMNS = [2, 3, 0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model folder at 48 px with statistics of its own, and timm's model of the same weights."""
    path = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(2)
    model = load_backbone("mixer_nano_32", image_size=48, num_classes=4, seed=3)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(std=0.5)
    model.preprocessing = Preprocessing((48, 48), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bilinear")
    save_model_folder(path, model, THEIRS)
    theirs = timm.models.mlp_mixer.MlpMixer(img_size=48, patch_size=4, num_blocks=8, embed_dim=96, num_classes=4)
    theirs.load_state_dict(load_file(path / "model.safetensors"))
    return path, theirs.eval()


def answers(theirs, x):
    """The teacher's logits for images that are normalised by 0.5 and 0.5."""
    shown = x * 0.5 + 0.5
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    larger = F.interpolate(shown, (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        return theirs((larger - mean) / std)[:, COLUMNS]


def plain(folder, pictures, loss_of):  # noqa: F811
    """Six steps of SGD: losses and the weights at the end."""
    model, losses = Plain(folder), []
    (optimizer,) = sgd(model)
    schedule = CosineAnnealingLR(optimizer, 6)
    for x, labels in batches(pictures, torch.float32):
        loss = loss_of(model(x), x, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, model.mixer.state_dict()


def test_soft_distillation_is_that_of_a_plain_loop(folder, pictures, teacher):  # noqa: F811
    path, theirs = teacher

    def loss_of(logits, x, labels):
        t = (answers(theirs, x) / 3).softmax(-1)
        divergence = (t * (t.log() - (logits / 3).log_softmax(-1))).sum(-1).mean()
        return 0.3 * F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.7 * 9 * divergence

    options = ("--model.teacher", str(path), "--model.teacher_weight", "0.7", "--model.teacher_temperature", "3")
    ours = trained(folder, *options, "--model.label_smoothing", "0.1")
    assert_same(ours, plain(folder, pictures, loss_of))


def test_hard_distillation_is_that_of_a_plain_loop(folder, pictures, teacher):  # noqa: F811
    path, theirs = teacher

    def loss_of(logits, x, labels):
        hard = answers(theirs, x).argmax(-1)
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits, hard)

    ours = trained(folder, "--model.teacher", str(path), "--model.teacher_targets", "hard")
    assert_same(ours, plain(folder, pictures, loss_of))


def test_a_teacher_sees_the_mixed_images_and_micro_batches_change_nothing(folder, teacher):  # noqa: F811
    options = ("--trainer.precision", "64-true", "--model.teacher", str(teacher[0]), "--model.drop_path", "0.2")
    options += ("--data.mixup", "0.8", "--data.cutmix", "1", "--data.trivial_augment", "true", "--model.sam_rho", "0.1")
    _, one = trained(folder, *options)
    _, cut = trained(folder, *options, "--data.micro_batch_size", "3")
    for key, value in one.items():
        assert (cut[key] - value).abs().max() < 1e-12, key


def test_divergences_are_those_of_the_formula_and_zero_for_the_teacher_itself():
    s, t = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    p, q = t.softmax(-1), s.softmax(-1)
    assert torch.allclose(SINGLE_LABEL.divergences(s, t), (p * (p / q).log()).sum(-1), rtol=1e-10)
    p, q = t.sigmoid(), s.sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(MULTI_LABEL.divergences(s, t), each.sum(-1), rtol=1e-10)
    for task in (SINGLE_LABEL, MULTI_LABEL):
        assert task.divergences(t, t).abs().max() < 1e-12
    assert MULTI_LABEL.answers(torch.tensor([[1.0, -1.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weight": 0.0}, "teacher_weight must be above 0 and at most 1, got 0.0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be above 0"),
        ({"teacher_targets": "warm"}, "unknown teacher_targets 'warm'; use teacher_targets soft or hard"),
        ({"teacher_targets": "hard", "teacher_temperature": 2.0}, "which no temperature changes"),
    ],
)
def test_what_no_teacher_can_do_is_refused_in_one_line(options, message):
    with pytest.raises(UserError) as caught:
        MixerClassifier("mixer_nano_32", num_classes=3, teacher="nowhere", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "C"], "the data has 1 class (c) that the teacher has not (is 'c' its 'C'?); change teacher"),
        (None, "no teacher: the teacher does not know the names of its classes"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(folder, teacher, tmp_path, names, message):  # noqa: F811
    model = load_backbone("mixer_nano_32", num_classes=3)
    save_model_folder(tmp_path, model, names)
    with pytest.raises(UserError) as caught:
        trained(folder, "--model.teacher", str(tmp_path))
    assert message in str(caught.value)


def test_a_teacher_that_is_missing_or_answers_something_else_is_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="no teacher: no backbone 'nowhere/at/all'"):
        trained(folder, "--model.teacher", "nowhere/at/all")
    model = load_backbone("mixer_nano_32", num_classes=CLASSES)
    model.task = "multi_label"
    save_model_folder(tmp_path, model, list("abc"))
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"]
    with pytest.raises(UserError, match="the teacher is multi_label, but the student is single_label; change teacher"):
        trained(folder, "--model.teacher", str(tmp_path))

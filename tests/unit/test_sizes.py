"""Training at several sizes, against a loop written out around timm's Mixers of each size."""

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_methods import assert_same, sgd
from test_training_values import BATCH, CLASSES, IMAGES, SEED, folder, pictures, trained  # noqa: F401
from torch.func import functional_call
from torch.optim.lr_scheduler import CosineAnnealingLR

from mixer_finetune import MixerClassifier, UserError, load_backbone
from mixer_finetune.augment import crop_batch
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.sampling import epoch_order
from mixer_finetune.data.sizes import SizePlan
from mixer_finetune.randomness import SIZE, uniform

pytestmark = pytest.mark.slow


def cosines(source, target):
    """Values at `source` cell centres of a line to values at `target` ones: least squares by cosines."""
    terms = min(source, target)

    def basis(n):
        centres = (np.arange(n) + 0.5) / n
        return np.cos(np.pi * np.outer(centres, np.arange(terms)))

    return torch.from_numpy(basis(target) @ np.linalg.pinv(basis(source)))


def resized(state, old, new):
    """timm's Mixer weights of an `old` x `old` grid on a `new` x `new` one, differentiably."""
    to_new = torch.kron(cosines(old, new), cosines(old, new))
    to_old = torch.kron(cosines(new, old), cosines(new, old))
    out = dict(state)
    for name, value in state.items():
        if "mlp_tokens.fc1.weight" in name:
            out[name] = value @ to_old.to(value)
        elif "mlp_tokens.fc2" in name:
            out[name] = to_new.to(value) @ value
    return out


def timms(size):
    return timm.models.mlp_mixer.MlpMixer(img_size=size, patch_size=4, num_blocks=8, embed_dim=96, num_classes=CLASSES)


class PlainSizes(torch.nn.Module):
    """timm's Mixer at 32 px, which answers at other sizes by its resized weights."""

    def __init__(self, folder, sizes, dtype=torch.float32):  # noqa: F811
        super().__init__()
        self.mixer = timms(32)
        self.mixer.load_state_dict(load_file(folder / "model" / "model.safetensors"))
        self.to(dtype)
        self.others = [{size: timms(size).to(dtype) for size in sizes}]  # in a list: these have no weights of their own

    def forward(self, x):
        size = x.shape[-1]
        state = dict(self.mixer.named_parameters())
        return functional_call(self.others[0][size], resized(state, 8, size // 4), x)


def plain(folder, pictures, sizes):  # noqa: F811
    """Six steps of SGD with images of these sizes: losses and the weights at the end."""
    model, losses = PlainSizes(folder, set(sizes)), []
    (optimizer,) = sgd(model)
    schedule = CosineAnnealingLR(optimizer, 6)
    for step, size in enumerate(sizes):
        epoch, i = divmod(step, 3)
        indices = epoch_order(IMAGES, SEED, epoch)[i * BATCH : (i + 1) * BATCH].copy()
        x = torch.from_numpy(pictures[indices]).permute(0, 3, 1, 2)
        if size != 32:
            boxes = np.tile([0.0, 0.0, 32.0, 32.0], (BATCH, 1))
            x = crop_batch(x, boxes, (size, size), "bicubic")  # its values are pinned in test_photos
        x = normalize(x, Preprocessing((size, size)))
        labels = torch.from_numpy(indices % CLASSES)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, model.mixer.state_dict()


def drawn(sizes):
    return [sizes[int(len(sizes) * uniform(SEED, SIZE, step, np.zeros(1, int), 1)[0, 0])] for step in range(6)]


def test_sizes_drawn_for_each_batch_are_those_of_a_plain_loop(folder, pictures):  # noqa: F811
    sizes = drawn([32, 40, 48])
    assert len(set(sizes)) == 3
    assert_same(trained(folder, "--model.train_sizes", "[32,40,48]"), plain(folder, pictures, sizes))


@pytest.mark.parametrize("architecture", ["mixer_nano_32", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"])
def test_a_backbone_at_a_further_size_is_the_one_that_is_loaded_at_it(architecture, tmp_path):
    own, others = (32, [(16, 24), (48, 48)]) if architecture == "mixer_nano_32" else (64, [(32, 96)])
    model = load_backbone(architecture, image_size=own, num_classes=3, seed=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.serve((*others, (own, own)))
    save_model_folder(tmp_path, model.float(), list("abc"))
    for size in ((own, own), *others):
        x = torch.randn(2, 3, *size)
        loaded = load_backbone(tmp_path, image_size=size)
        assert loaded.geometry.image_size == size
        difference = (model(x) - loaded(x)).abs().max() / loaded(x).abs().max()
        assert difference < 2e-5, size
    again = load_backbone(tmp_path)
    assert again.geometry == model.geometry and torch.equal(again(x := torch.randn(2, 3, *others[-1])), model(x))


def test_sizes_one_after_another_and_the_last_epoch_at_the_evaluations_are_those_of_a_plain_loop(folder, pictures):  # noqa: F811
    options = ("--model.train_sizes", "[40,48]", "--model.size_order", "listed")
    ours = trained(folder, *options, "--model.final_epochs", "1")
    assert_same(ours, plain(folder, pictures, [40, 40, 48, 32, 32, 32]))


def test_micro_batches_averages_sam_and_recomputed_activations_change_nothing(folder):  # noqa: F811
    options = ("--trainer.precision", "64-true", "--model.train_sizes", "[24,32,48]", "--model.drop_path", "0.2")
    options += ("--data.mixup", "0.8", "--data.cutmix", "1", "--data.trivial_augment", "true", "--model.sam_rho", "0.1")
    _, one = trained(folder, *options)
    _, cut = trained(folder, *options, "--data.micro_batch_size", "3", "--model.checkpoint_activations", "true",
                     "--model.ema_decay", "0.9")  # fmt: skip
    for key, value in one.items():
        assert (cut[key] - value).abs().max() < 1e-12, key


@pytest.mark.parametrize("order", ["drawn", "listed"])
def test_each_size_has_its_share_of_the_steps(order):
    plan = SizePlan(((24, 24), (32, 48), (40, 40)), order, (32, 32), 2, seed=3)
    sizes = [plan.at(step, 1000, 50) for step in range(1000)]
    assert sizes[900:] == [(32, 32)] * 100
    counts = [sizes[:900].count(size) for size in plan.sizes]
    assert counts == [300] * 3 if order == "listed" else min(counts) > 250
    assert (sizes[:900] == sorted(sizes[:900])) is (order == "listed")
    assert plan.narrowest == (24, 24) and plan.largest == (40, 40) and plan.together == ()
    assert plan.at(0, 60, 50) == (32, 32)  # a run that is shorter than its last epochs


class Loader(pl.LightningDataModule):
    """(images, labels) of one size, as anybody's loader gives them."""

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(24, 3, 32, 32, generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(24) % CLASSES), batch_size=8)


def trainer_of(folder, **options):  # noqa: F811
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, enable_model_summary=False, **silent, **options)


def test_images_of_a_loader_that_knows_no_sizes_are_resized_on_the_device(tmp_path):
    model = MixerClassifier("mixer_nano_32", label_names=list("abc"), train_sizes=[32, 40, 48], seed=SEED, lr=0.05)
    seen = []
    model.backbone.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    trainer_of(tmp_path, max_epochs=2).fit(model, Loader())
    assert seen == drawn([32, 40, 48])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sizes": [24, 40]}, "is evaluated at 32 px, but never trains at that size; add it to train_sizes"),
        ({"train_sizes": [32, 33]}, "is not a multiple of mixer_nano_32's patch size 4; use train_sizes 32 or 36"),
        ({"train_sizes": [32, 32]}, "a size stands twice in train_sizes"),
        ({"train_sizes": []}, "train_sizes is empty; leave out train_sizes"),
        ({"final_epochs": 2}, "final_epochs needs sizes to train at before; give train_sizes"),
        ({"size_order": "listed"}, "size_order needs sizes to train at before; give train_sizes"),
        ({"train_sizes": [32], "size_order": "up"}, "unknown size_order 'up'; use size_order drawn or listed"),
        ({"train_sizes": [32], "final_epochs": -1}, "final_epochs must be 0 or more, got -1"),
    ],
)  # fmt: skip
def test_what_no_plan_can_do_is_refused_in_one_line(options, message):
    with pytest.raises(UserError) as caught:
        MixerClassifier("mixer_nano_32", num_classes=3, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_several_sizes_loads_in_timm_at_its_own(folder, tmp_path):  # noqa: F811
    model = MixerClassifier(folder / "model", train_sizes=[16, 32])
    assert model.assembled().geometry.image_sizes == ((16, 16), (32, 32))
    save_model_folder(tmp_path, model.assembled(), list("abc"))
    theirs, x = timms(32).eval(), torch.randn(2, 3, 32, 32)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.allclose(theirs(x), load_backbone(tmp_path)(x), atol=1e-5)
    # At a smaller size of the list by what was trained, not by smaller patches, as other models are.
    smaller = load_backbone(tmp_path, image_size=16)
    assert smaller.origin["resized"]["method"] == "interpolate" and smaller.geometry.image_sizes == ()
    assert load_backbone(folder / "model", image_size=16).origin["resized"]["method"] == "patch"
    with pytest.raises(UserError, match="takes images of"):
        load_backbone(tmp_path)(torch.randn(1, 3, 24, 24))
    # Trained further at one size, it is a model of that size.
    further = MixerClassifier(tmp_path, label_names=list("abc"), lr=0.01)
    assert further.assembled().geometry.image_sizes == ((16, 16), (32, 32))
    trainer_of(tmp_path, max_steps=1).fit(further, Loader())
    assert further.assembled().geometry.image_sizes == ()

"""Training at several sizes, against a loop written out around timm's Mixers of each size."""

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

from mixer_finetune import load_backbone
from mixer_finetune.augment import crop_batch
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.sampling import epoch_order
from mixer_finetune.randomness import SIZE, uniform


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


def plain(folder, pictures, sizes, loss_of=lambda logits, x, labels: F.cross_entropy(logits, labels)):  # noqa: F811
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
        loss = loss_of(model(x), x, labels)
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
    own, others = (32, [(16, 24), (48, 48)]) if architecture == "mixer_nano_32" else (64, [(32, 48), (96, 96)])
    model = load_backbone(architecture, image_size=own, num_classes=3, seed=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.serve((*others, (own, own)))
    save_model_folder(tmp_path, model.float(), list("abc"))
    for size in (*others, (own, own), others[0]):
        x = torch.randn(2, 3, *size)
        loaded = load_backbone(tmp_path, image_size=size)
        assert loaded.geometry.image_size == size
        difference = (model(x) - loaded(x)).abs().max() / loaded(x).abs().max()
        assert difference < 2e-5, size
    again = load_backbone(tmp_path)
    assert again.geometry == model.geometry and torch.equal(again(x := torch.randn(2, 3, *others[1])), model(x))

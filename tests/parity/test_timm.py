"""timm is the oracle: same names, same parameters, same outputs and gradients in float32."""

import pytest
import torch

from mixer_finetune import load_backbone
from mixer_finetune.backbones import VARIANTS

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["mixer_s32_224", "mixer_b16_224"])
def test_logits_and_gradients_equal_timms(name):
    ours = load_backbone(name, num_classes=5)
    torch.nn.init.normal_(ours.head.weight, std=0.02)
    theirs = timm.create_model(name, num_classes=5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    logits, expected = ours(images), theirs(images)
    assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-5)
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(theirs.named_parameters())
    # The token MLP's last bias shifts all channels of a token alike, which the layer norms that follow undo: its gradient is
    # zero but for rounding, so errors are also measured against the whole gradient.
    whole = torch.cat([p.grad.flatten() for p in gradients.values()]).norm()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[key].grad).norm()
        assert error < 1e-5 * max(gradients[key].grad.norm(), 1e-2 * whole), key


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("mixer_nano_32", "mixer_h14_224")])
def test_every_variant_has_timms_parameters(name):
    from mixer_finetune.backbones import Mixer

    with torch.device("meta"):
        ours, theirs = Mixer(name), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_a_saved_model_folder_loads_in_timm_with_equal_outputs(tmp_path):
    from mixer_finetune.publish.model_folder import save_model_folder

    ours = load_backbone("mixer_s32_224", num_classes=3).eval()
    torch.nn.init.normal_(ours.head.weight, std=0.02)
    save_model_folder(tmp_path, ours, ["a", "b", "c"])
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 224, 224)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    config = timm.data.resolve_data_config(model=theirs)
    assert (tuple(config["mean"]), config["interpolation"], config["crop_pct"]) == ((0.5, 0.5, 0.5), "bicubic", 0.875)

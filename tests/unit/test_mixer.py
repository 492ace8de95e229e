import pytest
import torch

from mixer_finetune import UserError, load_backbone
from mixer_finetune.backbones import VARIANTS
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import model_size

# arXiv 2105.01601, Table 1: millions of parameters without the head.
PAPER = {
    "mixer_s32_224": 19, "mixer_s16_224": 18, "mixer_b32_224": 60, "mixer_b16_224": 59,
    "mixer_l32_224": 206, "mixer_l16_224": 207, "mixer_h14_224": 431,
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_are_the_papers(name):
    with torch.device("meta"):
        model = Backbone(name, num_classes=0)
    # The paper rounds; S/32 is 18.59 M and L/16 207.2 M.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PAPER[name], abs=0.7)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_by_arithmetic_are_the_models(name):
    with torch.device("meta"):
        model = Backbone(name, num_classes=10)
    assert model_size(name, num_classes=10)[0] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    # Of timm's result files, which count some element-wise work too.
    ("name", "gmacs"),
    [("mixer_b16_224", 12.62), ("mixer_l16_224", 44.60), ("resmlp_24_224", 5.96), ("gmlp_s16_224", 4.42)],
)
def test_multiply_accumulates_are_the_published_ones(name, gmacs):
    assert model_size(name, num_classes=1000)[1] / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_a_new_head_gives_zero_logits_and_pre_logits_are_one_call_away():
    model = load_backbone("mixer_nano_32", num_classes=7)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), torch.zeros(2, 7))
    assert model.forward_pre_logits(images).shape == (2, VARIANTS["mixer_nano_32"].embed_dim)
    assert torch.equal(load_backbone("mixer_nano_32", num_classes=0)(images), model.forward_pre_logits(images))


def test_fresh_weights_are_a_function_of_the_seed():
    first, again, other = (load_backbone("mixer_nano_32", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stem.proj.weight"], other["stem.proj.weight"])


def test_drop_path_of_keep_zero_leaves_the_image_out_of_a_branch():
    model = load_backbone("mixer_nano_32", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    keep = torch.ones(8, 2, 2)
    assert torch.allclose(model(images, keep), model(images), atol=1e-6)
    keep[:, :, 1] = 0
    only_stem = model.norm(model.stem(images)).mean(0)
    assert torch.allclose(model(images, keep)[1], only_stem[1], atol=1e-6)
    assert not torch.allclose(model(images, keep)[0], only_stem[0], atol=1e-2)


def test_an_image_size_that_is_no_multiple_of_the_patch_names_the_nearest_ones():
    with pytest.raises(UserError, match="224 or 240"):
        load_backbone("mixer_b16_224", image_size=230)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"= \(3, 32, 32\), got \(3, 64, 64\)"):
        load_backbone("mixer_nano_32")(torch.zeros(1, 3, 64, 64))


def test_checkpointed_activations_give_the_same_gradients():
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointed in (False, True):
        model = load_backbone("mixer_nano")
        model.checkpoint_activations = checkpointed
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_compiling_keeps_the_parameters_names():
    from mixer_finetune import MixerClassifier

    plain, compiled = (MixerClassifier("mixer_nano_32", num_classes=3, compile=compile) for compile in (False, True))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert all(block._compiled_call_impl is not None for block in compiled.backbone.blocks)

"""What resizing promises, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from mixer_finetune import UserError, load_backbone, save_model_folder
from mixer_finetune.backbones import resampling
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.resampling import cosine_resampling, resample_tokens
from mixer_finetune.backbones.resize import plan_resize, resize_patch_embedding, resize_weights
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing

pytestmark = pytest.mark.slow  # together half of a minute

FAMILIES = ["mixer_nano_32", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"]


@pytest.fixture
def folder(request, tmp_path):
    """A model folder of that architecture with random weights on a grid of 4 x 3 patches (the nano's: 8 x 6)."""
    model = load_backbone(request.param, num_classes=3, image_size=(32, 24) if "nano" in request.param else (64, 48))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 0.01:
                parameter.normal_(0, 0.1, generator=generator)
    save_model_folder(tmp_path / request.param, model, None)
    return tmp_path / request.param


families = pytest.mark.parametrize("folder", FAMILIES, indirect=True)


def load(folder, image_size=None, resize="auto"):
    """The backbone in float64, its weights resized in float64 too."""
    original = load_backbone(folder).double().eval()
    if image_size is None:
        return original
    geometry, method = plan_resize(original.architecture, original.geometry, image_size, None, None, resize)
    weights = resize_weights(original.state_dict(), original.geometry, geometry, method, original.family.sides)
    resized = Backbone(original.architecture, original.num_classes, geometry).double().eval()
    resized.load_state_dict(weights)
    for key, value in load_backbone(folder, image_size=image_size, resize=resize).state_dict().items():
        assert torch.equal(value, weights[key].float()), key
    return resized


@families
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (3, 2)])
@pytest.mark.slow
def test_block_diagonal_equals_the_mean_over_the_parts_of_the_originals_pre_logits(folder, factors):
    original = load(folder)
    size = tuple(k * side for k, side in zip(factors, original.image_size, strict=True))
    resized = load(folder, image_size=size, resize="block_diagonal")
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    parts = rearrange(image, "b c (k h) (m w) -> (k m) b c h w", k=factors[0], m=factors[1])
    expected = torch.stack([original.forward_pre_logits(part) for part in parts]).mean(0)
    assert (resized.forward_pre_logits(image) - expected).abs().max() < 1e-10


def smooth_tokens(grid, terms, channels, seed=0):
    """Token maps that are cosine polynomials of few terms, sampled at the centres of a grid: (N, 2, C)."""
    coefficients = torch.randn(*terms, 2, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def cosines(n, k):
        return torch.cos(math.pi * (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n * torch.arange(k))

    maps = torch.einsum("rk,sl,klbc->rsbc", cosines(grid[0], terms[0]), cosines(grid[1], terms[1]), coefficients)
    return maps.flatten(0, 1)


def mixing_of(block):
    """What a block does across tokens: its token MLP, or its one linear map across them."""
    (mixing,) = (module for module in block.modules() if isinstance(module, TokenMixing))
    linears = [module for module in mixing.modules() if isinstance(module, TokenLinear)]
    return mixing if len(linears) == 2 else linears[0]


@families
@pytest.mark.parametrize("scale", [(2, 2), (1.5, 3), (0.5, 1), (1, 1 / 3), (1.25, 1)])
def test_interpolated_token_mixing_gives_a_smooth_image_the_response_it_gave_before(folder, scale):
    original = load(folder)
    patch = original.geometry.patch_size
    grid = original.geometry.grid
    target = tuple(round(s * g) for s, g in zip(scale, grid, strict=True))
    resized = load(folder, image_size=(target[0] * patch, target[1] * patch), resize="interpolate")
    terms = tuple(min(a, b) for a, b in zip(grid, target, strict=True))
    pairs = list(zip(map(mixing_of, original.blocks), map(mixing_of, resized.blocks), strict=True))
    for before, after in pairs[:2]:
        channels = original.num_features
        response = before(smooth_tokens(grid, terms, channels))
        got = after(smooth_tokens(target, terms, channels))
        # The response as far as both grids can hold it: all of it when the grid grows, its smooth part when it shrinks.
        assert (got - resample_tokens(response, grid, target)).abs().max() < 1e-10


@families
def test_features_and_interpolate_are_one_function_before_training(folder):
    size = tuple(side * 2 for side in load(folder).image_size)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    by_features = load(folder, image_size=size, resize="features")
    by_interpolation = load(folder, image_size=size, resize="interpolate")
    original = load(folder)
    assert sum(p.numel() for p in by_features.parameters()) == sum(p.numel() for p in original.parameters())
    assert (by_features(images) - by_interpolation(images)).abs().max() < 1e-10


@pytest.mark.parametrize("folder", FAMILIES[:1], indirect=True)
def test_features_can_be_trained_after_an_evaluation(folder):
    with torch.inference_mode():
        load(folder, image_size=(56, 84), resize="features")(torch.randn(1, 3, 56, 84, dtype=torch.float64))
    model = load(folder, image_size=(56, 84), resize="features").train()
    model(torch.randn(1, 3, 56, 84, dtype=torch.float64)).sum().backward()
    assert model.stem.proj.weight.grad is not None


@families
def test_enlarged_by_interpolation_and_back_gives_the_weights_again(folder, tmp_path):
    original = load_backbone(folder)
    large = load_backbone(folder, image_size=tuple(3 * side for side in original.image_size), resize="interpolate")
    save_model_folder(tmp_path / "large", large, None)
    again = load_backbone(tmp_path / "large", image_size=original.image_size, resize="interpolate")
    for key, value in original.state_dict().items():
        assert torch.allclose(again.state_dict()[key], value, atol=1e-6), key


@families
def test_another_patch_size_keeps_the_tokens_and_sees_an_enlarged_image_alike(folder):
    original = load(folder)
    size = tuple(side * 3 // 2 for side in original.image_size)
    resized = load(folder, image_size=size, resize="patch")
    patch = original.geometry.patch_size
    assert resized.geometry.patch_size == patch * 3 // 2 and resized.geometry.grid == original.geometry.grid
    image = torch.randn(1, 3, *original.image_size, dtype=torch.float64)
    parts = rearrange(image, "b c (r p) (s q) -> (b r s) c p q", p=patch, q=patch)
    enlarged = F.interpolate(parts, scale_factor=1.5, mode="bilinear")
    rows = original.geometry.grid[0]
    mosaic = rearrange(enlarged, "(b r s) c p q -> b c (r p) (s q)", b=1, r=rows)
    assert (resized(mosaic) - original(image)).abs().max() < 1e-10


def test_a_smaller_patch_embedding_is_the_least_squares_one():
    weight = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    small = resize_patch_embedding(weight, 8)
    patches = torch.randn(5000, 3, 16, 16, dtype=torch.float64)
    shrunk = F.interpolate(patches, (8, 8), mode="bilinear", antialias=True)

    def error(candidate):
        return (
            (torch.einsum("ecpq,ncpq->ne", candidate, shrunk) - torch.einsum("ecpq,ncpq->ne", weight, patches))
            .square()
            .mean()
        )

    for other in (small * 1.05, small * 0.95, small + 0.05 * torch.randn_like(small)):
        assert error(small) < error(other)


def test_cosine_resampling_keeps_constants_and_is_its_own_pseudo_inverse():
    for source, target in ((7, 14), (14, 7), (5, 8), (1, 4)):
        there, back = cosine_resampling(source, target), cosine_resampling(target, source)
        assert torch.allclose(there.sum(1), torch.ones(target, dtype=torch.float64))
        assert torch.allclose(torch.linalg.pinv(there), back)


def test_grey_images_give_what_they_gave_as_rgb_and_four_channels_work():
    rgb, grey, four = (load_backbone("mixer_nano", in_chans=n).double() for n in (3, 1, 4))
    image = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    # The folded weights are kept in float32.
    assert torch.allclose(grey(image), rgb(image.expand(-1, 3, -1, -1)), atol=1e-5)
    colours = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(four(colours[:, [0, 1, 2, 0]]), rgb(colours), atol=1e-5)
    assert grey.preprocessing.mode == "L" and four.preprocessing.mode == "RGBA"


@pytest.mark.parametrize(
    "options", [{"image_size": 64, "resize": "features"}, {"image_size": 48, "resize": "patch"}, {"in_chans": 1}]
)
def test_what_timm_cannot_express_loads_with_us_again(options, tmp_path):
    model = load_backbone("mixer_nano", **options).eval()
    save_model_folder(tmp_path, model, None)
    again = load_backbone(tmp_path).eval()
    images = torch.randn(2, model.geometry.in_chans, *model.image_size)
    assert torch.equal(again(images), model(images)) and again.geometry == model.geometry


@pytest.mark.parametrize(
    ("size", "patch_size", "method", "grid"),
    [
        (24, None, "patch", (8, 8)),
        ((24, 32), None, "interpolate", (6, 8)),  # patches are square
        (20, None, "interpolate", (5, 5)),  # no whole number of pixels a patch
        (24, 4, "interpolate", (6, 6)),
        (48, None, "interpolate", (12, 12)),
        (48, 6, "patch", (8, 8)),
        ((16, 64), None, "interpolate", (4, 16)),
    ],
)
def test_auto_keeps_the_tokens_of_smaller_images_and_interpolates_the_rest(size, patch_size, method, grid):
    model = load_backbone("mixer_nano", image_size=size, patch_size=patch_size)
    resized = model.origin["resized"]
    assert resized["method"] == method and model.geometry.grid == grid
    assert ("for smaller images" in resized["why"]) == (method == "patch" and size == 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48, "resize": "block_diagonal"}, "whole multiples of the trained 8 x 8 tokens, got 12 x 12"),
        (
            {"image_size": 36, "resize": "patch"},
            "must be a whole multiple of that; use image_size 24 x 24, 32 x 32, 40 x 40",
        ),
        ({"image_size": 34}, "34 is not a multiple of mixer_nano_32's patch size 4; use image_size 32 or 36"),
        ({"image_size": 0}, "image size 0 is not a multiple"),
        (
            {"image_size": 64, "resize": "bilinear"},
            "'bilinear' is no way to resize weights; use resize auto or interpolate",
        ),
        ({"in_chans": 2}, "the input has 1 .* channels, got 2; change in_chans"),
        ({"patch_size": 0}, "the patch size must be 1 or more, got 0; change patch_size"),
    ],
)
def test_an_impossible_size_is_one_line_that_says_what_is_possible(options, message):
    with pytest.raises(UserError, match=message):
        load_backbone("mixer_nano", **options)


@pytest.mark.slow
def test_a_program_can_be_exported_of_tokens_resampled_around_the_mixing():
    model = load_backbone("mixer_nano", image_size=48, resize="features").eval()
    resampling._resampling_on.cache_clear()
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        program = torch.export.export(model, (images,))
        assert torch.allclose(program.module()(images), model(images), atol=1e-5)  # ours computes after it, too

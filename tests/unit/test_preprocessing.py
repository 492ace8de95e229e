"""Evaluation pre-processing against timm's, and what a Preprocessing refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from mixer_finetune import UserError
from mixer_finetune.backbones.cropping import evaluation_crop, evaluation_size
from mixer_finetune.backbones.preprocessing import Preprocessing, denormalize, normalize
from mixer_finetune.images import decode, to_tensor


def noise(rows, columns):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8))


def assert_same_pixels(ours, theirs, std):
    """As far as torch's and PIL's resizes of bytes agree: both cut bicubic's overshoot off after each side."""
    levels = (ours - theirs).abs() * 255 * torch.tensor(std)[:, None, None]
    assert levels.max() < 16.01 and levels.mean() < 0.5  # of 255, on noise; a shifted image of it is 80 off


def cropped(image, preprocessing):
    """The evaluation crop of a PIL image."""
    return evaluation_crop(to_tensor(image)[None], preprocessing)[0]


def timms(preprocessing, image):
    transform = create_transform(
        (3, *preprocessing.image_size),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    return transform(image)


# (size that the backbone takes, share, mode), (rows, columns of the image), the size before the crop.
ROUNDED = [
    # A square: the longer side is rounded down, 40 * 53 / 37 = 57.3 and 40 * 61 / 37 = 65.9.
    ((32, 0.8, "center"), (37, 53), (40, 57)),
    ((32, 0.8, "center"), (61, 37), (65, 40)),
    # The side before the crop is rounded down: 32 / 0.875 = 36.57, 32 / 0.9 = 35.56.
    ((32, 0.875, "center"), (50, 50), (36, 36)),
    ((32, 0.9, "center"), (64, 48), (46, 35)),
    # A rectangle: both sides are rounded to the nearest, 29.2 and 29.53, 37.6, 36.6; 52.5 to the even one.
    (((24, 28), 1.0, "center"), (97, 93), (29, 28)),
    (((24, 28), 1.0, "center"), (58, 55), (30, 28)),
    (((37, 48), 1.0, "center"), (94, 120), (38, 48)),
    (((48, 32), 0.875, "center"), (90, 61), (54, 37)),
    (((24, 40), 0.7, "center"), (70, 76), (52, 57)),
    # Squashed: both sides before the crop are rounded down.
    (((48, 32), 0.875, "squash"), (90, 61), (54, 36)),
    ((32, 0.9, "squash"), (64, 48), (35, 35)),
]


@pytest.mark.parametrize(("settings", "shape", "resized"), ROUNDED)
def test_sizes_are_rounded_as_timm_rounds_them(settings, shape, resized):
    size, crop_pct, crop_mode = settings
    preprocessing = Preprocessing(size, crop_pct=crop_pct, crop_mode=crop_mode)
    image = noise(*shape)
    assert evaluation_size(*shape, preprocessing) == resized
    # A side that is rounded otherwise moves every pixel of this noise.
    assert_same_pixels(preprocessing(image), timms(preprocessing, image), preprocessing.std)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (25, 41)])
def test_called_with_an_image_it_does_what_timm_does_for_evaluation(size, crop_mode, interpolation):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for crop_pct in (1.0, 0.95, 0.875):
        preprocessing = Preprocessing(size, mean, std, interpolation, crop_pct, crop_mode)
        for shape in ((40, 80), (90, 61), (33, 33), (200, 117), (20, 31)):
            image = noise(*shape)
            prepared = preprocessing(image)
            assert prepared.shape == (3, *size) and prepared.dtype == torch.float32
            assert_same_pixels(prepared, timms(preprocessing, image), std)


def test_a_file_a_path_and_an_open_image_are_prepared_alike(tmp_path):
    noise(50, 70).save(tmp_path / "a.png")
    preprocessing = Preprocessing(32)
    expected = normalize(cropped(noise(50, 70), preprocessing), preprocessing)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        assert torch.equal(preprocessing(image), expected)


def test_a_large_jpeg_is_read_as_predict_reads_it(tmp_path):
    noise(640, 960).save(tmp_path / "a.jpg")
    preprocessing = Preprocessing((24, 40), crop_pct=0.5)
    small = decode({"path": str(tmp_path / "a.jpg")}, "a", 80)
    assert small.size == (240, 160)
    assert torch.equal(preprocessing(tmp_path / "a.jpg"), normalize(cropped(small, preprocessing), preprocessing))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_an_image_of_any_kind_is_brought_to_the_channels_of_the_backbone(channels, mode):
    preprocessing = Preprocessing(16).with_channels(channels)
    for kind in ("L", "RGB", "RGBA", "P", "CMYK", "1"):
        image = noise(20, 30).convert(kind)
        expected = cropped(image.convert(mode), preprocessing) / 127.5 - 1
        assert torch.allclose(preprocessing(image), expected, atol=1e-6)


def test_a_batch_is_cropped_as_its_images_are():
    images = [noise(50, 70), noise(50, 70).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for preprocessing in (
        Preprocessing(32, crop_pct=0.9),
        Preprocessing((24, 40)),
        Preprocessing(32, crop_mode="squash"),
    ):
        batch = evaluation_crop(torch.stack([to_tensor(image) for image in images]), preprocessing)
        for ours, image in zip(batch, images, strict=True):
            assert torch.equal(ours, cropped(image, preprocessing))


def test_pixels_come_back_from_what_was_normalised():
    preprocessing = Preprocessing(8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(denormalize(normalize(images, preprocessing), preprocessing), images)


def test_a_file_that_is_no_image_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png can't be decoded \(cannot identify image"):
        Preprocessing()(tmp_path / "text.png")
    with pytest.raises(UserError, match="the image can't be decoded .*floating-point"):
        Preprocessing()(Image.new("F", (8, 8)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"crop_pct": 0.0}, "crop_pct must be from 0.05 to 1, got 0.0"),
        ({"crop_pct": float("nan")}, "crop_pct must be from 0.05 to 1, got nan"),
        ({"crop_pct": 1.1}, "crop_pct must be from 0.05 to 1, got 1.1"),
        ({"interpolation": "lanczos"}, "interpolation must be bicubic or bilinear or nearest, got 'lanczos'"),
        ({"crop_mode": "stretch"}, "crop_mode must be center or squash or border, got 'stretch'"),
        ({"mean": (0.5, 0.5)}, "got 2 and 3 values"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"mean": (float("nan"),) * 3}, "mean must be finite"),
    ],
)
def test_a_value_out_of_range_is_one_line(values, says):
    with pytest.raises(UserError, match=says):
        Preprocessing(32, **values)


def test_settings_alone_need_no_torch_and_no_pil():
    script = (
        "import sys; from mixer_finetune.backbones import Geometry, Preprocessing, Variant; Preprocessing(32)\n"
        "assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

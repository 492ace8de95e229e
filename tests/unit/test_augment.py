import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mixer_finetune.augment import (
    Augmentation,
    augment_batch,
    crop_batch,
    crop_boxes,
    mirror_boxes,
    rotate_batch,
)
from mixer_finetune.augment.auto import NARROW, operate
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.backbones.cropping import evaluation_crop
from mixer_finetune.backbones.preprocessing import normalize
from mixer_finetune.images import BadImage, decode, to_tensor

FOUR = Preprocessing(image_size=32, mean=(0.0,) * 4, std=(1.0,) * 4, crop_pct=1.0)
PLAIN = Preprocessing(image_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0)
EVERYTHING = Augmentation((0.2, 1.0), flip=True, rotation=20.0, color_jitter=0.4, random_erasing=0.5)


@pytest.fixture
def images():
    return torch.randint(0, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def augmented(images, indices, epoch=3, augmentation=EVERYTHING):
    targets, steps = torch.zeros(len(images)), augmentation.steps(PLAIN)
    return augment_batch(images, targets, steps, PLAIN, 7, epoch, np.asarray(indices))[0]


def test_augmentation_of_a_sample_does_not_depend_on_its_batch(images):
    whole = augmented(images, range(16))
    alone = torch.cat([augmented(images[i : i + 1], [i]) for i in range(16)])
    assert torch.allclose(whole, alone, atol=1e-6)
    assert not torch.allclose(whole, augmented(images, range(16), epoch=4), atol=0.01)


def test_crops_lie_inside_the_image_and_keep_the_asked_share_of_its_area():
    boxes = crop_boxes(Augmentation((0.2, 0.8)), 0, 1, np.arange(5000), 30, 60)
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 60).all() and (bottom <= 30).all()
    share = (right - left) * (bottom - top) / 1800
    assert share.max() <= 0.8 + 1e-9 and 0.45 < share.mean() < 0.55
    assert (crop_boxes(Augmentation((1.0, 1.0)), 0, 1, np.arange(3), 30, 60) == [0, 0, 60, 30]).all()


def sampled(images, boxes, size, mode):
    """The same crops by torch's grid_sample, which looks up each pixel on its own."""
    left, top, right, bottom = torch.from_numpy(boxes).float().T
    height, width = images.shape[-2:]
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / width, (right + left) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / height, (bottom + top) / height - 1
    grid = F.affine_grid(theta, [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_the_crops_of_a_batch_are_those_that_are_sampled_pixel_by_pixel(images, size, mode):
    boxes = crop_boxes(Augmentation((0.1, 1.0)), 0, 1, np.arange(16), 32, 32, size)
    assert (crop_batch(images, boxes, size, mode) - sampled(images, boxes, size, mode)).abs().max() / 255 < 5e-6


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
def test_the_crop_of_a_whole_image_is_torchs_resize_of_it(images, mode):
    boxes = np.tile([0.0, 0.0, 32.0, 32.0], (16, 1))
    how = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": mode, "antialias": True}
    expected = F.interpolate(images.float(), (64, 96), **how).clamp(0, 255)
    assert (crop_batch(images, boxes, (64, 96), mode) - expected).abs().max() / 255 < 5e-6


def test_boxes_changed_over_give_the_mirrored_crops_that_the_step_gives(images):
    boxes, indices = crop_boxes(Augmentation((0.1, 1.0)), 7, 3, np.arange(16), 32, 32), np.arange(16)
    for mode in ("bicubic", "bilinear"):
        ours = normalize(crop_batch(images, mirror_boxes(boxes, 7, 3, indices), (32, 32), mode), PLAIN)
        expected = augmented(crop_batch(images, boxes, (32, 32), mode), indices, augmentation=Augmentation(flip=True))
        assert torch.allclose(ours, expected, atol=5e-6)


def test_half_of_the_images_are_mirrored_and_the_rest_left_alone(images):
    out = augmented(images, range(16), augmentation=Augmentation(flip=True))
    plain = normalize(images, PLAIN)
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(out, plain, strict=True)]
    same = [bool(torch.equal(a, b)) for a, b in zip(out, plain, strict=True)]
    assert sum(mirrored) + sum(same) == 16 and 2 <= sum(mirrored) <= 14


def test_a_quarter_turn_is_the_array_turned(images):
    turned = rotate_batch(images.float(), torch.full((16,), 90.0))
    assert torch.allclose(turned, torch.rot90(images.float(), 1, (2, 3)), atol=0.1)


def test_erasing_blanks_the_asked_share_of_images_to_the_mean(images):
    many = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    out = augmented(many, range(2000), augmentation=Augmentation(flip=False, random_erasing=0.3))
    touched = (out == 0).flatten(1).any(1)
    assert 0.25 < touched.float().mean() < 0.35
    assert set(out.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("options", [{"color_jitter": 0.8}, {"three_augment": True}, {"rand_augment": 9}])
def test_colours_change_and_an_alpha_channel_does_not(images, options):
    if "rand_augment" in options:  # turns and shears alpha, too
        names = ("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
        four = torch.cat([images[:1], images[:1, :1]], 1)[0] // 4 + 30
        turned = [operate(four, name, NARROW[name], 20, False, [0.0] * 4) for name in names]
        assert all(torch.equal(each[3], four[3]) and not torch.equal(each[:3], four[:3]) for each in turned)
        return
    four = torch.cat([images, images[:, :1]], 1)
    augmentation = Augmentation((1.0, 1.0), flip=False, **options)
    three = augmented(images, range(16), augmentation=augmentation)
    out = augment_batch(four, torch.zeros(16), augmentation.steps(FOUR), FOUR, 7, 3, np.arange(16))[0]
    assert torch.allclose(out[:, 3], four[:, 3] / 255)
    assert torch.allclose(out[:, :3], three) and not torch.allclose(three, images / 255)


def test_an_option_without_effect_is_not_said_to_be_done():
    assert Augmentation(mix_probability=0.5, rand_augment_ops=3).described() == []
    said = Augmentation(mixup=0.2, mix_probability=0.5, rand_augment=9, rand_augment_ops=3).described()
    assert sorted(said) == ["mix probability 0.5", "mixup 0.2", "rand augment 9", "rand augment ops 3"]


def test_evaluation_crops_the_centre_of_the_shorter_sides_resize():
    pixels = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    pixels[..., 20:60] = 255
    crop = evaluation_crop(pixels, Preprocessing(image_size=32, crop_pct=1.0))
    assert crop.shape == (1, 3, 32, 32) and crop[..., 1:-1].min() > 250


def test_grey_and_four_channel_images_are_decoded_as_such():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(buffer, "PNG")
    record = {"bytes": buffer.getvalue(), "path": None}
    assert to_tensor(decode(record, "x", mode="L")).shape == (1, 6, 8)
    assert to_tensor(decode(record, "x", mode="RGBA"))[:, 0, 0].tolist() == [10, 20, 30, 255]


def test_a_photograph_is_decoded_upright_and_a_damaged_one_is_named():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("L", (20, 10), 200).save(buffer, "JPEG", exif=exif)
    image = decode({"bytes": buffer.getvalue(), "path": "a.jpg"}, "train[0]")
    assert image.size == (10, 20) and image.mode == "RGB"
    with pytest.raises(BadImage, match="a.jpg can't be decoded"):
        decode({"bytes": buffer.getvalue()[:100], "path": "a.jpg"}, "train[0]")


def test_a_large_jpeg_is_decoded_small_only_as_far_as_the_crop_allows():
    buffer = io.BytesIO()
    Image.new("RGB", (1600, 1600)).save(buffer, "JPEG")
    record = {"bytes": buffer.getvalue(), "path": None}
    assert decode(record, "x").size == (1600, 1600)
    assert decode(record, "x", 100).size == (200, 200)
    assert decode(record, "x", 300).size == (800, 800)

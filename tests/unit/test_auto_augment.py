"""TrivialAugment, RandAugment and 3-Augment against torchvision's own."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as kernels
from torchvision.transforms import InterpolationMode

from mixer_finetune.augment import Augmentation, augment_batch
from mixer_finetune.augment.auto import NARROW, WIDE, operate, rand_augment, trivial_augment
from mixer_finetune.augment.three import three_augment
from mixer_finetune.backbones import Preprocessing

FILL = [10.0, 20.0, 30.0]


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("ours", "theirs"), [(WIDE, v2.TrivialAugmentWide), (NARROW, v2.RandAugment)])
def test_each_operation_of_each_strength_is_torchvisions(ours, theirs, image):
    transform = theirs(fill=FILL)
    assert list(ours) == list(transform._AUGMENTATION_SPACE)
    for name, (strengths, signed) in transform._AUGMENTATION_SPACE.items():
        magnitudes = strengths(31, 40, 24)
        for level in (0, 1, 9, 17, 30):
            for negative in (False, True):
                magnitude = 0.0 if magnitudes is None else float(magnitudes[level]) * (-1 if signed and negative else 1)
                expected = transform._apply_image_or_video_transform(
                    image, name, magnitude, InterpolationMode.NEAREST, transform._fill
                )
                result = operate(image, name, ours[name], level, negative, FILL)
                # torchvision's levels are rounded to float32, which may tip a colour to the next whole number.
                rounding = 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0
                assert (result.int() - expected.int()).abs().max() <= rounding, (name, level)


def test_the_numbers_of_a_sample_choose_operation_strength_and_sign(image):
    images = image[None].repeat(3, 1, 1, 1)
    u = torch.tensor([[5.5 / 14, 30.5 / 31, 0.4], [5.5 / 14, 30.5 / 31, 0.6], [0.0, 0.9, 0.9]])
    out, _ = trivial_augment(images, torch.zeros(3), u, FILL)
    assert torch.equal(out[0], kernels.rotate(image, -135.0, fill=FILL))
    assert torch.equal(out[1], kernels.rotate(image, 135.0, fill=FILL))
    assert torch.equal(out[2], image) and not torch.equal(images[0], out[0])  # the input is left alone
    u = torch.tensor([[6.5 / 14, 0.9, 11.5 / 14, 0.9]])
    out, _ = rand_augment(image[None], torch.zeros(1), u, 15, FILL)
    brighter = kernels.adjust_brightness(image, 1 + 0.45)
    assert (out[0].int() - kernels.solarize(brighter, 127.5).int()).abs().max() <= 1


def test_all_operations_are_chosen_equally_often():
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8).expand(5600, -1, -1, -1)
    u = torch.rand(5600, 3, generator=torch.Generator().manual_seed(0))
    counts = np.bincount((u[:, 0] * 14).long().numpy(), minlength=14)
    assert counts.min() > 320  # of 400
    out, _ = trivial_augment(grey[:200], torch.zeros(200), u[:200], FILL)
    assert out.dtype == torch.uint8 and out.shape == (200, 3, 8, 8)


def test_three_augment_makes_a_third_of_the_images_grey_solarised_or_blurred(image):
    images = image[None].repeat(300, 1, 1, 1)
    u = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    out, _ = three_augment(images, torch.zeros(300), u)
    x = image.float()
    grey = (x * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0)
    is_grey = [bool((o - grey).abs().max() < 0.01) for o in out]
    solarised = [bool(torch.equal(o, torch.where(x < 128, x, 255 - x))) for o in out]
    assert 70 < sum(is_grey) < 130 and 70 < sum(solarised) < 130
    for i in range(300):
        if not is_grey[i] and not solarised[i]:
            sigma = 0.1 + 1.9 * float(u[i, 1])
            assert (out[i] - kernels.gaussian_blur(x, 17, sigma)).abs().max() < 1e-3
            assert sigma < 0.4 or out[i].std() < 0.95 * x.std()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("asked", [{"trivial_augment": True}, {"rand_augment": 9}, {"three_augment": True}])
def test_images_of_any_number_of_channels_go_through_alone_as_in_a_batch(channels, asked):
    images = torch.randint(0, 256, (24, channels, 16, 20), dtype=torch.uint8)
    preprocessing = Preprocessing(image_size=(16, 20)).with_channels(channels)
    augmentation = Augmentation(flip=False, **asked)

    def augmented(images, keys):
        steps = augmentation.steps(preprocessing)
        return augment_batch(images, torch.zeros(len(images)), steps, preprocessing, 7, 2, np.asarray(keys))[0]

    whole = augmented(images, range(24))
    assert whole.shape == images.shape and whole.isfinite().all()
    alone = torch.cat([augmented(images[i : i + 1], [i]) for i in range(24)])
    assert torch.allclose(whole, alone, atol=1e-6)
    assert torch.allclose(whole, augmented(images.float(), range(24)), atol=1e-6)

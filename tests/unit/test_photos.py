"""Photos to batches: how far pixels are from a full decode and an exact resize, and which images are refused."""

import io
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mixer_finetune.images
from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.augment import Augmentation, crop_boxes
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.backbones.cropping import cut_out, evaluation_photo
from mixer_finetune.data.batches import DecodedImages, _workers, usable_cores
from mixer_finetune.images import BadImage, open_photo

ORIENTATION = 0x0112


def scene(width, height, seed=0):
    """An image with edges and gradients."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    for x, y, side, color in zip(*rng.integers(0, 300, (3, 12)), rng.integers(0, 256, (12, 3)), strict=True):
        image.paste(tuple(color.tolist()), (int(x), int(y), int(x + side % 60), int(y + side % 60)))
    return image


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def exactly(pixels, box, size, mode):
    """The resize of a box in float64."""
    left, top, right, bottom = box
    crop = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None, :, top:bottom, left:right].double()
    return F.interpolate(crop, size, mode=mode, antialias=True)[0].clamp(0, 255)


def records():
    return [encoded(scene(400, 533)), encoded(scene(533, 400, 1), "PNG"), encoded(scene(300, 260, 2), "WEBP")]


@pytest.mark.parametrize(("mode", "most"), [("bilinear", 1), ("bicubic", 3)])
def test_a_crop_is_an_exact_resize_of_a_full_decode_to_the_stated_levels(mode, most):
    preprocessing, box = Preprocessing((224, 160), interpolation=mode), (20, 30, 251, 230)
    for record in records():
        into = torch.empty(3, 224, 160, dtype=torch.uint8)
        cut_out(open_photo(record, "x"), tuple(map(float, box)), preprocessing, into)
        full = Image.open(io.BytesIO(record["bytes"])).convert("RGB")
        levels = (into - exactly(full, box, (224, 160), mode)).abs()
        assert levels.max() <= most and levels.mean() < 0.35


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_photo_decoded_small_is_that_decoded_whole_to_two_levels_on_average(mode):
    record = encoded(scene(1600, 1200), quality=92)
    preprocessing = Preprocessing(96, interpolation=mode, crop_pct=1.0)
    photo = open_photo(record, "x")
    assert photo.image("RGB", 1200 / 96).size == (400, 300)
    into = torch.empty(3, 96, 96, dtype=torch.uint8)
    evaluation_photo(open_photo(record, "x"), preprocessing, into)
    whole = exactly(Image.open(io.BytesIO(record["bytes"])), (0, 0, 1600, 1200), (96, 128), mode)[..., 16:112]
    levels = (into - whole).abs()
    assert levels.mean() < 1 and levels.max() < 32  # the most at hard edges


def test_torchvisions_decoder_and_pils_give_the_same_pixels(monkeypatch):
    kinds = [*records(), encoded(scene(61, 47).convert("L")), encoded(scene(61, 47), progressive=True)]
    kinds += [encoded(scene(50, 40), subsampling=0), encoded(scene(50, 40).convert("CMYK"))]
    for mode in ("RGB", "L"):
        channels = len(mode)
        ours = [open_photo(record, "x").pixels(mode)[:channels].clone() for record in kinds]
        with monkeypatch.context() as patched:
            patched.setattr(mixer_finetune.images, "_decoder", lambda: None)
            theirs = [open_photo(record, "x").pixels(mode)[:channels].clone() for record in kinds]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert mixer_finetune.images._decoder() is not None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turned_photo_is_cropped_upright(orientation, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    record = encoded(scene(90, 60), kind, exif=exif)
    photo = open_photo(record, "x")
    upright = photo.image()
    assert (photo.height, photo.width) == (upright.height, upright.width)
    into = torch.empty(3, 16, 24, dtype=torch.uint8)
    cut_out(open_photo(record, "x"), (10.0, 5.0, 50.0, 45.0), Preprocessing((16, 24)), into)
    assert (into - exactly(upright, (10, 5, 50, 45), (16, 24), "bicubic")).abs().max() <= 3


# Images of every kind

RED = (200, 30, 40)


def kinds():
    red = Image.new("RGB", (24, 20), RED)
    frames = [Image.new("RGB", (24, 20), "blue")] * 2
    grey = Image.new("L", (24, 20), 90)
    sixteen = Image.fromarray(np.full((20, 24), 90 * 257, np.uint16))
    return {
        "palette": (encoded(red.quantize(4), "PNG"), RED),
        "transparent palette": (encoded(red.quantize(4), "PNG", transparency=3), RED),
        "CMYK": (encoded(red.convert("CMYK"), quality=98), RED),
        "grey and alpha": (encoded(grey.convert("LA"), "PNG"), (90, 90, 90)),
        "alpha": (encoded(red.convert("RGBA"), "PNG"), RED),
        "16 bits": (encoded(sixteen, "PNG"), (90, 90, 90)),
        "16 bits TIFF": (encoded(sixteen, "TIFF"), (90, 90, 90)),
        "1 bit": (encoded(Image.new("1", (24, 20), 1), "PNG"), (255, 255, 255)),
        "animated": (encoded(red, "GIF", save_all=True, append_images=frames), RED),
        "animated WEBP": (encoded(red, "WEBP", save_all=True, append_images=frames, lossless=True), RED),
        "AVIF": (encoded(red, "AVIF", quality=98), RED),
        "JFIF": (encoded(red, quality=98), RED),
        "several photos": (encoded(red, "MPO", save_all=True, append_images=frames, quality=98), RED),
    }


@pytest.mark.parametrize("name", kinds())
def test_an_image_of_any_kind_has_the_right_pixels(name, tmp_path):
    record, colour = kinds()[name]
    (tmp_path / "a.jfif").write_bytes(record["bytes"])
    for source in (record, {"bytes": None, "path": str(tmp_path / "a.jfif")}):
        into = torch.empty(3, 16, 16, dtype=torch.uint8)
        evaluation_photo(open_photo(source, "x"), Preprocessing(16), into)
        assert (into.float() - torch.tensor(colour)[:, None, None]).abs().max() <= 6


def test_twelve_bits_in_sixteen_are_stretched_and_said():
    photo = open_photo(encoded(Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)), "PNG"), "x")
    assert photo.pixels("L").flatten().tolist() == [0, 128, 255] and "taken for 12 bits" in photo.note
    photo = open_photo(encoded(Image.fromarray(np.array([[0, 2048, 4096]], np.uint16)), "PNG"), "x")
    assert photo.pixels("L").flatten().tolist() == [0, 8, 16] and photo.note is None


def test_a_large_image_is_refused_by_the_limit_unless_it_is_decoded_small():
    large = Image.new("RGB", (2000, 1000))
    with pytest.raises(BadImage, match=r"x can't be .*2,000 x 1,000 px are more than .* 1,999,999: .*max_image_pixels"):
        open_photo(encoded(large, "PNG"), "x", max_pixels=1_999_999)
    assert open_photo(encoded(large, "PNG"), "x", max_pixels=2_000_000).pixels().shape[1:] == (1000, 2000)
    photo = open_photo(encoded(large), "x", max_pixels=1_999_999)
    assert photo.pixels(shrink=4.0).shape[1:] == (500, 1000)
    with pytest.raises(BadImage, match="more than the limit"):
        open_photo(encoded(large), "x", max_pixels=1_999_999).pixels()


def test_pils_own_limit_stays_as_it_was_and_does_not_stop_a_large_jpeg(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo = open_photo(encoded(Image.new("RGB", (400, 400))), "x")
    assert photo.pixels().shape[1:] == (400, 400) and Image.MAX_IMAGE_PIXELS == 1000


def damaged(content, rng):
    """A file cut short, or with bytes changed or lost, more often in its head."""
    data, kind = bytearray(content), rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(0, len(data))])
    if kind == 3:
        at = rng.integers(0, len(data))
        del data[at : at + rng.integers(1, 50)]
    else:
        reach = len(data) if kind == 1 else min(len(data), 300)
        for at in rng.integers(0, reach, rng.integers(1, 9)):
            data[at] = rng.integers(256)
    return bytes(data)


def test_a_damaged_file_of_any_kind_is_decoded_or_named_and_nothing_else():
    rng, image, exif = np.random.default_rng(1), scene(80, 60), Image.Exif()
    exif[ORIENTATION], exif[0x011A], exif[0x010F] = 6, 72.0, "maker"
    contents = [encoded(image, exif=exif), encoded(image, progressive=True), encoded(image, "PNG", exif=exif)]
    contents += [encoded(image, kind) for kind in ("WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM", "ICO")]
    contents += [encoded(image.quantize(8), "PNG", transparency=1), encoded(image.convert("CMYK"))]
    contents += [encoded(image, "TIFF", compression="tiff_lzw"), encoded(image, "GIF", save_all=True)]
    into, good = torch.empty(3, 32, 32, dtype=torch.uint8), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about damage
        for i in range(700):
            record = {"bytes": damaged(contents[i % len(contents)]["bytes"], rng)}
            try:
                photo = open_photo(record, f"image {i}")
                if i % 2:
                    evaluation_photo(photo, Preprocessing(32), into)
                else:
                    cut_out(photo, (0.0, 0.0, photo.width / 2, photo.height / 2), Preprocessing(32), into)
                good += 1
            except BadImage as error:
                assert str(error).startswith(f"image {i} can't be decoded (") and "\n" not in str(error)
    assert 100 < good < 600


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError(), OSError("cut"), ZeroDivisionError("x")])
def test_whatever_a_decoder_raises_names_the_image(monkeypatch, error):
    def load(self):
        raise error

    photo = open_photo(encoded(scene(40, 30), "JPEG"), "the one")
    monkeypatch.setattr(type(photo._image), "load", load)
    with pytest.raises(BadImage, match=r"the one can't be decoded \(.+\)"):
        photo.image()


# How an image of another shape is fitted


def boxes(mode, height, width, size=(32, 32), area=(0.2, 0.8)):
    return crop_boxes(Augmentation(area), 0, 1, np.arange(2000), height, width, size, mode).T


def test_squashed_crops_have_the_images_own_shape():
    left, top, right, bottom = boxes("squash", 30, 120)
    ratio = (right - left) / (bottom - top) / 4
    assert left.min() >= 0 and right.max() <= 120 and top.min() >= 0 and bottom.max() <= 30
    assert ratio.min() >= 0.74 and ratio.max() <= 1.35
    share = (right - left) * (bottom - top) / 3600
    assert 0.45 < share.mean() < 0.55


def test_padded_crops_lie_inside_a_side_of_the_image_or_cover_it():
    left, top, right, bottom = boxes("border", 30, 120)
    assert left.min() >= 0 and right.max() <= 120 + 1e-9
    height = bottom - top
    covers = height >= 30
    assert covers.any() and (top[covers] <= 0).all() and (bottom[covers] >= 30).all()
    share = (right - left) * height / 120**2
    assert 0.2 - 1e-9 <= share.min() and share.max() <= 0.8 + 1e-9
    assert crop_boxes(Augmentation((1, 1)), 0, 1, np.arange(1), 30, 120, (32, 32), "border").tolist() == [
        [0, -45, 120, 75]
    ]


def test_what_a_padded_crop_shows_beyond_the_image_has_the_mean_colour():
    preprocessing = Preprocessing(32, mean=(0.1, 0.5, 0.9), crop_mode="border", crop_pct=1.0)
    record = encoded(Image.new("RGB", (120, 30), RED), "PNG")
    trained, evaluated = torch.empty(2, 3, 32, 32, dtype=torch.uint8)
    cut_out(open_photo(record, "x"), (0.0, -45.0, 120.0, 75.0), preprocessing, trained)
    evaluation_photo(open_photo(record, "x"), preprocessing, evaluated)
    assert torch.equal(trained, evaluated)
    assert trained[:, 12:20].float().mean((1, 2)).tolist() == list(RED)
    for border in (trained[:, :12], trained[:, 20:]):
        assert border.float().mean((1, 2)).tolist() == [26, 128, 230]


@pytest.fixture
def wide(tmp_path):
    """A folder of wide images, red in the middle and blue at both ends."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            image = Image.new("RGB", (120, 40), "blue")
            image.paste("red", (40, 0, 80, 40))
            image.save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("fit", "blue"), [("crop", 0.0), ("squash", 2 / 3), ("pad", 2 / 9)])
def test_fit_is_one_choice_for_training_and_evaluation(wide, fit, blue):
    prepared = Preprocessing(36, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0, interpolation="bilinear")
    data = ImageDataModule(
        str(wide), fit=fit, crop_area=(1.0, 1.0), flip=False, val_fraction=0.5, num_workers=0, preprocessing=prepared
    )
    assert data.preprocessing.crop_mode == {"crop": "center", "squash": "squash", "pad": "border"}[fit]
    for loader, training in ((data.train_dataloader(), True), (data.val_dataloader(), False)):
        images = data.prepare(next(iter(loader)), training).images
        if training and fit == "crop":  # the crop of the whole image is squashed
            assert images[:, 2].mean() == pytest.approx(2 / 3, abs=0.02)
        else:
            assert images[:, 2].mean() == pytest.approx(blue, abs=0.02)
            assert images[:, 0].mean() == pytest.approx({"crop": 1.0, "squash": 1 / 3, "pad": 1 / 9}[fit], abs=0.02)


def test_an_unknown_fit_is_one_line(wide):
    with pytest.raises(UserError, match="unknown fit 'stretch'"):
        ImageDataModule(str(wide), fit="stretch")


def test_timm_reads_the_fit_from_the_configuration():
    from timm.data import create_transform

    prepared = Preprocessing(32, crop_mode="border", crop_pct=1.0)
    config = prepared.to_pretrained_cfg()
    assert Preprocessing.from_pretrained_cfg(config, (32, 32)) == prepared
    names = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    theirs = create_transform(tuple(config["input_size"]), **{name: config[name] for name in names})(scene(90, 40))
    levels = (prepared(scene(90, 40)) - theirs).abs() * 127.5
    assert levels.max() <= 3.01 and levels.mean() < 0.3


# What the machine has


def dataset(wide):
    return DecodedImages(ImageDataModule(str(wide), val_fraction=0).splits["train"], Preprocessing(224))


class Batches:
    largest = 100

    def __len__(self):
        return 50


def test_workers_follow_the_cores_and_the_shared_memory(wide, monkeypatch):
    import mixer_finetune.data.batches as batches

    batch = 100 * 3 * 224 * 224
    monkeypatch.setattr(batches, "usable_cores", lambda: 12)
    for memory, processes, expected in (
        (float("inf"), 1, (12, 4)),
        (float("inf"), 4, (3, 4)),
        (float("inf"), 100, (1, 4)),
        (2 * 12 * 3 * batch, 1, (12, 2)),
        (2 * 5 * 2 * batch, 1, (5, 1)),
        (batch, 1, (0, None)),
    ):
        monkeypatch.setattr(batches, "_shared_memory", lambda memory=memory: memory)
        assert _workers(dataset(wide), Batches(), None, processes) == expected
    monkeypatch.setattr(batches, "_shared_memory", lambda: float("inf"))
    assert _workers(dataset(wide), Batches(), 3, 1) == (3, 4)
    assert _workers(dataset(wide), Batches(), 0, 1) == (0, None)
    monkeypatch.undo()
    assert usable_cores() >= 1

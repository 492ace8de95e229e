import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixer_finetune.images import BadImage, as_mode, decode


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_over_the_whole_range(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp), kind), "ramp"))
    assert (np.abs(pixels[..., 0].ravel() - np.arange(256.0)) <= 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_other_kind_of_image_is_decoded_to_the_channels_asked_for(mode):
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    for wanted, channels in (("L", ()), ("RGB", (3,)), ("RGBA", (4,))):
        image = decode(encoded(Image.new("RGB", (5, 4), "red").convert(mode), kind), "red", mode=wanted)
        assert np.asarray(image).shape == (4, 5, *channels)


def test_floating_point_pixels_are_refused_with_the_reason():
    with pytest.raises(BadImage, match="no fixed range"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "f")


ORIENTATION = 0x0112


@pytest.mark.parametrize("orientation", range(9))
def test_an_image_is_turned_as_pil_itself_turns_it(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(buffer))
    assert np.array_equal(decode({"bytes": buffer.getvalue()}, "turned"), expected)
    assert np.array_equal(as_mode(Image.open(buffer), "RGB"), expected)


@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHIhH", 0x0128, 8, 1, -5, 0),  # a unit of resolution below zero
        struct.pack("<HHI4s", 0x011A, 2, 4, b"abc"),  # a resolution that is text
    ],
)
def test_a_photograph_with_an_odd_tag_beside_its_orientation_is_turned(odd):
    tags = [struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0), odd]
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 6), "red").save(buffer, "JPEG", exif=block)
    assert decode({"bytes": buffer.getvalue()}, "odd").size == (6, 9)


def test_a_damaged_file_is_named_with_the_reason(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(buffer, "JPEG")
    for content in (buffer.getvalue()[:700], b"JFIF" + buffer.getvalue(), b""):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(BadImage, match=r"bad\.jpg can't be decoded \(.+\)"):
            decode({"path": str(tmp_path / "bad.jpg")}, "x")

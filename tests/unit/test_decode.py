import io

import numpy as np
import pytest
from PIL import Image

from mixer_finetune.images import BadImage, decode


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

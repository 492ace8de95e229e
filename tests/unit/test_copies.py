"""Copies of images: the same pixels, nearly the same, mirrored."""

import io

import numpy as np
import pytest
from PIL import Image

from mixer_finetune.data import copies
from mixer_finetune.data.copies import groups_of, identical, near_pairs
from mixer_finetune.data.facts import facts_of
from mixer_finetune.data.folders import FileRecords
from mixer_finetune.data.sources import Split


def smooth(n, seed=0, side=16):
    """Small copies as photos have them: mostly low frequencies."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in coarse]
    )


def split_of(folder, images):
    folder.mkdir(exist_ok=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    records = FileRecords(str(folder), list(images))
    return Split("train", records, "image", np.zeros(len(images), np.int64), np.arange(len(images)))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("leaf", [512, 8])
def test_near_pairs_are_all_those_that_a_loop_over_all_pairs_finds(mirrored, leaf, monkeypatch):
    monkeypatch.setattr(copies, "_LEAF", leaf)
    monkeypatch.setattr(copies, "_AT_ONCE", 2)
    rng = np.random.default_rng(1)
    small = smooth(70)
    noisy = np.clip(small[:30].astype(int) + rng.normal(0, rng.uniform(1, 14, (30, 1, 1, 1)), small[:30].shape), 0, 255)
    noisy = noisy.astype(np.uint8)
    small = np.concatenate([small, noisy[:, :, ::-1] if mirrored else noisy])
    small[5] = 77  # flat: near to none
    expected = {}
    for i in range(len(small)):
        for j in range(i + 1, len(small)):
            a, b = (small[k].astype(np.float64) for k in (i, j))
            if min(a.std(), b.std()) < copies.FLAT:
                continue
            a = a[:, ::-1] if mirrored else a
            a, b = ((x - x.mean()) / np.linalg.norm(x - x.mean()) for x in (a, b))
            if (distance := np.linalg.norm(a - b)) <= 0.15:
                expected[i, j] = distance
    assert 8 < len(expected) < 30
    pairs, distances = near_pairs(small, 0.15, mirrored)
    assert set(map(tuple, pairs.tolist())) == set(expected)
    np.testing.assert_allclose(distances, [expected[tuple(pair)] for pair in pairs.tolist()], atol=1e-5)


def test_of_many_frames_of_one_film_not_all_pairs_are_noted_but_one_group(monkeypatch):
    monkeypatch.setattr(copies, "_LEAF", 64)
    frames = np.repeat(smooth(1), 600, axis=0)
    frames[:, 0, 0, 0] = np.arange(600) % 200
    pairs, _ = near_pairs(frames)
    assert len(pairs) < 600 * 599 / 8
    (group,) = groups_of(pairs)
    assert group.tolist() == list(range(600))


def test_groups_are_what_pairs_join():
    groups = groups_of(np.array([[4, 9], [1, 2], [2, 7], [7, 1], [9, 3]]))
    assert [group.tolist() for group in groups] == [[1, 2, 7], [3, 4, 9]]


def test_identical_rows_are_grouped_and_rows_of_zeros_are_not():
    hashes = np.zeros((7, 16), np.uint8)
    hashes[1, 3] = hashes[4, 3] = hashes[6, 3] = 9
    hashes[2, 0] = hashes[3, 0] = 1
    assert [group.tolist() for group in identical(hashes)] == [[1, 4, 6], [2, 3]]


def test_the_same_pixels_are_identical_in_any_file_format_and_other_encodings_are_near(tmp_path):
    photo = Image.fromarray(smooth(2, side=60)[0])
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = photo.convert("RGBA")
    clear.putalpha(100)
    split = split_of(
        tmp_path / "images",
        {
            "a.png": encoded(photo),
            "b.bmp": encoded(photo, "BMP"),
            "c.webp": encoded(photo, "WEBP", lossless=True),
            "d.jpg": encoded(photo, "JPEG", quality=70),
            "e.png": encoded(photo.resize((45, 50))),
            "f.tif": encoded(turned, "TIFF", exif=exif),  # upright it is the same
            "g.png": encoded(Image.fromarray(smooth(2, side=60)[1])),
            "h.png": encoded(clear),
            "i.png": b"no image",
            "j.png": encoded(Image.new("RGB", (30, 20), (9, 9, 9))),
        },
    )
    facts = facts_of(split, threads=2)
    assert [group.tolist() for group in identical(facts.pixels)] == [[0, 1, 2, 5]]
    assert list(facts.bad) == [8] and "i.png can't be decoded" in facts.bad[8]
    assert facts.sizes[[0, 4, 8, 9]].tolist() == [[60, 60], [45, 50], [0, 0], [30, 20]]
    assert facts.contrast[9] == 0 and facts.contrast[0] > 20
    pairs, _ = near_pairs(facts.small)
    assert [group.tolist() for group in groups_of(pairs)] == [[0, 1, 2, 3, 4, 5, 7]]
    near_pairs(facts.small[:1])  # a single image has no pair

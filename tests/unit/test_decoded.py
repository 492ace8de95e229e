"""Small images decoded once, into memory or a file that processes share."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_finetune import ImageDataModule
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.data import decoded
from mixer_finetune.data.decoded import decoded_pixels


@pytest.fixture
def split(tmp_path):
    def make(name="images", sizes=((20, 24),) * 6):
        for i, size in enumerate(sizes):
            folder = tmp_path / name / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        return ImageDataModule(str(tmp_path / name), val_fraction=0).splits["train"]

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "_folder", lambda: tmp_path / "cache" / "decoded")
    monkeypatch.setattr(decoded, "SHARED_FROM", 0)
    return tmp_path / "cache" / "decoded"


def expected(split):
    images = [Image.open(record["path"] or 0) for record in split.image_records(np.arange(len(split)))]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def test_a_few_images_are_kept_in_memory(split):
    assert torch.equal(decoded_pixels(split(), Preprocessing(32)), expected(split()))


def test_many_are_decoded_once_into_a_file_that_is_mapped(split, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mixer_finetune")
    one = split()
    assert torch.equal(decoded_pixels(one, Preprocessing(32)), expected(one))
    (file,) = cache.iterdir()
    assert file.stat().st_size == 6 * 3 * 20 * 24 and f"processes share: {file} (0 MB)" in caplog.text
    monkeypatch.setattr(decoded, "write_atomically", None)  # it is not written again
    pixels = decoded_pixels(one, Preprocessing(64))
    assert torch.equal(pixels, expected(one))
    assert str(file) in open("/proc/self/maps").read()


def test_other_images_and_other_channels_have_another_file(split, cache):
    first = split("one")
    decoded_pixels(first, Preprocessing(32))
    decoded_pixels(first.take(np.arange(4), "four"), Preprocessing(32))
    decoded_pixels(first.take(np.array([1, 0, 2, 3, 4, 5]), "reordered"), Preprocessing(32))
    decoded_pixels(first, Preprocessing(32).with_channels(1))
    assert len(list(cache.iterdir())) == 4


def test_a_file_that_was_cut_short_is_written_anew(split, cache):
    decoded_pixels(split(), Preprocessing(32))
    (file,) = cache.iterdir()
    os.truncate(file, 100)
    assert torch.equal(decoded_pixels(split(), Preprocessing(32)), expected(split()))


def test_without_room_on_the_disk_it_says_what_it_does_instead(split, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mixer_finetune")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "_reserve", full)
    assert torch.equal(decoded_pixels(split(), Preprocessing(32)), expected(split()))
    assert "into the memory of each process" in caplog.text and not list(cache.iterdir())
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 100)
    assert decoded_pixels(split(), Preprocessing(32)) is None
    assert "they are decoded anew in each epoch" in caplog.text


@pytest.mark.parametrize("sizes", [((20, 24),) * 5 + ((24, 20),), ((40, 20),) * 4, ((100, 100),) * 4])
def test_images_of_several_sizes_or_large_ones_are_not_kept(split, cache, sizes):
    assert decoded_pixels(split(sizes=sizes), Preprocessing(32)) is None
    assert not cache.exists() or not list(cache.iterdir())


def test_padded_images_are_kept_only_where_there_is_no_border(split):
    assert decoded_pixels(split(), Preprocessing((40, 48), crop_mode="border")) is not None
    assert decoded_pixels(split(), Preprocessing(48, crop_mode="border")) is None


def test_a_damaged_image_is_left_to_the_workers_who_name_it(split, cache):
    one = split()
    with open(one.image_records(np.array([3]))[0]["path"], "r+b") as file:
        file.truncate(60)
    assert decoded_pixels(one, Preprocessing(32)) is None and not list(cache.iterdir())

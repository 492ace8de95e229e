"""The report's parts on images: mistakes with their evidence, and pairs of classes that are confused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.cropping import evaluation_crop
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.sources import Split
from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.explain import affordable, evidence, occlusion_side
from mixer_finetune.evaluation.measures import ConfusionMatrix, most_confused
from mixer_finetune.evaluation.mosaics import overlay
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.images import BadImage, decode, to_image, to_tensor

MISTAKES = 12
PAIRS, IMAGES_OF_A_PAIR = 5, 6
_PLACES = ("first", "second", "third", "fourth", "fifth")


def image_sections(
    predictions: Predictions,
    matrix: ConfusionMatrix,
    backbone: Backbone,
    split: Split,
    method: str,
    say: Callable[[str], None],
) -> list[str]:
    """The most confident mistakes with their evidence, and the most confused pairs.

    Args:
        predictions: Of the evaluated split; some are wrong.
        matrix: Of them.
        backbone: In evaluation mode.
        split: The evaluated one.
        method: Of explanation.
        say: Is told what takes time.
    """
    return [
        _mistakes_section(predictions, backbone, split, method, say),
        page.section("Most confused pairs", _pairs(predictions, matrix, split, backbone.preprocessing)),
    ]


def _mistakes_section(
    predictions: Predictions, backbone: Backbone, split: Split, method: str, say: Callable[[str], None]
) -> str:
    crops = {
        row: to_image(evaluation_crop(to_tensor(image)[None], backbone.preprocessing)[0])
        for row in predictions.mistakes()[:MISTAKES].tolist()
        if (image := _decoded(split, predictions, row, backbone.preprocessing)) is not None
    }
    effort = affordable(backbone, len(crops))
    explained = list(crops)[: effort.images]
    heats: dict[int, NDArray[np.float32]] = {}
    note = ""
    if explained:
        how = _how(method, backbone, effort.steps)
        say(f"explaining {len(explained)} mistakes ({how})")
        heats = dict(zip(explained, _heats(predictions, backbone, crops, explained, method, effort.steps), strict=True))
        which = "each image" if len(explained) == len(crops) else f"each of the first {len(explained)} images"
        note = f"<p>Beside {which}, where the evidence for the answer lies ({how}).</p>"
    cards = []
    for row, crop in crops.items():
        seen = [crop, overlay(crop, heats[row])] if row in heats else [crop]
        cards.append(page.card([page.img(page.thumbnail(image)) for image in seen], _caption(predictions, row)))
    if lost := min(len(predictions.mistakes()), MISTAKES) - len(crops):
        note += f"<p>{lost} more can't be shown: the data no longer holds the images that were evaluated.</p>"
    return page.section(f"The {len(cards)} most confident mistakes", note + page.row(cards, "card"))


def _how(method: str, backbone: Backbone, steps: int) -> str:
    """A method of explanation and how finely it was done, in words."""
    if method == "occlusion":
        side = occlusion_side(backbone, steps)
        return f"occlusion, squares of {side} x {side} px"
    return f"{method.replace('_', ' ')}, {steps} steps"


def _heats(
    predictions: Predictions,
    backbone: Backbone,
    crops: dict[int, Image.Image],
    rows: Sequence[int],
    method: str,
    steps: int,
) -> NDArray[np.float32]:
    """The evidence for the answer that each row got, (rows, H, W)."""
    device = backbone.stem.proj.weight.device
    images = normalize(torch.stack([to_tensor(crops[row]) for row in rows]), backbone.preprocessing).to(device)
    answers = torch.from_numpy(predictions.top[rows, 0]).to(device)
    heats: NDArray[np.float32] = evidence(backbone, images, answers, method, steps).cpu().numpy()
    return heats


def _caption(predictions: Predictions, row: int) -> str:
    """The true class, what it was called, and what came second, or where the true class came."""
    true, called = (predictions.names[i] for i in (predictions.labels[row], predictions.top[row, 0]))
    place = np.flatnonzero(predictions.top[row] == predictions.labels[row])
    at = int(place[0]) if len(place) else 1
    second = ""
    if at < min(predictions.top.shape[1], len(_PLACES)):
        guess, sure = predictions.names[predictions.top[row, at]], predictions.probabilities[row, at]
        second = f"; {_PLACES[at]} guess {page.text(guess)} ({sure:.0%})"
    return (
        f"<b>{page.text(true)}</b>, called {page.text(called)} ({predictions.confidence[row]:.0%}){second}"
        f"<br><small>{page.text(Path(predictions.files[row]).name)}</small>"
    )


def _pairs(predictions: Predictions, matrix: ConfusionMatrix, split: Split, preprocessing: Preprocessing) -> str:
    figures = []
    for pair in most_confused(matrix, PAIRS):
        (rows,) = np.nonzero((predictions.labels == pair.true) & (predictions.top[:, 0] == pair.predicted))
        worst = rows[np.argsort(-predictions.confidence[rows], kind="stable")][:IMAGES_OF_A_PAIR]
        found = (_decoded(split, predictions, row, preprocessing) for row in worst.tolist())
        pictures = "".join(page.img(page.thumbnail(image)) for image in found if image is not None)
        true, called = (page.text(predictions.names[i]) for i in (pair.true, pair.predicted))
        figures.append(
            f'<figure class="pair"><figcaption>{true}, called {called}: {pair.images:,}</figcaption>{pictures}</figure>'
        )
    return "".join(figures)


def _decoded(split: Split, predictions: Predictions, row: int, preprocessing: Preprocessing) -> Image.Image | None:
    return decoded_image(split, predictions.files[row], int(predictions.indices[row]), preprocessing)


def decoded_image(split: Split, file: str, index: int, preprocessing: Preprocessing) -> Image.Image | None:
    """An image of a split; None where it can't be decoded, or the split no longer has that file at its place."""
    if index >= len(split) or split.image_name(index) != file:
        return None
    size = max(math.ceil(max(preprocessing.image_size) / preprocessing.crop_pct), page.THUMBNAIL)
    try:
        return decode(split.image_records(np.array([index]))[0], file, size, preprocessing.mode)
    except BadImage:
        return None

"""What becomes of a task's answers: their file, their figures and their parts of the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.data.sources import Split
from mixer_finetune.evaluation.label_measures import label_calibration_error, label_intervals
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.measures import ConfusionMatrix, calibration, intervals
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.report_classes import class_sections
from mixer_finetune.evaluation.report_images import image_sections
from mixer_finetune.evaluation.report_labels import label_image_sections, label_sections
from mixer_finetune.training.judgement import judge_answers

ImageSections = Callable[[Any, Backbone, Split, str, Callable[[str], None]], list[str]]


@dataclass(frozen=True)
class Kind:
    """What a task's answers become.

    Attributes:
        answers: The class that holds them: `Predictions` or `LabelSets`.
        measured: Answers to 95% intervals of the metrics, and the calibration error.
        guessing: Number of classes to the loss of an answer that knows nothing.
        judged: (answers, calibration error) to sentences on them.
        class_sections: Answers to the report's parts on classes.
        image_sections: (answers, backbone, split, method, say) to its parts on images.
    """

    answers: Any
    measured: Callable[[Any], tuple[dict[str, tuple[float, float]], float]]
    guessing: Callable[[int], float]
    judged: Callable[[Any, float | None], list[str]]
    class_sections: Callable[[Any], list[str]]
    image_sections: ImageSections


def _judged(found: Predictions, calibration_error: float | None) -> list[str]:
    matrix = ConfusionMatrix.of(found)
    counts = zip(found.names, matrix.right.tolist(), matrix.labelled.tolist(), strict=True)
    right = {name: (hits, n) for name, hits, n in counts}
    return judge_answers(right, calibration_error, float(found.confidence.mean())) if len(found) else []


KINDS = {
    "single_label": Kind(
        answers=Predictions,
        measured=lambda found: (intervals(found), calibration(found)[1]),
        guessing=math.log,
        judged=_judged,
        class_sections=lambda found: class_sections(found, ConfusionMatrix.of(found)),
        image_sections=lambda found, *rest: image_sections(found, ConfusionMatrix.of(found), *rest),
    ),
    "multi_label": Kind(
        answers=LabelSets,
        measured=lambda found: (label_intervals(found), label_calibration_error(found)),
        guessing=lambda classes: classes * math.log(2),
        judged=lambda found, calibration_error: [],
        class_sections=label_sections,
        image_sections=label_image_sections,
    ),
}

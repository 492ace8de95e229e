"""A run judges itself: from rows of metrics.csv to sentences."""

import math

import pytest

from mixer_finetune.training.judgement import Epochs, judge_answers, judge_training


def rows(train_loss, train_accuracy, dev_loss, dev_accuracy):
    names = ("train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy")
    found = []
    for epoch, values in enumerate(zip(train_loss, train_accuracy, dev_loss, dev_accuracy, strict=True), start=1):
        found.append({"step": str(10 * epoch - 5), "epoch": str(epoch), "train/loss": "1.0", "val/loss": ""})
        row = {name: str(value) for name, value in zip(names, values, strict=True)}
        found.append({"step": str(10 * epoch), "epoch": str(epoch), **row})
    return found


def test_epochs_are_those_in_which_both_were_measured():
    epochs = Epochs.of(rows([2, 1], [0.1, 0.5], [2, 1.5], [0.2, 0.4]))
    assert epochs.number == [1, 2] and epochs.dev_loss == [2, 1.5] and epochs.train_accuracy == [0.1, 0.5]


def test_nothing_is_said_where_there_is_nothing_to_say():
    good = rows([2.0, 0.5, 0.2, 0.15], [0.3, 0.9, 0.95, 0.96], [1.0, 0.4, 0.30, 0.295], [0.6, 0.9, 0.95, 0.95])
    assert judge_training(good, guessing=math.log(10), lr=0.1) == []
    assert judge_training([], math.log(10)) == judge_training(good[:2], math.log(10)) == judge_answers({}) == []


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        (  # the rate far too low: it stays at ln(10)
            ([2.30, 2.30, 2.29], [0.1, 0.1, 0.11], [2.30, 2.30, 2.29], [0.1, 0.1, 0.1]),
            ["The training loss hardly moved (2.30 to 2.29; guessing has 2.30): the learning rate of 0.1 is too low"],
        ),
        (  # too low: neither is learnt
            ([2.0, 1.4, 1.33], [0.3, 0.5, 0.54], [2.0, 1.36, 1.34], [0.3, 0.53, 0.55]),
            ["At the end only 54% of the training images were answered rightly"],
        ),
        (  # too short
            ([2.0, 1.0, 0.3], [0.3, 0.7, 0.95], [2.0, 1.2, 0.6], [0.3, 0.6, 0.93]),
            ["The dev loss was still falling at the end (1.20 to 0.60 in the last epoch): train longer, with "
             "--trainer.max_epochs 6."],
        ),
        (  # by heart
            ([1.0, 0.3, 0.01], [0.6, 0.9, 1.0], [1.0, 0.8, 1.1], [0.6, 0.75, 0.76]),
            ["The dev loss was lowest in epoch 2 (0.80) and rose to 1.10", "Training accuracy (100.0%) is far above"],
        ),
        (  # augmentation
            ([1.0, 0.5, 0.4], [0.6, 0.9, 0.92], [0.5, 0.2, 0.2], [0.9, 0.97, 0.97]),
            ["Dev accuracy (97.0%) is above training accuracy (92.0%): that is as it should be"],
        ),
    ],
)  # fmt: skip
def test_a_run_is_told_what_its_curves_show(curves, expected):
    said = judge_training(rows(*curves), guessing=math.log(10), lr=0.1)
    assert len(said) == len(expected)
    for sentence, beginning in zip(said, expected, strict=True):
        assert sentence.startswith(beginning)


def test_a_run_that_was_stopped_is_not_told_to_train_longer():
    falling = rows([2.0, 1.0, 0.3], [0.3, 0.7, 0.95], [2.0, 1.2, 0.6], [0.3, 0.6, 0.93])
    assert judge_training(falling, math.log(10), ended_by="max_time") == []


def test_failing_classes_are_named_with_their_counts():
    right = {"cat": (9, 10), "dog": (3, 10), "eel": (0, 2), "fox": (2, 10), "gnu": (100, 100)}
    (said,) = judge_answers(right)
    assert said.startswith("2 classes fail against 86% over all: fox (2 of 10), dog (3 of 10).")


@pytest.mark.parametrize(
    ("confidence", "how"), [(0.99, "surer than it is right"), (0.7, "right more often than it is sure")]
)
def test_probabilities_that_are_off_are_said_to_be(confidence, how):
    (said,) = judge_answers({"cat": (90, 100)}, calibration_error=0.09, confidence=confidence)
    assert said.startswith("Its probabilities are off by 9 points on average") and how in said
    assert judge_answers({"cat": (90, 100)}, calibration_error=0.04, confidence=confidence) == []

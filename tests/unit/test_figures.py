"""Curves and confusion matrix: what they show, and names that matplotlib can't take as they are."""

import csv
import io
import warnings

import numpy as np
import pytest
from matplotlib import font_manager

from mixer_finetune.evaluation import figure_text as figure_text_module
from mixer_finetune.evaluation.figure_text import FONT, figure_text, figure_texts, figure_title
from mixer_finetune.evaluation.figures import (
    confusion_matrix_figure,
    curves,
    learning_curves_figure,
    learning_curves_svg,
)
from mixer_finetune.evaluation.measures import ConfusionMatrix
from mixer_finetune.evaluation.predictions import Predictions

TWO_EPOCHS = """step,train/lr,train/loss,train/accuracy,train/loss_epoch,train/accuracy_epoch,val/loss,val/accuracy
5,0.1,2.0,0.2,,,,
10,0.2,1.0,0.4,1.5,0.3,1.2,0.35
15,0.1,0.8,0.6,,,,
20,0.0,0.6,0.8,0.7,0.7,0.9,0.65
"""
# As runs wrote it before there were means of epochs and a loss of the dev split.
BEFORE = "step,train/accuracy,train/loss,train/lr,val/accuracy\n10,0.25,2.1,0.1,\n21,0.75,0.7,0.2,0.8\n"


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def matrix_of(labels, answers, classes):
    n = len(labels)
    top = np.array(answers)[:, None]
    names = [""] * classes
    return ConfusionMatrix.of(Predictions(names, [""] * n, np.arange(n), np.array(labels), top, np.ones((n, 1))))


def drawn(figure):
    """Draw it, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
    return figure


def test_the_training_curve_is_made_of_means_over_epochs_where_there_are_two():
    train, dev = curves(rows_of(TWO_EPOCHS), "loss")
    assert (train.steps, train.values) == ([10, 20], [1.5, 0.7]) and "epoch" in train.label
    assert (dev.label, dev.steps, dev.values) == ("dev", [10, 20], [1.2, 0.9])
    train, dev = curves(rows_of(TWO_EPOCHS), "accuracy")
    assert (train.values, dev.values) == ([0.3, 0.7], [0.35, 0.65])
    (rate,) = curves(rows_of(TWO_EPOCHS), "learning rate")
    assert (rate.steps, rate.values) == ([5, 10, 15, 20], [0.1, 0.2, 0.1, 0.0])


def test_within_one_epoch_the_training_curve_is_made_of_means_since_the_row_before():
    one_epoch = rows_of("\n".join(TWO_EPOCHS.splitlines()[:3]))
    train, dev = curves(one_epoch, "loss")
    assert (train.steps, train.values) == ([5, 10], [2.0, 1.0]) and dev.steps == [10]


def test_the_metrics_of_earlier_versions_are_drawn():
    (train,) = curves(rows_of(BEFORE), "loss")
    assert (train.steps, train.values) == ([10, 21], [2.1, 0.7])
    assert [curve.label for curve in curves(rows_of(BEFORE), "accuracy")] == ["train", "dev"]


def test_a_single_row_shows_as_points_and_no_row_as_empty_axes():
    figure = drawn(learning_curves_figure(rows_of("step,train/loss,train/lr,val/accuracy\n7,2.0,0.1,0.5\n")))
    loss, accuracy, rate = figure.axes
    for axis in (loss, accuracy, rate):
        (line,) = axis.lines
        assert line.get_marker() == "o" and len(line.get_xdata()) == 1
    assert [len(axis.lines) for axis in drawn(learning_curves_figure([])).axes] == [0, 0, 0]


def test_all_panels_have_the_same_steps():
    figure = learning_curves_figure(rows_of(BEFORE))
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert figure.axes[0].get_xlim()[1] > 21 and figure.axes[0].get_xlim()[0] < 0


def test_a_curve_of_many_points_bears_no_markers_and_svg_is_repeatable():
    many = rows_of("step,train/loss\n" + "".join(f"{i},1.0\n" for i in range(1, 200)))
    assert learning_curves_figure(many).axes[0].lines[0].get_marker() in ("", "None", None)
    pictures = learning_curves_svg(rows_of(TWO_EPOCHS))
    assert len(pictures) == 3 and pictures == learning_curves_svg(rows_of(TWO_EPOCHS))
    assert all(picture.startswith("<svg") and "currentColor" in picture for picture in pictures)


@pytest.mark.parametrize("name", ["$x^{$", "$$", "cost: $5", r"\$ \frac{", "$a$ and $b$", "a_b", "%", "{}", "\x00\t"])
def test_names_are_drawn_as_they_are_and_not_as_formulas(name):
    names = [name, "plain"]
    figure = drawn(confusion_matrix_figure(matrix_of([0, 1, 1], [0, 1, 0], 2), names, f"{name}: 50%"))
    shown = figure.axes[0].get_xticklabels()[0].get_text()
    assert shown.count("$") == shown.count(r"\$") == name.count("$")
    assert figure.axes[0].get_title().count(r"\$") == name.count("$")


def test_line_breaks_become_spaces_and_long_names_are_cut():
    assert figure_text("two\r\nlines\tof it") == "two lines of it"
    assert figure_text("x" * 41) == "x" * 39 + "…" and figure_text("x" * 40) == "x" * 40


@pytest.fixture
def no_other_font(monkeypatch):
    """Nothing but the font that comes with matplotlib."""
    monkeypatch.setattr(figure_text_module, "_installed", lambda: iter(()))
    figure_text_module._fonts_for.cache_clear()
    yield
    figure_text_module._fonts_for.cache_clear()


def test_a_name_that_no_font_has_becomes_the_number_of_its_class(no_other_font):
    names = ["dog", "猫", "кот"]
    assert figure_texts(names) == (["dog", "class 1", "кот"], [FONT], 1)
    assert figure_title("猫: 5%") == ("?: 5%", [FONT])
    figure = drawn(confusion_matrix_figure(matrix_of([0, 1, 2], [0, 1, 0], 3), names, "猫"))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["dog", "class 1", "кот"]
    assert "1 name has characters that no installed font has" in figure.axes[0].get_xlabel()


def test_a_name_is_drawn_by_another_font_that_has_its_characters():
    def glyphs(family):
        return set(font_manager.get_font(font_manager.findfont(family)).get_charmap())

    missing = chr(min(code for code in glyphs("STIXGeneral") - glyphs(FONT) if chr(code).isprintable()))
    texts, fonts, numbered = figure_texts(["dog", missing])
    assert texts == ["dog", missing] and fonts[0] == FONT and len(fonts) == 2 and numbered == 0
    drawn(confusion_matrix_figure(matrix_of([0, 1], [0, 1], 2), ["dog", missing], missing))


def test_the_matrix_shows_the_classes_that_occur_with_their_numbers():
    names = [f"class {i}" for i in range(6)]
    figure = confusion_matrix_figure(matrix_of([1, 1, 1, 3], [1, 1, 3, 4], 6), names, "test")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["class 1", "class 3", "class 4"]
    assert sorted(text.get_text() for text in axis.texts) == ["1", "1", "2"]
    shares = np.asarray(axis.images[0].get_array())
    assert shares == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 0, 1], [0, 0, 0]]))
    assert "3 of 6 classes do not occur" in axis.get_xlabel()


def test_a_matrix_of_many_classes_has_no_names_and_at_most_a_thousand_pixels_a_side():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 10_000, (2, 50_000))
    figure = drawn(confusion_matrix_figure(matrix_of(labels, answers, 10_000), ["$"] * 10_000, "test"))
    axis = figure.axes[0]
    assert axis.images[0].get_array().shape == (1000, 1000) and not axis.get_xticks().size and not axis.texts
    named = confusion_matrix_figure(matrix_of(range(200), range(200), 200), ["x"] * 200, "test")
    assert len(named.axes[0].get_xticklabels()) == 200 and not named.axes[0].texts

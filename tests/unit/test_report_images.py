"""What stands below the pictures of mistakes."""

import numpy as np
import pytest

from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.report_images import _caption


@pytest.mark.parametrize(
    ("true", "top", "says"),
    [
        (2, [0, 2, 1], "<b>&lt;c&gt;</b>, called a (70%); second guess &lt;c&gt; (20%)"),
        (2, [0, 1, 2], "<b>&lt;c&gt;</b>, called a (70%); third guess &lt;c&gt; (10%)"),
        (3, [0, 1, 2], "<b>d</b>, called a (70%); second guess b (20%)"),
        (3, [0], "<b>d</b>, called a (70%)<br>"),
    ],
)
def test_a_mistake_is_shown_with_the_place_of_the_true_class(true, top, says):
    probabilities = np.array([[0.7, 0.2, 0.1][: len(top)]])
    found = Predictions(
        ["a", "b", "<c>", "d"], ["x/y.jpg"], np.array([0]), np.array([true]), np.array([top]), probabilities
    )
    caption = _caption(found, 0)
    assert caption.startswith(says) and caption.endswith("<br><small>y.jpg</small>")

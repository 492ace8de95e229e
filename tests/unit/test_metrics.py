import pytest
import torch
from torchmetrics.classification import MulticlassF1Score

from mixer_finetune.training.metrics import MacroF1


@pytest.mark.parametrize("occurring", [7, 4])  # of seven classes
def test_macro_f1_is_that_of_torchmetrics(occurring):
    ours, theirs = MacroF1(7), MulticlassF1Score(7, average="macro")
    for size in (30, 1, 50):
        logits, labels = torch.randn(size, 7), torch.randint(occurring, (size,))
        logits[:, occurring:] = -9
        ours.update(logits, labels)
        theirs.update(logits, labels)
    assert ours.compute() == pytest.approx(float(theirs.compute()), abs=1e-6)
    ours.reset()
    assert ours.compute() == 0

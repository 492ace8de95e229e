import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassF1Score

from mixer_finetune.training.measuring import SplitMetrics
from mixer_finetune.training.metrics import MacroF1
from mixer_finetune.training.task import MULTI_LABEL, SINGLE_LABEL


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


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL], ids=lambda task: task.name)
@pytest.mark.parametrize("cuts", [[10], [7, 3], [1, 9]], ids=str)
def test_the_loss_of_a_split_is_the_mean_over_its_images_however_they_are_cut_into_batches(task, cuts):
    logits, classes = torch.randn(10, 4) * 3, torch.arange(10) % 4
    several = F.one_hot(classes, 4).float()
    if task is SINGLE_LABEL:
        targets, expected = classes, F.cross_entropy(logits, classes)
    else:
        targets = several
        expected = F.binary_cross_entropy_with_logits(logits, several, reduction="none").sum(-1).mean()
    metrics = SplitMetrics(task, 4, "val/")
    for batch in zip(logits.split(cuts), targets.split(cuts), strict=True):
        metrics.update(*batch)
    assert float(metrics.compute()["val/loss"]) == pytest.approx(float(expected), rel=1e-6)

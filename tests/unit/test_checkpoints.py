import pytest
import torch

from mixer_finetune.checkpoints import BestCheckpoint


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.5, 0.7, 0.9], 2),
        ([0.9, 0.9, 0.9], 2),  # ties go to the later weights
        ([0.5, 0.97, 0.96], 2),  # one image of a hundred is noise
        ([0.5, 0.97, 0.80], 1),  # overfitting is not
        ([0.97, 0.96, 0.94, 0.93, 0.92], 1),  # a decline by small steps is measured from the highest
        ([1.0, 0.98], 0),
    ],
)
def test_the_latest_weights_within_one_standard_error_of_the_highest_are_kept(accuracies, kept, tmp_path):
    callback = BestCheckpoint(100, tmp_path)
    decisions = []
    for accuracy in accuracies:
        decisions.append(callback.check_monitor_top_k(None, torch.tensor(accuracy)))
        restored = BestCheckpoint(100, tmp_path)
        restored.load_state_dict(callback.state_dict())  # as after an interruption
        callback = restored
    assert max(i for i, keep in enumerate(decisions) if keep) == kept

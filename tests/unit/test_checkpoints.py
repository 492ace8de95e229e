import lightning.pytorch as pl
import pytest
import torch

from mixer_finetune import ImageDataModule, MixerClassifier, UserError
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.checkpoints import BestCheckpoint, LastCheckpoint, resume_point


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


def test_a_run_goes_on_from_its_last_checkpoint_not_from_its_best(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for path in (run.best_checkpoint, run.last_checkpoint):
        torch.save({"state_dict": {}}, path)
    assert resume_point(run) == run.last_checkpoint
    run.last_checkpoint.unlink()
    assert resume_point(run) == run.best_checkpoint
    run.best_checkpoint.unlink()
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        resume_point(run)


@pytest.mark.parametrize(
    ("options", "saved"), [({"seconds": 0.0}, [1, 2, 3, 4, 5]), ({"every_n_steps": 3}, [3, 5]), ({}, [5])]
)
def test_the_last_checkpoint_is_saved_when_due_and_never_between_micro_batches(options, saved, tmp_path):
    # An epoch is five steps of three micro-batches.
    data = ImageDataModule("digits", batch_size=300, micro_batch_size=100, val_fraction=0.0)
    model = MixerClassifier("mixer_nano_32", num_classes=10)
    model.backbone.blocks = torch.nn.ModuleList()
    places = []

    class Noting(LastCheckpoint):
        def _save(self, trainer):
            places.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.processed))
            super()._save(trainer)

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, log_every_n_steps=2, callbacks=[Noting(tmp_path / "last.ckpt", **options)],
    )  # fmt: skip
    trainer.fit(model, data)
    assert places == [(step, 3 * step) for step in saved]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5

"""What a training step costs beyond a plain loop over the same batches, loss and accuracy logged (goal: 0.5 ms).

    python tests/benchmarks/loop_overhead.py [--rounds 7] [--threads 1]

The backbone has no blocks, so that a step is short and the loop's own cost stands out of the noise. Both loops take the
same batches through the same augmentation, gradient clipping, optimizer and learning rate schedule, in turns with a
Lightning trainer that has nothing on; the least of the rounds are compared, since other users of the machine only make
a loop slower.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from mixer_finetune import ImageDataModule, MixerClassifier
from mixer_finetune.engine.parser import TRAINER_DEFAULTS
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.checkpoints import checkpoint_callbacks
from mixer_finetune.training.metrics_file import MetricsFile
from mixer_finetune.training.progress import Narrator, Unprofiled

STEPS = 600
WARM = 50  # steps that are not timed


def parts() -> tuple[MixerClassifier, ImageDataModule]:
    """A classifier without blocks and digits in batches of 16."""
    data = ImageDataModule("digits", batch_size=16, flip=False, val_fraction=0.0)
    model = MixerClassifier("mixer_nano_32", num_classes=10)
    model.backbone.blocks = torch.nn.ModuleList()
    return model, data


def milliseconds(ends: list[float]) -> float:
    """Time of a step, from when each ended, without the first ones.

    The first quartile, since other users of the machine only make steps slower; of each of the steps from one log to
    the next, and then their mean, since the one that logs costs more.
    """
    times = [after - before for before, after in zip(ends[WARM:], ends[WARM + 1 :], strict=False)]
    period = TRAINER_DEFAULTS["log_every_n_steps"]
    return 1e3 * statistics.mean(statistics.quantiles(times[i::period], n=4)[0] for i in range(period))


class Clock(pl.Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args) -> None:
        """Note it."""
        self.ends.append(time.perf_counter())


def ours(folder: Path) -> float:
    """Milliseconds a step of the trainer as `fit` sets it up."""
    model, data = parts()
    clock, run = Clock(), RunFolder(folder).create()
    callbacks = [MetricsFile(run.metrics_file), *checkpoint_callbacks(run, None, 0, "val/accuracy"), clock]
    options = {**TRAINER_DEFAULTS, "max_epochs": -1, "max_steps": STEPS, "accelerator": "cpu", "devices": 1}
    options |= {"callbacks": callbacks, "profiler": Unprofiled()}
    options |= {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    trainer = pl.Trainer(**options, default_root_dir=folder)
    trainer.callbacks.insert(0, Narrator())
    trainer.fit(model, data)
    return milliseconds(clock.ends)


class Bare(pl.LightningModule):
    """The same backbone with a loss and an optimizer, nothing logged or measured."""

    def __init__(self, model: MixerClassifier) -> None:
        super().__init__()
        self.backbone, self.preprocessing = model.backbone, model.preprocessing

    def training_step(self, batch, batch_idx) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self):
        """SGD and its schedule by steps."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def bare(folder: Path) -> float:
    """Milliseconds a step of a Lightning trainer with nothing on."""
    model, data = parts()
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=-1, max_steps=STEPS, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False,
        callbacks=[clock], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Bare(model), data)
    return milliseconds(clock.ends)


def plain() -> float:
    """Milliseconds a step of a loop written out."""
    model, data = parts()
    data.preprocessing = model.preprocessing
    backbone = model.backbone.train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loader, step, ends = data.train_dataloader(), 0, []
    total = correct = torch.zeros(())
    while step < STEPS:
        for batch in loader:
            batch = data.prepare(batch, training=True)
            logits = backbone(batch.images)
            loss = F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                total, correct = total + loss.detach(), correct + (logits.argmax(-1) == batch.labels).sum()
            step += 1
            if step % 10 == 0:
                total.item(), correct.item()
            ends.append(time.perf_counter())
            if step == STEPS:
                break
    return milliseconds(ends)


def main() -> None:
    """Run both in turns and print the least of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    quiet()
    times: dict[str, list[float]] = {"ours": [], "bare": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            times["ours"].append(ours(Path(folder) / str(i)))
            times["bare"].append(bare(Path(folder) / str(i)))
            times["plain"].append(plain())
    least = {name: min(values) for name, values in times.items()}
    extra = {name: least[name] - least["plain"] for name in ("ours", "bare")}
    print(f"a step of ours takes {least['ours'] / least['plain']:.2f} of a plain loop's, {extra['ours']:.2f} ms more")
    print(
        f"that is {extra['ours'] / extra['bare']:.2f} times what Lightning adds with nothing on "
        f"({extra['bare']:.2f} ms)"
    )


if __name__ == "__main__":
    main()

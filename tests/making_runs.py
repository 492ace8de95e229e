"""Run folders made by hand, as `fit` leaves them, without a model."""

import yaml

from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.results import Results
from mixer_finetune.runs import RunFolder


def config_of(seed=0, name="made", source="digits", **model):
    """A configuration with what lists and comparisons read of it."""
    return {
        "seed_everything": seed,
        "output_dir": "runs",
        "name": name,
        "model": {"backbone": "mixer_nano", "optimizer": "sgd", "lr": 0.1, **model},
        "data": {"source": source},
        "trainer": {"max_epochs": 3},
    }


def make_run(folder, found, metrics, *, config=None, task="single_label", **changes):
    """A finished run with those answers.

    Args:
        folder: Of the run.
        found: Predictions or LabelSets.
        metrics: Of the answers.
        config: Content of config.yaml.
        task: Of the run.
        changes: Of the results.
    """
    folder.mkdir(parents=True)
    run, config = RunFolder(folder), config or config_of()
    run.config_file.write_text(yaml.safe_dump(config))
    found.write(run.predictions_file)
    given = {
        "metrics": metrics,
        "split": "test",
        "role": "test",
        "samples": len(found),
        "split_samples": len(found),
        "train_samples": 100,
        "bad_images": [],
        "classes": found.names,
        "task": task,
        "monitor": "accuracy" if task == "single_label" else "map",
        "backbone": {"source": "mixer_nano", "weights": "pretrained", "revision": None},
        "preprocessing": {},
        "data": {"source": config["data"]["source"], "revision": None, "license": None},
        "parameters": 10,
        "trained_parameters": 10,
        "device": "a CPU",
        "devices": 1,
        "precision": "32-true",
        "versions": {},
        "seconds": 1.0,
        "steps": 3,
        "time": {},
        "lr": "0.1",
    }
    Results(**{**given, **changes}).with_intervals(*KINDS[task].measured(found)).write(run)
    return run

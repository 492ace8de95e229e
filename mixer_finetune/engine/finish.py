"""The stages behind training: evaluation, results, report, card and push, each done where its output is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.engine.parts import Parts
from mixer_finetune.engine.sizes import measure_other_sizes, with_own
from mixer_finetune.errors import NoImagesError
from mixer_finetune.evaluation.figures import write_pictures
from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.report import write_report
from mixer_finetune.evaluation.results import Results, metric_name, metric_text, versions
from mixer_finetune.evaluation.sizes import size_rows
from mixer_finetune.files import write_text
from mixer_finetune.integrity import hashes_of
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card import model_card
from mixer_finetune.sharing.push import push
from mixer_finetune.training.calibration import Calibration
from mixer_finetune.training.judgement import judge_training
from mixer_finetune.training.metrics_file import read_rows
from mixer_finetune.training.reliability import Reliability

log = logging.getLogger(__name__)


def missing_stages(run: RunFolder, push_to: str | None) -> list[str]:
    """What a run still lacks, by name."""
    files = {"results": run.results_file, "report": run.report, "card": run.card}
    missing = [name for name, path in files.items() if not path.is_file()]
    pushed = run.read_json(run.push_file) or {}
    if push_to and (pushed.get("repo_id"), bool(pushed.get("commit"))) != (push_to, True):
        missing.append("push")
    return missing


def finish(parts: Parts, run: RunFolder) -> None:
    """Do what is missing behind training.

    Args:
        parts: With the weights that were trained in the model.
        run: Run folder, trained.
    """
    trainer, data = parts.trainer, parts.data
    if not run.results_file.is_file():
        sizes = measure_other_sizes(parts)
        table, seconds, trust = _evaluate(parts, run)
        if trainer.is_global_zero:
            _write_results(parts, run, table, seconds, trust, sizes)
    if not trainer.is_global_zero:
        return
    results = Results.read(run)
    backbone = None if run.report.is_file() and run.card.is_file() else load_backbone(run.model)
    if not run.report.is_file():
        split = getattr(data, "splits", {}).get(results.role)
        write_report(run, split=split, backbone=backbone, say=log.info)
    if not run.card.is_file():
        write_text(run.card, model_card(run, backbone=backbone))
    _say_what_came_out(run, results)
    if "push" in missing_stages(run, parts.options.push):  # last, so that a Hub that fails leaves all of the above
        log.info(f"pushing to {parts.options.push}")
        log.info(push(run, str(parts.options.push)))


def _evaluate(parts: Parts, run: RunFolder) -> tuple[Any, float, dict[str, Any] | None]:
    """On the split that results are of: the table of answers, the seconds, how far its probabilities can be trusted.

    Table and trust are None where there is no such split.
    """
    trainer, model, data = parts.trainer, parts.model, parts.data
    role = getattr(data, "evaluation_role", "test")
    if role is None:
        return None, 0.0, None
    splits = getattr(data, "splits", {})
    if role in splits:
        log.info(f"evaluating on {len(splits[role]):,} images of split {splits[role].name}")
    started = time.perf_counter()
    # The first process wrote it; others may see another disk.
    calibration = trainer.strategy.broadcast(Calibration.read(run.calibration_file))
    reliability = None if calibration is None else Reliability(model.task, calibration)
    model.reliability = reliability
    try:
        trainer.test(model, data, verbose=False)
    except NoImagesError as error:  # what was trained is not lost for that
        log.info(f"not evaluated: {error.problem}")
        return None, time.perf_counter() - started, None
    if hasattr(data, "gather_bad_images"):
        data.gather_bad_images()
    trust, model.reliability = None, None
    if calibration is not None and reliability is not None:
        trust = reliability.compute(lambda sums: _summed(trainer, sums)) | {
            "temperature": calibration.temperature,
            "why_not": calibration.why_not,
            "fitted_on": calibration.split,
            "fitted_on_images": calibration.images,
            "same_images": role == "val",
            "chosen_on_dev": calibration.chosen_on_dev,
            "dev": calibration.dev,
        }
    return model.test_table, time.perf_counter() - started, trust


def _summed(trainer: Any, sums: Tensor) -> Tensor:
    """The sum over all devices."""
    device = trainer.strategy.root_device
    summed: Tensor = trainer.strategy.reduce(sums.to(device) if device.type == "cuda" else sums, reduce_op="sum")
    return summed


def _write_results(
    parts: Parts,
    run: RunFolder,
    table: Any,
    seconds: float,
    trust: dict[str, Any] | None,
    sizes: list[dict[str, Any]],
) -> None:
    """predictions.csv, the pictures and results.json."""
    trainer, model, data = parts.trainer, parts.model, parts.data
    training = run.read_json(run.training_file) or {}
    names = model.label_names or [str(i) for i in range(len(table[0]) if table is not None else 0)]
    role = getattr(data, "evaluation_role", "test") if table is not None else None
    split = getattr(data, "splits", {}).get(role)
    metrics: dict[str, float] = {}
    logged: dict[str, float] = {}
    predictions, kind = None, KINDS[model.task.name]
    if table is not None:
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        metrics = {name.removeprefix("test/"): value for name, value in logged.items() if name != "test/loss"}
        name_of: Callable[[int], str] = split.image_name if split is not None else str
        predictions = kind.answers.from_table(table.numpy().astype(np.float64), name_of, names)
        predictions.write(run.predictions_file)
    time_spent = {**training.get("time", {}), **({"test": round(seconds, 2)} if table is not None else {})}
    results = Results(
        metrics=metrics,
        split=split.name if split is not None else role,
        role=role,
        samples=0 if predictions is None else len(predictions.files),
        split_samples=len(split) if split is not None else 0 if predictions is None else len(predictions.files),
        train_samples=len(getattr(data, "splits", {}).get("train", ())),
        bad_images=sorted({*training.get("bad_images", ()), *getattr(data, "bad_images", ())}),
        classes=names,
        task=model.task.name,
        monitor=model.task.monitor,
        dev=training.get("dev"),
        backbone=training["backbone"],
        preprocessing=model.assembled().preprocessing.to_pretrained_cfg(),
        data={
            "source": str(getattr(data, "source", type(data).__name__)),
            "revision": getattr(data, "revision", None),
            "license": getattr(data, "license", None),
        },
        parameters=training["parameters"],
        trained_parameters=training["trained_parameters"],
        device=training["device"],
        devices=training["devices"],
        precision=training["precision"],
        versions=versions(),
        seconds=training["seconds"],
        steps=training["steps"],
        ended_by=training["ended_by"],
        time=time_spent,
        weights=training.get("weights", "last"),
        lr=training.get("lr"),
        name=str(parts.options.name),
        started=run.started.isoformat(),
        calibration=trust,
        sizes=with_own(sizes, model, logged),
    )
    if predictions is not None:
        results = results.with_intervals(*kind.measured(predictions))
    write_pictures(run, predictions if isinstance(predictions, Predictions) else None, results)
    said = _judgement(run, results, predictions, model.hparams.get("lr"))
    results = replace(results, judgement=said, files=hashes_of(run))
    results.write(run)


def _judgement(run: RunFolder, results: Results, predictions: Any, lr: Any) -> list[str]:
    rate = lr if isinstance(lr, float | int) else None
    kind, rows = KINDS[results.task], read_rows(run.metrics_file)
    guessing = kind.guessing(len(results.classes), predictions)
    said = judge_training(rows, guessing, rate, results.ended_by, kind.learnt)
    return said if predictions is None else said + kind.judged(predictions, results.calibration_error)


def _say_what_came_out(run: RunFolder, results: Results) -> None:
    if results.metrics:
        shown = ", ".join(f"{metric_name(name)} {metric_text(name, value)}" for name, value in results.metrics.items())
        log.info(f"{results.split} ({results.measured_on} images): {shown}")
    for size, _, cost, value in size_rows(results):
        log.info(f"  at {size} px: {metric_name(results.monitor)} {value} for {cost} of the cost")
    if results.weights != "last":
        log.info(f"these are the {results.weights} weights, which are exported")
    for sentence in results.judgement:
        log.info(f"note       {sentence}")
    if results.bad_images:
        log.info(f"skipped {len(results.bad_images)} image(s) that can't be decoded: see results.json")
    ended = "" if results.ended_by in (None, "schedule") else f", ended by {results.ended_by} at step {results.steps:,}"
    log.info(f"trained in {results.seconds:.0f} s{ended}; everything is in {run}")
    log.info(f"the report to look at: {run.report}")
    log.info("next:")
    log.info(f"  mixer-finetune predict {run} FOLDER     classify images")
    log.info(f"  mixer-finetune push {run} user/name     share the model on the Hub")
    command = "validate" if results.role == "val" else "test"
    log.info(f"  mixer-finetune {command} {run}{' ' * (19 - len(command))}evaluate again")
    log.info(f"  mixer-finetune fit --config {run.config_file}   repeat the run")

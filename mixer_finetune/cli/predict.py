"""`mixer-finetune predict`."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from mixer_finetune.errors import Interrupted, UserError
from mixer_finetune.runs import RunFolder, find_run
from mixer_finetune.texts import terminal_line

_OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
_MOST_PROBLEMS_SHOWN = 10
_MOST_TOLD = 10  # images whose answers are printed, and not written


def predict(
    model: str,
    *inputs: str,
    source: str | None = None,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    top_k: int = 5,
    features: bool = False,
    tta: bool = False,
    coverage: float | None = None,
    abstain: float | None = None,
    ood: bool = False,
    explain: str | None = None,
    resume: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    compile: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    max_image_pixels: int = 89_478_485,
) -> int:
    """Classify images, or a split of a data set.

    Of up to ten image files the answers are printed: label, probability, second guess. Else the output has a row for
    each image: file, most probable labels with their probabilities, and the reason where an image can't be decoded; how
    often each label was given and the least sure answers are printed. Rows are kept in OUTPUT.part as they are made: an
    interrupted predict loses nothing.

    Args:
        model: Run folder, last for the newest one, checkpoint, model folder or Hub id.
        *inputs: Image files, folders of them, and patterns such as "photos/**/*.jpg".
        source: A data set in place of files, as --data.source of fit; a run's own when only --split is given.
        split: Its split, by the name that it has there or by its role (train, val, test); test when not given.
        image_size: Side, or [height,width], of the images in pixels: any that the model was trained for together
            (train_sizes) without loss, others by resized weights; the model's own when not given.
        output: A .csv, .jsonl or .parquet file; when not given, a new .csv in RUN/predict, or in this folder where the
            model is no run's.
        overwrite: Let the output take the place of a file that is there.
        top_k: How many labels a row gives, at most one a class.
        features: Add the pre-logits (embeddings); for .jsonl and .parquet.
        tta: Average over the image and its mirror image.
        coverage: Add a set of labels for each image, that holds the true one for at least that share of images like
            those of the data (0.9); from the dev split's scores.
        abstain: Add an answer, that is withheld from the least sure images: from about that share (0.1) of images like
            those of the data.
        ood: Add how unlike the data an image is (energy), and the share of images like the data that are no more
            familiar (p_familiar).
        explain: Folder for a picture of each image beside where the evidence for its first label lies.
        resume: Go on with what an interrupted predict left.
        batch_size: Images at once.
        device: cpu, cuda, cuda:1, mps; the best one present when not given.
        compile: Compile the backbone's blocks first; for many images.
        precision: bf16-mixed is faster where the hardware has bf16; probabilities then differ by about a hundredth.
        max_image_pixels: Most pixels that are decoded of an image; a JPEG is decoded at a fraction of its size first.

    Returns:
        The exit status: 2 where no image could be decoded.

    Raises:
        UserError: Something does not exist, or the output can't be written.
    """
    if not inputs and source is None and split is None:
        raise UserError("expected: predict RUN|CHECKPOINT|MODEL FOLDER|FILE ..., or predict RUN --split test")
    if inputs and (source is not None or split is not None):
        given = "source" if source is not None else "split"
        raise UserError("there are files and a data set to classify", advice=f"give either files or {{{given}}}")
    for option, value in (("top_k", top_k), ("batch_size", batch_size), ("max_image_pixels", max_image_pixels)):
        if value < 1:
            raise UserError(f"{option} must be 1 or more, got {value}", option=option)
    model = str(find_run(model))
    if features and (output is None or output.endswith(".csv")):
        raise UserError(
            "a .csv file can't hold features", advice="give {output} a name that ends in .jsonl or .parquet"
        )
    for option, asked in (("coverage", coverage is not None), ("abstain", abstain is not None), ("ood", ood)):
        if asked and tta:
            raise UserError(f"{option} goes by the dev split as it is, not mirrored", advice="leave out {tta}")
    target = _checked_output(output, replaces=overwrite or resume) if output is not None else None
    pictures = Path(explain).expanduser() if explain else None
    if pictures is not None and pictures.is_file():
        raise UserError(f"{pictures} is a file", advice="give {explain} a folder for the pictures")

    from mixer_finetune.evaluation.predict import Predictor, file_split, part_file, source_split, write_predictions
    from mixer_finetune.evaluation.prediction_summary import Summary, answer_line
    from mixer_finetune.files import UNWRITABLE

    if inputs:
        images = file_split(list(inputs))
    elif source is not None:
        images = source_split(source, split or "test")
    else:
        images = _own_split(model, str(split))
    # A few photos are asked about to read the answer, not to have a file.
    more = coverage is not None or abstain is not None or ood  # columns that a line has no room for
    told = target is None and not resume and not more and len(images) <= _MOST_TOLD and _are_files(inputs)
    scratch: Any = tempfile.TemporaryDirectory() if told else nullcontext()
    if target is None and not told:
        told_of = Path(inputs[0]).name if inputs else f"{Path(source).stem}-{images.name}" if source else images.name
        target = _new_output(model, told_of)
    compiled_for = batch_size if compile else None
    predictor = Predictor.load(
        model,
        image_size=image_size,
        top_k=top_k,
        tta=tta,
        precision=precision,
        device=device,
        compiled_for=compiled_for,
        coverage=coverage,
        abstain=abstain,
        ood=ood,
    )
    summary = Summary()
    see: Callable[[dict[str, Any]], None] = (
        (lambda row: print(terminal_line(answer_line(row)))) if told else summary.add
    )
    with scratch as folder:
        target = target or Path(str(folder)) / "answers.csv"
        part = part_file(target)
        try:
            bad = write_predictions(
                predictor,
                images,
                target,
                batch_size=batch_size,
                features=features,
                explain=pictures,
                resume=resume,
                max_pixels=max_image_pixels,
                see=see,
            )
        except Interrupted as stop:
            if part.exists() and not told:
                where = f"--output {output} " if output is not None else ""
                stop.advice = f"go on with: mixer-finetune predict {model} ... {where}--resume"
            raise
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            problem = f"{target} can't be written ({error.strerror})"
            if part.exists():
                raise UserError(problem, advice="free the disk; what is done is kept for {resume}") from error
            raise UserError(problem, option="output") from error
    if told:
        return 2 if len(bad) == len(images) else 0
    broken = f", {len(bad)} of them images that can't be decoded" if bad else ""
    print(terminal_line(f"wrote {len(images):,} rows to {target}{broken}"))
    for line in predictor.trust.summary() if predictor.trust else ():
        print(terminal_line(line))
    for problem in bad[:_MOST_PROBLEMS_SHOWN]:
        print(f"  {terminal_line(problem)}")
    for line in summary.lines():
        print(terminal_line(line))
    return 2 if len(bad) == len(images) else 0


def _checked_output(output: str, replaces: bool) -> Path:
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"{target} can't be written", option="output", choices="with a file in a folder that exists")
    if target.suffix not in _OUTPUT_SUFFIXES:
        suffixes = ", ".join(_OUTPUT_SUFFIXES)
        raise UserError(f"the output must end in {suffixes}, got {target.name}", option="output")
    if target.exists() and not replaces:
        raise UserError(f"{target} exists already", advice="give {output} another name, or {overwrite}")
    return target


def _new_output(model: str, name: str) -> Path:
    """A file that is not there yet: of a run, in its folder `predict`, by the name of what is classified."""
    run = _run_of(model)
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._") or "predictions"
    stem = stem if run else "predictions"
    folder = run.path / "predict" if run else Path()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror})", option="output") from error
    names = (f"{stem}.csv" if i == 1 else f"{stem}-{i}.csv" for i in itertools.count(1))
    return next(folder / each for each in names if not (folder / each).exists())


def _run_of(model: str) -> RunFolder | None:
    """The run that a model is of; None where it is of none."""
    path = Path(model).expanduser()
    if not path.exists():
        return None
    runs = (RunFolder(path), RunFolder(path.parent), RunFolder(path.parent.parent))
    inside = (path, runs[1].model, runs[2].checkpoints / path.name)
    return next(
        (run for run, place in zip(runs, inside, strict=True) if place == path and run.config_file.is_file()), None
    )


def _own_split(model: str, name: str) -> Any:
    """A split of the data that a run was trained on, with what it held out."""
    from mixer_finetune.evaluation.predict import split_called
    from mixer_finetune.evaluation.splits import open_data

    run = _run_of(model)
    if run is None:
        raise UserError(f"{model} is no run, whose data could be classified", advice="name a data set with {source}")
    data = open_data(run.read_config())
    return split_called(data.splits, name, data.source)


def _are_files(inputs: tuple[str, ...]) -> bool:
    return bool(inputs) and all(Path(name).expanduser().is_file() for name in inputs)

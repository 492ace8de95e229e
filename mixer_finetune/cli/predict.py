"""`mixer-finetune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mixer_finetune.errors import Interrupted, UserError

_OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
_MOST_PROBLEMS_SHOWN = 10


def predict(
    model: str,
    *inputs: str,
    source: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    output: str = "predictions.csv",
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

    The output has a row for each image: file, most probable labels with their probabilities, and the reason where an
    image can't be decoded. Rows are kept in OUTPUT.part as they are made: an interrupted predict loses nothing.

    Args:
        model: Run folder, checkpoint, model folder or Hub id.
        *inputs: Image files, folders of them, and patterns such as "photos/**/*.jpg".
        source: A data set in place of files, as --data.source of fit.
        split: Its split.
        output: A .csv, .jsonl or .parquet file.
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
    if not inputs and source is None:
        raise UserError(
            "expected: predict RUN|CHECKPOINT|MODEL FOLDER|FILE ..., or predict RUN --source DATA --split test"
        )
    if inputs and source is not None:
        raise UserError("there are files and a data set to classify", advice="give either files or {source}")
    for option, value in (("top_k", top_k), ("batch_size", batch_size), ("max_image_pixels", max_image_pixels)):
        if value < 1:
            raise UserError(f"{option} must be 1 or more, got {value}", option=option)
    for option, asked in (("coverage", coverage is not None), ("abstain", abstain is not None), ("ood", ood)):
        if asked and tta:
            raise UserError(f"{option} goes by the dev split as it is, not mirrored", advice="leave out {tta}")
    target = _checked_output(output, features)
    pictures = Path(explain).expanduser() if explain else None
    if pictures is not None and pictures.is_file():
        raise UserError(f"{pictures} is a file", advice="give {explain} a folder for the pictures")

    from mixer_finetune.evaluation.predict import Predictor, file_split, part_file, source_split, write_predictions
    from mixer_finetune.files import UNWRITABLE

    images = file_split(list(inputs)) if source is None else source_split(source, split)
    compiled_for = batch_size if compile else None
    predictor = Predictor.load(
        model,
        top_k=top_k,
        tta=tta,
        precision=precision,
        device=device,
        compiled_for=compiled_for,
        coverage=coverage,
        abstain=abstain,
        ood=ood,
    )
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
        )
    except Interrupted as stop:
        if part.exists():
            stop.advice = f"go on with: mixer-finetune predict {model} ... --output {output} --resume"
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        problem = f"{target} can't be written ({error.strerror})"
        if part.exists():
            raise UserError(problem, advice="free the disk; what is done is kept for {resume}") from error
        raise UserError(problem, option="output") from error
    broken = f", {len(bad)} of them images that can't be decoded" if bad else ""
    print(f"wrote {len(images):,} rows to {target}{broken}")
    for line in predictor.trust.summary() if predictor.trust else ():
        print(line)
    for problem in bad[:_MOST_PROBLEMS_SHOWN]:
        print(f"  {problem}")
    return 2 if len(bad) == len(images) else 0


def _checked_output(output: str, features: bool) -> Path:
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"{target} can't be written", option="output", choices="with a file in a folder that exists")
    if target.suffix not in _OUTPUT_SUFFIXES:
        suffixes = ", ".join(_OUTPUT_SUFFIXES)
        raise UserError(f"the output must end in {suffixes}, got {target.name}", option="output")
    if features and target.suffix == ".csv":
        raise UserError(
            "a .csv file can't hold features", advice="give {output} a name that ends in .jsonl or .parquet"
        )
    return target

"""A bounded, seeded fuzzer of what strangers send: images, model folders, results, predictions, configurations.

Each case is a function of target and number, so that a finding can be made again. What may come out is a result or a
mistake said in one line; anything else (a traceback, a hang) is a finding. tests/unit/test_fuzz.py runs some cases of
each target; for longer, by hand:

    python tests/fuzzing.py --minutes 60
    python tests/fuzzing.py --target images --case 123      # one again, with its traceback
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from mixer_finetune import load_backbone
from mixer_finetune.backbones.cropping import evaluation_photo
from mixer_finetune.backbones.folder import read_config
from mixer_finetune.engine.arguments import Arguments, normalised, read_yaml, take_classes
from mixer_finetune.engine.named_classes import without_objects
from mixer_finetune.engine.parser import MixerCLI, config_errors
from mixer_finetune.engine.recipes import all_recipes
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation import report
from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.results import Results
from mixer_finetune.images import BadImage, open_photo
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card import model_card
from mixer_finetune.sharing.push import contents
from mixer_finetune.texts import LONGEST_LINE, terminal_line

SECONDS_A_CASE = 20
LONGEST_PROBLEM = LONGEST_LINE + 50  # characters
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e-9, 1e308, -0.0, float("nan"), float("inf"), "", " ", "x",
    "x" * 5000, "\x1b[31m", "a\nb", "\u202e", "\udcff", "$\\frac{", "=1+1", "../../etc/passwd", "/dev/zero", "auto",
    "null", [], {}, [[]], [None], {"": None}, {"class_path": "no.Such"}, {"a": {"b": {"c": [1, 2]}}}, [1, "a", None],
    list(range(300)), "0x10", "1e3", "2020-01-01", "!!python/object:os.system", [[[[[[[[]]]]]]]],
)  # fmt: skip


class TooSlow(BaseException):
    """A case took too long."""


def mutated(generator: random.Random, value: Any) -> Any:
    """A copy of a plain value with some of its parts changed, left out or repeated."""
    value = copy.deepcopy(value)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return generator.choice(HOSTILE)
        holder, key = generator.choice(places)
        match generator.randrange(6):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(generator.choice(HOSTILE))[:50]] = holder[key]
            case 2:
                holder[key] = [holder[key]]
            case 3:
                other, name = generator.choice(places)
                holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else None)
            case _:
                holder[key] = copy.deepcopy(generator.choice(HOSTILE))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def mutated_bytes(generator: random.Random, content: bytes) -> bytes:
    """Bytes with some flipped, cut out, repeated, put in or cut off; heads more often than the rest."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at = generator.randrange(min(len(data), generator.choice((16, 256, len(data)))))
        match generator.randrange(6):
            case 0:
                data[at] ^= 1 << generator.randrange(8)
            case 1:
                data[at : at + 4] = generator.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
            case 2:
                del data[at : at + generator.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + generator.randrange(1, 64)]
            case 4:
                data[at:at] = generator.randbytes(generator.randrange(1, 16))
            case _:
                del data[generator.randrange(len(data)) :]
    return bytes(data)


class Targets:
    """What is fuzzed. Each target takes a generator of random numbers; it raises UserError or BadImage, or returns.

    Args:
        run: Folder of a finished run with a split that was evaluated, which is not changed.
        folder: To write to.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self.model = load_backbone(run).eval()
        self.config = json.loads((run / "model" / "config.json").read_text())
        self.weights = (run / "model" / "model.safetensors").read_bytes()
        self.results = json.loads((run / "results.json").read_text())
        self.results.pop("files", None)
        self.predictions = (run / "predictions.csv").read_bytes()
        self.settings = yaml.safe_load((run / "config.yaml").read_text())
        self.images = list(_images())
        self.recipes = [path.read_bytes() for path in all_recipes().values()]
        self.parser = MixerCLI(Arguments()).parser
        self.run = RunFolder(Path(shutil.copytree(run, folder / "run")))
        (self.run.path / "training.json").unlink()
        self.folder = Path(shutil.copytree(run / "model", folder / "alone"))
        self.into = torch.empty(3, *self.model.image_size, dtype=torch.uint8)

    @property
    def all(self) -> dict[str, Callable[[random.Random], None]]:
        """The targets by name."""
        return {
            "images": self._image,
            "config_json": self._config_json,
            "weights": self._weights,
            "results_json": self._results_json,
            "predictions_csv": self._predictions_csv,
            "run_config": self._run_config,
            "recipes": self._recipe,
        }

    def _image(self, generator: random.Random) -> None:
        content = mutated_bytes(generator, generator.choice(self.images))
        evaluation_photo(open_photo({"bytes": content}, "an image"), self.model.preprocessing, self.into)

    def _config_json(self, generator: random.Random) -> None:
        config, file = self.folder / "config.json", self.folder / "model.safetensors"
        if generator.random() < 0.3:
            config.write_bytes(mutated_bytes(generator, json.dumps(self.config).encode()))
        else:
            config.write_text(json.dumps(mutated(generator, self.config)))
        file.write_bytes(self.weights)
        read_config(config)
        found = load_backbone(self.folder).eval()
        assert found.num_classes == self.model.num_classes, "weights of another size were taken"
        assert torch.isfinite(found(torch.zeros(1, found.geometry.in_chans, *found.image_size))).all()

    def _weights(self, generator: random.Random) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        (self.folder / "model.safetensors").write_bytes(mutated_bytes(generator, self.weights))
        load_backbone(self.folder)

    def _results_json(self, generator: random.Random) -> None:
        self._write_run(results=json.dumps(mutated(generator, self.results)).encode())
        self._tell()

    def _predictions_csv(self, generator: random.Random) -> None:
        if generator.random() < 0.5:
            content = mutated_bytes(generator, self.predictions)
        else:
            rows = list(csv.reader(io.StringIO(self.predictions.decode(), newline="")))
            row = generator.choice(rows)
            row[generator.randrange(len(row))] = str(generator.choice(HOSTILE))[:4000]
            text = io.StringIO()
            csv.writer(text).writerows(rows)
            content = text.getvalue().encode("utf-8", "surrogateescape")
        self._write_run(predictions=content)
        self._tell()

    def _run_config(self, generator: random.Random) -> None:
        self._write_run(config=yaml.safe_dump(_writable(mutated(generator, self.settings))).encode())
        self._tell()
        config = normalised(self.run.read_config())
        take_classes(config)
        config_errors(self.parser, without_objects(config), imports=False)

    def _recipe(self, generator: random.Random) -> None:
        content, file = generator.choice(self.recipes), self.folder / "recipe.yaml"
        if generator.random() < 0.5:
            content = mutated_bytes(generator, content)
        else:
            content = yaml.safe_dump(_writable(mutated(generator, yaml.safe_load(content)))).encode()
        file.write_bytes(content)
        config = normalised(read_yaml(file))
        take_classes(config)
        for error in config_errors(self.parser, config, imports=False):
            check_line(error)

    def _write_run(
        self, results: bytes | None = None, predictions: bytes | None = None, config: bytes | None = None
    ) -> None:
        self.run.results_file.write_bytes(results or json.dumps(self.results).encode())
        self.run.predictions_file.write_bytes(self.predictions if predictions is None else predictions)
        self.run.config_file.write_bytes(yaml.safe_dump(self.settings).encode() if config is None else config)

    def _tell(self) -> None:
        """What report, card and push make of the run, but for the pictures."""
        found = Results.read(self.run)
        report._summary(found, self.model)
        report._time_section(found)
        report._configuration_section(self.run, found)
        if found.metrics:
            kind = KINDS[found.task]
            kind.class_sections(kind.answers.read(self.run.predictions_file, found.classes))
        model_card(self.run, backbone=self.model)
        contents(self.run, "user/name")


def _writable(value: Any) -> Any:
    """The value without what YAML can't write."""
    if isinstance(value, dict):
        return {_writable(key): _writable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_writable(inner) for inner in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _images() -> Iterator[bytes]:
    """Small images of the formats that are read."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    for mode, format, options in (
        ("RGB", "JPEG", {"exif": _exif()}), ("L", "JPEG", {"progressive": True}), ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}), ("P", "PNG", {}), ("P", "GIF", {}), ("RGB", "BMP", {}), ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}), ("I;16", "PNG", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("CMYK", "JPEG", {}), ("RGB", "PPM", {}),
    ):  # fmt: skip
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        yield buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return exif.tobytes()


def check_line(error: Exception) -> None:
    """Make sure that an error is one line of sensible length."""
    line = terminal_line(str(error))
    assert "\n" not in line and "\x1b" not in line
    assert len(str(error)) <= LONGEST_PROBLEM, f"a message of {len(str(error)):,} characters: {str(error)[:200]}"


def run_case(target: Callable[[random.Random], None], name: str, number: int) -> str:
    """Run one case.

    Returns:
        What came of it: "taken" or "refused".

    Raises:
        Exception: A finding.
    """
    with _limit(SECONDS_A_CASE):
        try:
            target(random.Random(f"{name} {number}"))
        except (UserError, BadImage) as error:
            check_line(error)
            return "refused"
    return "taken"


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Fuzz for so many minutes; returns 1 where something was found."""
    from conftest import fitted

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--target")
    parser.add_argument("--case", type=int)
    parser.add_argument("--run", type=Path, help="a finished run; a short one is made where none is given")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "fit").mkdir()
        run = options.run or fitted(place / "fit", dict(os.environ), "--model.backbone", "mixer_nano")
        targets = Targets(run, place).all
        if options.case is not None:
            print(run_case(targets[options.target], options.target, options.case))
            return 0
        chosen = {name: target for name, target in targets.items() if options.target in (None, name)}
        ends, number, counts, found = time.monotonic() + 60 * options.minutes, 0, Counter(), Counter()
        while time.monotonic() < ends:
            for name, target in chosen.items():
                try:
                    counts[name, run_case(target, name, number)] += 1
                except (Exception, TooSlow) as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                    if not found[name, kind]:
                        print(f"{name} {number}: {kind}: {str(error)[:200]!r}", flush=True)
                    found[name, kind] += 1
            number += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:<16} {outcome:<8} {count:>9,}")
    print(f"{sum(found.values()):,} findings of {len(found)} kinds")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

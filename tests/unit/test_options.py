"""Options are read from source without importing it: they must be the real signatures all the same."""

import inspect

import lightning.pytorch as pl
import pytest

from mixer_finetune import ImageDataModule, MixerClassifier
from mixer_finetune.engine.options import PACKAGE, class_options

CLASSES = {
    MixerClassifier: PACKAGE / "training" / "classifier.py",
    ImageDataModule: PACKAGE / "data" / "module.py",
    pl.Trainer: inspect.getsourcefile(pl.Trainer),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_options_are_the_parameters_of_the_class(cls):
    options = class_options(type(PACKAGE)(CLASSES[cls]), cls.__name__)
    real = [p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"]
    assert [option.name for option in options] == [parameter.name for parameter in real]
    for option, parameter in zip(options, real, strict=True):
        expected = None if parameter.default is inspect.Parameter.empty else parameter.default
        assert option.default == expected, option.name


@pytest.mark.parametrize("cls", [MixerClassifier, ImageDataModule], ids=lambda cls: cls.__name__)
def test_every_option_of_ours_has_a_help_text(cls):
    missing = [option.name for option in class_options(CLASSES[cls], cls.__name__) if not option.help]
    assert missing == []

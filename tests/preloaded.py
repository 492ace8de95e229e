"""What the process that forks commands imports beforehand: all that is slow, but no client of the Hub.

torchmetrics imports transformers where it is installed, and with it the client; so it is not told.
"""

from importlib import metadata
from unittest import mock

_version = metadata.version


def _without_transformers(name: str) -> str:
    if name == "transformers":
        raise metadata.PackageNotFoundError(name)
    return _version(name)


with mock.patch.object(metadata, "version", _without_transformers):
    import pandas  # noqa: F401, as datasets does

    import mixer_finetune.engine.fit
    import mixer_finetune.evaluation.predict  # noqa: F401

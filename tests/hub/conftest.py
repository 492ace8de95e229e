"""The loopback Hub, and the real commands in front of it."""

import json
from pathlib import Path

import pytest

import forked
from hub import loading
from hub.server import HubServer

ASSETS = Path(__file__).resolve().parents[2] / "mixer_finetune" / "assets"


def files_of(folder):
    """A folder as a repository holds it: path to content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def hub():
    """An empty Hub, listening."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hub_environment(hub, environment, tmp_path_factory):
    """The environment of a user of that Hub who is not logged in, with caches of his own and short time limits.

    Of other commands too: `cli("fit", ..., **hub_environment, HF_TOKEN=user.token)`.
    """
    return {
        **environment,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_DISABLE_XET": "1",  # the client would not ask the server, which has none
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }


@pytest.fixture
def forked_run(hub, hub_environment, tmp_path):
    """Run a function in a process of its own, in an empty folder, in front of the Hub; it must print no token."""

    def run(target, *arguments, timeout=120, **changes):
        result = forked.start(target, arguments, {**hub_environment, **changes}, tmp_path).finished(timeout)
        for token in hub.users:
            assert token not in result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def command(forked_run):
    """Run `mixer-finetune ...` in front of the Hub."""

    def run(*arguments, check=None, **changes):
        result = forked_run(forked.command, *map(str, arguments), **changes)
        if check is not None:
            assert result.returncode == check, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def load(forked_run):
    """Load a model and a data set as a run does: what came, with "notes" for the user, or the line of the error."""

    def run(model=None, data=None, *, model_revision=None, data_revision=None, data_config=None, **changes):
        asked = ((model, model_revision) if model else None, (data, data_revision, data_config) if data else None)
        result = forked_run(loading.load, *asked, **changes)
        if result.returncode == 0:
            return {**json.loads(result.stdout), "notes": result.stderr}
        assert result.returncode == 2, result.stderr
        return result.stderr

    return run


@pytest.fixture
def nano(hub):
    """The bundled backbone as `someone/nano`."""
    return hub.add_repository("model", "someone/nano", files_of(ASSETS / "mixer_nano"))


@pytest.fixture
def digits(hub):
    """The bundled data set as `someone/digits`."""
    return hub.add_repository("dataset", "someone/digits", files_of(ASSETS / "digits"))

"""What backbones and data sets share in talking to the Hugging Face Hub: one line for each way it can refuse."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixer_finetune.errors import UserError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repo_id(text: str) -> bool:
    """Whether the text has the form `user/name` of a Hub repository."""
    return _REPO_ID.fullmatch(text) is not None


@contextmanager
def hub_errors(repo_id: str, kind: str, option: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that says what to change.

    Args:
        repo_id: `user/name`.
        kind: "model" or "data set", for the message.
        option: The option that named the repository.

    Raises:
        UserError: Whenever the block fails to reach, find or be allowed to read the repository.
    """
    import httpx2
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"the {kind} '{repo_id}' is gated: ask for access at {endpoint}/{repo_id}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the {kind} '{repo_id}' has no such revision; check the revision given with {option}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"no {kind} '{repo_id}' on the Hub ({endpoint}), or it is private: check {option}, or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_unreachable(repo_id, kind, option, endpoint)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"the {kind} '{repo_id}' lacks a file that is needed: {_first_line(error)}") from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx2.HTTPError, ConnectionError) as error:
        raise UserError(_unreachable(repo_id, kind, option, endpoint) + f" ({_first_line(error)})") from error


def _unreachable(repo_id: str, kind: str, option: str, endpoint: str) -> str:
    return (
        f"the Hub ({endpoint}) can't be reached and the {kind} '{repo_id}' is not in the cache; "
        f"to work offline, give {option} a local folder or a bundled name"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def download_model(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Fetch a model repository's config.json and model.safetensors, or find them in the cache.

    Returns:
        The local folder that holds both, and the commit hash that it is a snapshot of.

    Raises:
        UserError: As `hub_errors` says.
    """
    import huggingface_hub

    with hub_errors(repo_id, "model", "--model.backbone"):
        config = Path(huggingface_hub.hf_hub_download(repo_id, "config.json", revision=revision))
        # The cache keeps a snapshot under its commit hash: pin the second file to the commit of the first.
        commit = config.parent.name
        huggingface_hub.hf_hub_download(repo_id, "model.safetensors", revision=commit)
    return config.parent, commit

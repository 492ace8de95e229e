"""Reading from the Hugging Face Hub, with what its client leaves out.

The client (huggingface_hub 2.4) gives up at a dropped connection or one 503, silently takes what the cache holds when the Hub
does not answer, checks of a file its size alone, and waits for ever in some calls. Here reads are tried again for a while,
a stale answer of the cache is announced, content is checked against the hash that the Hub states, and every refusal is one
line that says what to change.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixer_finetune.errors import UserError
from mixer_finetune.files import UNWRITABLE, write_atomically
from mixer_finetune.hub.retry import DOWNLOAD_TIME_LIMIT, causes, first_line, is_transient, limit_wait, reason, retried

# A repository's weights, the first that is there.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger(__name__)


def is_repo_id(text: str) -> bool:
    """Whether the text has the form `user/name` of a Hub repository."""
    return _REPO_ID.fullmatch(text) is not None


@contextmanager
def hub_errors(repo_id: str, kind: str, option: str, *, writing: bool = False) -> Iterator[None]:
    """Talk to the Hub in this block: no request waits for ever, and a failure is one line that says what to change.

    Args:
        repo_id: `user/name`.
        kind: "model" or "data set", for the message.
        option: The option that named the repository.
        writing: Whether the block is to write, which no cache can stand in for.

    Raises:
        UserError: Whenever the block fails to reach, find or be allowed to read the repository, or to write the cache.
    """
    from huggingface_hub import errors, get_session
    from huggingface_hub.utils import httpx

    # Their warnings are about what is tried again or explained here.
    quieted = {logger: logger.level for logger in map(logging.getLogger, ("huggingface_hub", "datasets"))}
    try:
        for logger in quieted:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Not enough free disk space")
            yield
    except UserError:
        raise  # explained already
    except (httpx.LocalProtocolError, UnicodeEncodeError):
        # Cut off from its cause, whose text may hold the token.
        raise UserError("the token in HF_TOKEN can't be sent: it holds characters that no token has") from None
    except errors.HFValidationError as error:
        raise UserError(f"'{repo_id}' is not the id of a {kind} on the Hub: {first_line(error)}; change {option}") from error
    except Exception as error:
        if explanation := _explanation(error, repo_id, kind, option, writing):
            raise UserError(explanation) from error
        raise
    finally:
        hooks = get_session().event_hooks
        get_session().event_hooks = {**hooks, "request": [hook for hook in hooks["request"] if hook is not limit_wait]}
        for logger, level in quieted.items():
            logger.setLevel(level)


def _explanation(error: BaseException, repo_id: str, kind: str, option: str, writing: bool) -> str | None:
    """What to change, or None for an error that has nothing to do with the Hub or its cache."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx

    endpoint, name = constants.ENDPOINT, f"the {kind} '{repo_id}'"
    elsewhere = f"to work offline, give {option} a local folder or a bundled name"
    for cause in causes(error):
        if isinstance(cause, errors.GatedRepoError):
            page = f"{endpoint}/{'datasets/' if kind == 'data set' else ''}{repo_id}"
            return f"{name} is gated: ask for access at {page}, then set HF_TOKEN"
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{name} has no such revision; check {option.split('.')[0]}.revision"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return f"no {kind} '{repo_id}' on the Hub ({endpoint}), or it is private: check {option}, or set HF_TOKEN"
        if isinstance(cause, errors.RemoteEntryNotFoundError):
            file = cause.response.url.path.partition("/resolve/")[2].partition("/")[2]
            return f"{name} lacks a file that is needed, {file}; change {option}"
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
            return f"the Hub ({endpoint}) refuses access to {name} ({cause.response.status_code}): check HF_TOKEN"
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return (
                f"the cache {constants.HF_HOME} can't be written ({cause.strerror}): free it, or set HF_HOME to another folder"
            )
        if isinstance(cause, httpx.HTTPError | ConnectionError):
            break  # what lies under it is the network's
    missed = (httpx.HTTPError, errors.EntryNotFoundError, errors.RevisionResolutionError, ConnectionError)
    if not any(isinstance(cause, missed) for cause in causes(error)) and not is_transient(error):
        return None
    if writing:
        return f"the Hub ({endpoint}) can't be reached to write {name} ({reason(error)}): try again later"
    if constants.HF_HUB_OFFLINE:
        return f"offline mode is on (HF_HUB_OFFLINE) and {name} is not in the cache; {elsewhere}"
    return f"the Hub ({endpoint}) can't be reached and {name} is not in the cache; {elsewhere} ({reason(error)})"


def download_model(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Fetch a model repository's config.json and weights, or find them in the cache.

    Returns:
        The local folder that holds both, and the commit hash that it is a snapshot of.

    Raises:
        UserError: As `hub_errors` says, or the files arrive damaged.
    """
    from huggingface_hub import errors

    with hub_errors(repo_id, "model", "--model.backbone"):
        config = fetch(repo_id, "model", "config.json", revision or "main")
        # The cache keeps a snapshot under its commit hash: pin the second file to the commit of the first.
        commit = config.parent.name
        try:
            fetch(repo_id, "model", WEIGHT_FILES[0], commit)
        except errors.RemoteEntryNotFoundError as error:
            try:
                fetch(repo_id, "model", WEIGHT_FILES[1], commit)
            except errors.RemoteEntryNotFoundError:
                raise error from None
    return config.parent, commit


def download_file(repo_id: str, name: str, revision: str | None) -> tuple[Path, str]:
    """Fetch one file of a model repository, or find it in the cache.

    Returns:
        The file, and the commit hash that it is of.

    Raises:
        UserError: As `hub_errors` says, or the file arrives damaged.
    """
    with hub_errors(repo_id, "model", "--model.backbone"):
        path = fetch(repo_id, "model", name, revision or "main")
    return path, path.parents[len(Path(name).parts) - 1].name


def download_url(url: str) -> Path:
    """Fetch a file by its https or gs address, or find it in the cache: `HF_HOME/mixer_finetune/<hash of the address>/<name>`.

    Google's storage states the file's MD5, which is compared; of other servers the length alone is.

    Raises:
        UserError: The address can't be reached or has no such file, or the file arrives damaged.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import httpx

    address = re.sub("^gs://", "https://storage.googleapis.com/", url)
    folder = Path(constants.HF_HOME) / "mixer_finetune" / hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / (Path(httpx.URL(address).path).name or "weights")
    if path.is_file():
        return path

    def download(target: Path) -> None:
        digest, length = hashlib.md5(usedforsecurity=False), 0
        with get_session().stream("GET", address, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True) as reply:
            reply.raise_for_status()
            with open(target, "wb") as file:
                for chunk in reply.iter_raw(2**20):
                    file.write(chunk)
                    digest.update(chunk)
                    length += len(chunk)
            stated = re.search("md5=([^, ]+)", reply.headers.get("x-goog-hash", ""))
            expected = int(reply.headers.get("content-length", length))
        if length != expected or (stated and base64.b64encode(digest.digest()).decode() != stated[1]):
            raise UserError(f"{url} arrives damaged (its length or hash is not what the server states); try again later")

    try:
        retried(lambda: write_atomically(path, download), DOWNLOAD_TIME_LIMIT)
    except httpx.HTTPStatusError as error:
        raise UserError(
            f"{url} can't be had: the server answers {error.response.status_code}; change --model.backbone"
        ) from error
    except httpx.HTTPError as error:
        raise UserError(
            f"{url} can't be reached ({reason(error)}); download it elsewhere and give --model.backbone the file"
        ) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise UserError(f"{url} can't be had ({first_line(error)}); give --model.backbone a local file") from error
        raise UserError(f"the cache {folder} can't be written ({error.strerror}): free it, or set HF_HOME") from error
    return path


def fetch(repo_id: str, repo_type: str, name: str, revision: str, *, cache: bool = True) -> Path:
    """A file of a repository, from the cache or the Hub, with the content that the Hub states.

    Args:
        repo_id: `user/name`.
        repo_type: "model" or "dataset".
        name: Path in the repository.
        revision: Branch, tag or commit.
        cache: Whether the Hub need not answer: of a commit, a cached file is taken without asking it, and of a branch or tag
            where it can't be reached.

    Returns:
        The file inside the snapshot of its commit, in the cache.

    Raises:
        UserError: The file is damaged, in the cache while offline or from the Hub twice over.
        Exception: The client's; `hub_errors` explains it.
    """
    from huggingface_hub import constants

    for _ in range(2):
        path = _locate(repo_id, repo_type, name, revision, cache)
        if is_intact(path):
            return path
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{name} of '{repo_id}' is damaged in the cache; run once without HF_HUB_OFFLINE to fetch it again")
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise UserError(
        f"{name} of '{repo_id}' arrives damaged (its hash is not the one that the Hub states), twice over; try again later"
    )


def _locate(repo_id: str, repo_type: str, name: str, revision: str, cache: bool) -> Path:
    """The file in the cache, downloaded where it is not there or the revision may have moved on."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    cached = hub.try_to_load_from_cache(repo_id, name, revision=revision, repo_type=repo_type) if cache else None
    if isinstance(cached, str) and _COMMIT.fullmatch(revision):
        return Path(cached)

    offline = constants.HF_HUB_OFFLINE

    def ask() -> None:
        url = hub.hf_hub_url(repo_id, name, repo_type=repo_type, revision=revision)
        with suppress(errors.RemoteEntryNotFoundError):  # raised by the download, where the cache takes note of it
            hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)

    def download() -> str:
        return hub.hf_hub_download(repo_id, name, repo_type=repo_type, revision=revision, local_files_only=offline)

    try:
        if not offline:
            # The download alone would take an old file from the cache when the Hub does not answer, or ask for minutes.
            retried(ask)
        return Path(retried(download, DOWNLOAD_TIME_LIMIT))
    except Exception as error:
        if not isinstance(cached, str) or not is_transient(error):
            raise
        warn_of_cache(error, repo_id, revision)
        return Path(cached)


def warn_of_cache(error: BaseException, repo_id: str, revision: str) -> None:
    """Say that the cache serves in place of a Hub that does not answer."""
    _log.warning("the Hub can't be reached (%s): '%s' at %s is taken from the cache", reason(error), repo_id, revision)


def is_intact(path: Path) -> bool:
    """Whether a file of the cache has the hash that the Hub stated: the cache's name of the file that the link leads to.

    It is the sha256 of a large file and git's hash of a small one. Where the cache has no links (on Windows without developer
    mode) there is nothing to compare with, and every file passes.
    """
    if not path.is_symlink():
        return True
    stated = os.path.basename(os.readlink(path))
    if len(stated) == 64:
        digest = hashlib.sha256()
    elif len(stated) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True  # another server's own kind of ETag
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == stated

"""Reading from the Hugging Face Hub, with what its client leaves out.

The client (huggingface_hub 2.4) gives up after a dropped connection or one 503, silently uses the cache when the Hub
does not answer, compares only the size of a file, and waits for ever in some calls. Here reads are tried again for a
while, the use of the cache is announced, content is compared with the hash that the Hub states, and every refusal is
one line that says what to change.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from mixer_finetune.errors import UserError
from mixer_finetune.files import UNWRITABLE, write_atomically
from mixer_finetune.hub.progress import Pace, client_bar, say_download
from mixer_finetune.hub.retry import (
    DOWNLOAD_TIME_LIMIT,
    TRANSIENT_STATUS,
    causes,
    first_line,
    http_library,
    is_transient,
    lift_limits,
    reason,
    retried,
    set_limits,
)

RepoType = Literal["model", "dataset"]
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# As they are called in messages.
_KINDS: dict[RepoType, str] = {"model": "model", "dataset": "data set"}
# Statuses that are not of a repository that is not there, or of rights.
_REFUSALS = {
    400: "it does not understand what it is asked",
    404: "it knows no such address; check HF_ENDPOINT",
    413: "what is sent is larger than it takes",
}
_log = logging.getLogger(__name__)


def is_repo_id(text: str) -> bool:
    """Whether the text has the form `user/name` of a Hub repository."""
    return _REPO_ID.fullmatch(text) is not None


@contextmanager
def hub_errors(repo_id: str, repo_type: RepoType, option: str, *, writing: bool = False) -> Iterator[None]:
    """Talk to the Hub in this block: no request waits for ever, and a failure is one line that says what to change.

    Args:
        repo_id: `user/name`.
        repo_type: "model" or "dataset".
        option: The parameter that named the repository.
        writing: Whether the block is to write, where the cache is no help.

    Raises:
        UserError: Whenever the block fails to reach, find or be allowed to read the repository, or to write the cache.
    """
    from huggingface_hub import errors

    httpx = http_library()
    set_limits()  # which imports the client's session, and with it sets its logger's level
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
        problem = f"'{repo_id}' is not the id of a {_KINDS[repo_type]} on the Hub: {first_line(error)}"
        raise UserError(problem, option=option) from error
    except Exception as error:
        if explanation := _explanation(error, repo_id, repo_type, option, writing):
            raise explanation from error
        raise
    finally:
        lift_limits()
        for logger, level in quieted.items():
            logger.setLevel(level)


def _explanation(
    error: BaseException, repo_id: str, repo_type: RepoType, option: str, writing: bool
) -> UserError | None:
    """What to change, or None for an error that has nothing to do with the Hub or its cache."""
    from huggingface_hub import constants, errors

    httpx = http_library()
    endpoint, kind = constants.ENDPOINT, _KINDS[repo_type]
    name = f"the {kind} '{repo_id}'"
    for cause in causes(error):
        if isinstance(cause, errors.GatedRepoError):
            page = f"{endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
            return UserError(f"{name} is gated: ask for access at {page}, then set HF_TOKEN")
        if isinstance(cause, errors.RevisionNotFoundError):
            group = "data" if repo_type == "dataset" else "model"
            return UserError(f"{name} has no such revision", option=f"{group}.revision")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return UserError(
                f"no {kind} '{repo_id}' on the Hub ({endpoint}), or it is private",
                advice=f"check {{{option}}}, or set HF_TOKEN",
            )
        if isinstance(cause, errors.RemoteEntryNotFoundError):
            file = cause.response.url.path.partition("/resolve/")[2].partition("/")[2]
            return UserError(f"{name} lacks a file that is needed, {file}", option=option)
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
            status = cause.response.status_code
            return UserError(f"the Hub ({endpoint}) refuses access to {name} ({status}): check HF_TOKEN")
        if isinstance(cause, errors.HfHubHTTPError) and (status := cause.response.status_code) not in TRANSIENT_STATUS:
            said = re.sub(r"\s+", " ", cause.server_message or "")[:200]
            what = _REFUSALS.get(status, "it refuses what it is asked") + (f" ({said})" if said else "")
            return UserError(f"the Hub ({endpoint}) answers {status} about {name}: {what}")
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return UserError(
                f"the cache {constants.HF_HOME} can't be written ({cause.strerror}): free it, or set HF_HOME to "
                "another folder"
            )
        if isinstance(cause, httpx.HTTPError | ConnectionError):
            break  # what lies under it is the network's
        if isinstance(cause, ValueError | LookupError | TypeError | AttributeError) and _raised_by_client(cause):
            return UserError(
                f"the Hub ({endpoint}) answers what makes no sense about {name} ({first_line(cause)}): check "
                "HF_ENDPOINT, or try again later"
            )
    missed = (httpx.HTTPError, errors.EntryNotFoundError, errors.RevisionResolutionError, ConnectionError)
    if not any(isinstance(cause, missed) for cause in causes(error)) and not is_transient(error):
        return None
    if writing:
        return UserError(f"the Hub ({endpoint}) can't be reached to write {name} ({reason(error)}): try again later")
    if constants.HF_HUB_OFFLINE:
        problem = f"offline mode is on (HF_HUB_OFFLINE) and {name} is not in the cache"
    else:
        problem = f"the Hub ({endpoint}) can't be reached ({reason(error)}) and {name} is not in the cache"
    return UserError(
        problem, advice=f"to work offline, give {{{option}}} a local folder or a bundled name (mixer_nano, digits, ...)"
    )


def _raised_by_client(error: BaseException) -> bool:
    """Whether it is the client that can't make sense of an answer, and not somebody whom it calls or who calls it."""
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    houses = [house for file in files for house in ("huggingface_hub", "mixer_finetune", "datasets", "pyarrow")
              if f"/{house}/" in file]  # fmt: skip
    return houses[-1:] == ["huggingface_hub"]


def download(
    repo_id: str, repo_type: RepoType, files: Sequence[Sequence[str]], revision: str | None, option: str
) -> tuple[Path, str]:
    """Fetch files of a repository, all of one commit, or find them in the cache.

    Args:
        repo_id: `user/name`.
        repo_type: "model" or "dataset".
        files: The files by their paths in the repository, each with what may stand in for it: the first that is there
            is taken.
        revision: Branch, tag or commit; main when None.
        option: The parameter that named the repository.

    Returns:
        The local folder that holds the files, and the commit hash that it is a snapshot of.

    Raises:
        UserError: As `hub_errors` says, or a file arrives damaged.
    """
    folder, at = None, revision or "main"
    with hub_errors(repo_id, repo_type, option):
        for names in files:
            name, path = _fetch_first(repo_id, repo_type, names, at)
            # The cache keeps a snapshot under its commit hash: all further files are of the first one's commit.
            folder = path.parents[len(Path(name).parts) - 1]
            at = folder.name
    assert folder is not None, "no file was asked for"
    return folder, at


def _fetch_first(repo_id: str, repo_type: RepoType, names: Sequence[str], revision: str) -> tuple[str, Path]:
    """The first of several files that the repository has: its name and place.

    Raises:
        RemoteEntryNotFoundError: It has none of them; the error names the first.
    """
    from huggingface_hub import errors

    missing: Exception | None = None
    for name in names:
        try:
            return name, fetch(repo_id, repo_type, name, revision)
        except errors.RemoteEntryNotFoundError as error:
            missing = missing or error
    assert missing is not None, "no file was asked for"
    raise missing


def download_url(url: str, option: str) -> Path:
    """Fetch a file by its https or gs address, or find it in the cache.

    The cache is `HF_HOME/mixer_finetune/<hash of the address>/<name>`. Google's storage states the file's MD5, which is
    compared; other servers state the length alone.

    Args:
        url: The address.
        option: The parameter that named it.

    Raises:
        UserError: The address can't be reached or has no such file, or the file arrives damaged.
    """
    from huggingface_hub import constants, get_session

    httpx = http_library()
    address = re.sub("^gs://", "https://storage.googleapis.com/", url)
    folder = Path(constants.HF_HOME) / "mixer_finetune" / hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / (Path(httpx.URL(address).path).name or "weights")
    if path.is_file():
        return path

    def download(target: Path) -> None:
        digest, length = hashlib.md5(usedforsecurity=False), 0
        with get_session().stream(
            "GET", address, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
        ) as reply:
            reply.raise_for_status()
            size = int(reply.headers.get("content-length", 0)) or None
            say_download(url, size)
            pace = Pace(f"downloading {path.name}", size)
            with open(target, "wb") as file:
                for chunk in reply.iter_raw(2**20):
                    file.write(chunk)
                    digest.update(chunk)
                    length += len(chunk)
                    pace.at(length)
            stated = re.search("md5=([^, ]+)", reply.headers.get("x-goog-hash", ""))
            expected = int(reply.headers.get("content-length", length))
        if length != expected or (stated and base64.b64encode(digest.digest()).decode() != stated[1]):
            raise UserError(
                f"{url} arrives damaged (its length or hash is not what the server states); try again later"
            )

    try:
        retried(lambda: write_atomically(path, download), DOWNLOAD_TIME_LIMIT)
    except httpx.HTTPStatusError as error:
        raise UserError(
            f"{url} can't be had: the server answers {error.response.status_code}", option=option
        ) from error
    except httpx.HTTPError as error:
        raise UserError(
            f"{url} can't be reached ({reason(error)})", advice=f"download it elsewhere and give {{{option}}} the file"
        ) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise UserError(
                f"{url} can't be had ({first_line(error)})", advice=f"give {{{option}}} a local file"
            ) from error
        raise UserError(f"the cache {folder} can't be written ({error.strerror}): free it, or set HF_HOME") from error
    return path


def fetch(repo_id: str, repo_type: RepoType, name: str, revision: str, *, cache: bool = True) -> Path:
    """A file of a repository, from the cache or the Hub, with the content that the Hub states.

    Args:
        repo_id: `user/name`.
        repo_type: "model" or "dataset".
        name: Path in the repository.
        revision: Branch, tag or commit.
        cache: Whether the cache may stand in for the Hub: a commit's file is taken from it without asking the Hub, a
            branch's or tag's where the Hub can't be reached.

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
            raise UserError(
                f"{name} of '{repo_id}' is damaged in the cache; run once without HF_HUB_OFFLINE to fetch it again"
            )
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise UserError(
        f"{name} of '{repo_id}' arrives damaged (its hash is not the one that the Hub states), twice over; try again "
        "later"
    )


def _locate(repo_id: str, repo_type: RepoType, name: str, revision: str, cache: bool) -> Path:
    """The file in the cache, downloaded where it is not there or the revision may have moved on."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors
    from huggingface_hub.file_download import repo_folder_name

    cached = hub.try_to_load_from_cache(repo_id, name, revision=revision, repo_type=repo_type) if cache else None
    if isinstance(cached, str) and _COMMIT.fullmatch(revision):
        return Path(cached)

    offline = constants.HF_HUB_OFFLINE

    def ask() -> None:
        url = hub.hf_hub_url(repo_id, name, repo_type=repo_type, revision=revision)
        with suppress(errors.RemoteEntryNotFoundError):  # raised by the download, where the cache takes note of it
            found = hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            folder = repo_folder_name(repo_id=repo_id, repo_type=repo_type)
            if not (Path(constants.HF_HUB_CACHE) / folder / "blobs" / str(found.etag)).is_file():
                say_download(f"{name} of {repo_id}", found.size or 0)

    def download() -> str:
        return hub.hf_hub_download(
            repo_id,
            name,
            repo_type=repo_type,
            revision=revision,
            local_files_only=offline,
            tqdm_class=client_bar(),
        )

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
    """Say that the cache is used because the Hub does not answer."""
    _log.warning("the Hub can't be reached (%s): '%s' at %s is taken from the cache", reason(error), repo_id, revision)


def is_intact(path: Path) -> bool:
    """Whether a file of the cache has the hash that the Hub stated: the cache's name of the file that the link leads
    to.

    It is the sha256 of a large file and git's hash of a small one. Where the cache has no links (on Windows without
    developer mode) there is nothing to compare with, and every file passes.
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

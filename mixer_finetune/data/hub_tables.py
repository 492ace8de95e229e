"""Data sets of the Hub, at one commit: whole files from the network, or the tables that an earlier run prepared.

`datasets.load_dataset` alone fails at one 503, takes damaged files as good, and when the Hub does not answer, or
offline, silently gives the tables that were prepared last, whatever the revision asked for.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError
from mixer_finetune.hub.progress import paced
from mixer_finetune.hub.read import fetch, hub_errors, warn_of_cache
from mixer_finetune.hub.retry import is_transient, retried

DOWNLOADS_AT_ONCE = 8


def load_hub_tables(repo_id: str, config: str | None, revision: str | None) -> tuple[Any, str]:
    """All splits of a data set as a dict of tables, and their commit.

    Args:
        repo_id: `user/name`.
        config: Configuration, where there are several.
        revision: Branch, tag or commit.

    Raises:
        UserError: As `hub_errors` says, or the files arrive damaged.
    """
    from huggingface_hub import constants, errors

    revision = revision or "main"
    with hub_errors(repo_id, "dataset", "source"):
        if constants.HF_HUB_OFFLINE:
            return _from_cache(repo_id, config, revision)
        try:
            commit = _commit(repo_id, revision)
            builder = retried(lambda: _builder(repo_id, config, commit))
        except Exception as error:
            if not is_transient(error):
                raise
            try:
                found = _from_cache(repo_id, config, revision)
            except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError):
                raise error  # noqa: B904  (with its own cause, which says why the Hub can't be reached)
            warn_of_cache(error, repo_id, revision)
            return found
        if not Path(builder.cache_dir).is_dir():
            _fetch_files(repo_id, builder, commit)
        retried(builder.download_and_prepare)
        return builder.as_dataset(), commit


def _commit(repo_id: str, revision: str) -> str:
    """The commit that a revision stands for on the Hub, of which the cache takes note."""
    from huggingface_hub import errors

    try:
        return fetch(repo_id, "dataset", "README.md", revision, cache=False).parent.name
    except errors.RemoteEntryNotFoundError as error:
        return error.response.headers["X-Repo-Commit"]


def _builder(repo_id: str, config: str | None, commit: str) -> Any:
    import datasets

    builder = datasets.load_dataset_builder(repo_id, name=config, revision=commit)
    if builder.hash != commit:
        raise ConnectionError(f"the Hub did not answer, and datasets fell back on commit {builder.hash}")
    return builder


def _fetch_files(repo_id: str, builder: Any, commit: str) -> None:
    """Bring the repository's data files into the cache, each checked, where the builder will find them."""
    prefix = f"hf://datasets/{repo_id}@{commit}/"
    files = {file for split in (builder.config.data_files or {}).values() for file in split if file.startswith(prefix)}
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        fetched = pool.map(lambda file: fetch(repo_id, "dataset", file.removeprefix(prefix), commit), sorted(files))
        for _ in paced(fetched, len(files), f"downloading the files of {repo_id}"):
            pass


def _from_cache(repo_id: str, config: str | None, revision: str) -> tuple[Any, str]:
    """The tables that an earlier run prepared of the commit that the cache knows for a revision, and the commit.

    Raises:
        UserError: Several configurations are prepared, and none is chosen.
        RevisionResolutionError: The cache does not know the revision.
        LocalEntryNotFoundError: Nothing is prepared of that commit.
    """
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import HfApi, errors

    commit = HfApi().resolve_revision(repo_id, repo_type="dataset", revision=revision, local_files_only=True).resolved

    def cached(config: str) -> Any:
        return Cache(
            dataset_name=repo_id.split("/")[1], repo_id=repo_id, config_name=config, version="0.0.0", hash=commit
        )

    folder = Path(cached("default").cache_dir).parents[2]
    configs = sorted(path.parent.parent.name for path in folder.glob(f"*/0.0.0/{commit}"))
    if config is None and len(configs) > 1:
        raise UserError(
            f"the cache holds several configurations of '{repo_id}'", option="data.config", choices=" or ".join(configs)
        )
    if not configs or config not in (None, *configs):
        raise errors.LocalEntryNotFoundError(f"'{repo_id}' is not prepared at commit {commit}")
    builder = cached(config or configs[0])
    builder.download_and_prepare()
    return builder.as_dataset(), commit

"""Data sets of the Hub, at one commit: whole files from the network, or the tables that an earlier run prepared.

`datasets.load_dataset` alone fails at one 503, takes damaged files as good, and when the Hub does not answer, or offline,
silently gives the tables that were prepared last, whatever the revision asked for.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError
from mixer_finetune.hub import fetch, hub_errors, is_transient, retried

DOWNLOADS_AT_ONCE = 8
_log = logging.getLogger(__name__)


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

    with hub_errors(repo_id, "data set", "--data.source"):
        commit = _commit(repo_id, revision or "main")
        if constants.HF_HUB_OFFLINE:
            tables = _prepared(repo_id, config, commit)
            if tables is None:
                raise errors.LocalEntryNotFoundError(f"'{repo_id}' is not prepared at commit {commit}")
            return tables, commit
        try:
            builder = retried(lambda: _builder(repo_id, config, commit))
        except Exception as error:
            tables = _prepared(repo_id, config, commit) if is_transient(error) else None
            if tables is None:
                raise
            _log.warning("the Hub can't be reached: the tables of '%s' are taken from the cache", repo_id)
            return tables, commit
        if not Path(builder.cache_dir).is_dir():
            _fetch_files(repo_id, builder, commit)
        retried(builder.download_and_prepare)
        return builder.as_dataset(), commit


def _commit(repo_id: str, revision: str) -> str:
    """The commit that a revision stands for: of the Hub, or of the cache when offline or out of reach."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return hub.HfApi().resolve_revision(repo_id, repo_type="dataset", revision=revision, local_files_only=True).resolved
    try:
        return fetch(repo_id, "dataset", "README.md", revision).parent.name
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
        list(pool.map(lambda file: fetch(repo_id, "dataset", file.removeprefix(prefix), commit), sorted(files)))


def _prepared(repo_id: str, config: str | None, commit: str) -> Any:
    """The tables that an earlier run prepared of that very commit, or None.

    Raises:
        UserError: Several configurations are prepared, and none is chosen.
    """
    from datasets.packaged_modules.cache.cache import Cache

    def cached(config: str) -> Any:
        return Cache(dataset_name=repo_id.split("/")[1], repo_id=repo_id, config_name=config, version="0.0.0", hash=commit)

    folder = Path(cached("default").cache_dir).parents[2]
    configs = sorted(path.parent.parent.name for path in folder.glob(f"*/0.0.0/{commit}"))
    if config is None and len(configs) > 1:
        raise UserError(
            f"the cache holds several configurations of '{repo_id}': choose {' or '.join(configs)} by --data.config"
        )
    if not configs or config not in (None, *configs):
        return None
    builder = cached(config or configs[0])
    builder.download_and_prepare()
    return builder.as_dataset()

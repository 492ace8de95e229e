"""Data sets of the Hub, at one commit: whole files from the network, or what an earlier run left in the cache.

Folders of images are read as folders on this machine are; all else by `datasets`.

`datasets.load_dataset` alone fails at one 503, takes damaged files as good, and when the Hub does not answer, or
offline, silently gives the tables that were prepared last, whatever the revision asked for.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mixer_finetune.data.folders import ARCHIVES, is_image, read_image_folder
from mixer_finetune.data.parquet import readable
from mixer_finetune.data.reading import Asked, LabelledFiles, Tables
from mixer_finetune.errors import UserError
from mixer_finetune.files import write_atomically
from mixer_finetune.hub.metadata import card_metadata
from mixer_finetune.hub.progress import paced
from mixer_finetune.hub.read import fetch, hub_errors, is_repo_id, warn_of_cache
from mixer_finetune.hub.retry import is_transient, retried

DOWNLOADS_AT_ONCE = 8
# Where the Hub keeps what it made of a data set that has another form: <configuration>/<split>/0000.parquet.
CONVERTED = "refs/convert/parquet"


def read_hub(asked: Asked) -> Tables | LabelledFiles | None:
    """All splits of a data set of the Hub; None for what is no id of one.

    Raises:
        UserError: As `hub_errors` says, or the files arrive damaged.
    """
    repo_id = str(asked.source)
    if asked.path is None or not is_repo_id(repo_id):
        return None
    with readable(repo_id):
        found, commit = _load(repo_id, asked.config, asked.revision or "main")
    if isinstance(found, Path):
        files = read_image_folder(found, asked.splits)
        if files is None:
            raise UserError(f"'{repo_id}' has no images in folders, one a class", option="source")
        return replace(files, name=repo_id, commit=commit)
    if not len(found):
        raise UserError(f"'{repo_id}' holds no data", option="source")
    return Tables(repo_id, found, commit, _caches())


def hub_parquet(repo_id: str, config: str | None, revision: str) -> tuple[dict[str, list[str]], str]:
    """The parquet files of each split of a data set, as `hf://` paths, and the commit.

    Raises:
        UserError: As `hub_errors` says, or it is not made of parquet files.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UserError("offline mode is on (HF_HUB_OFFLINE), and a stream needs the Hub", option="stream")
    with readable(repo_id), hub_errors(repo_id, "dataset", "source"):
        commit = _commit(repo_id, revision)
        if revision == CONVERTED:
            names = retried(lambda: HfApi().list_repo_files(repo_id, repo_type="dataset", revision=commit))
            of_split = _of_configuration(repo_id, config, names)
            prefix = f"hf://datasets/{repo_id}@{commit}"
            return {split: [f"{prefix}/{file}" for file in found] for split, found in of_split.items()}, commit
        builder = retried(lambda: _builder(repo_id, config, commit))
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if not files or any(not path.endswith(".parquet") for paths in files.values() for path in paths):
        problem = f"'{repo_id}' is not made of parquet files, so it can't be streamed"
        raise UserError(problem, option="stream", choices="false")
    return files, commit


def _caches() -> list[str]:
    """Where the Hub's clients put files."""
    import datasets
    from huggingface_hub import constants

    caches = (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    return [os.path.realpath(cache) for cache in caches]


def _load(repo_id: str, config: str | None, revision: str) -> tuple[Any, str]:
    """All splits as a dict of tables, or the folder of their images; and the commit."""
    from huggingface_hub import constants, errors

    with hub_errors(repo_id, "dataset", "source"):
        if constants.HF_HUB_OFFLINE:
            return _from_cache(repo_id, config, revision)
        try:
            commit = _commit(repo_id, revision)
            if revision == CONVERTED:
                return _converted(repo_id, config, commit), commit
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
        if (images := _image_folder(repo_id, builder, commit)) is not None:
            return images, commit
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
    _fetch(repo_id, sorted(file.removeprefix(prefix) for file in files), commit)


def _fetch(repo_id: str, files: list[str], commit: str) -> None:
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        fetched = pool.map(lambda file: fetch(repo_id, "dataset", file, commit), files)
        for _ in paced(fetched, len(files), f"downloading the files of {repo_id}"):
            pass


def _image_folder(repo_id: str, builder: Any, commit: str) -> Path | None:
    """The folder of a repository's images, brought into the cache; None where the repository is not just that.

    `datasets` finds splits anywhere in a path, in lower case only, and drops what lies too deep. It is left to read
    repositories whose card says which files make up which configuration.
    """
    from huggingface_hub import HfApi

    if builder.name != "imagefolder" and not type(builder).__module__.endswith("imagefolder"):
        return None
    if _states_configurations(repo_id, commit):
        return None
    files = retried(lambda: HfApi().list_repo_files(repo_id, repo_type="dataset", revision=commit))
    suffixes = {PurePosixPath(file).suffix.lower() for file in files}
    if suffixes & ARCHIVES or any(PurePosixPath(file).name.startswith("metadata.") for file in files):
        return None  # which `datasets` opens
    images = sorted(file for file in files if is_image(file))
    folder = _snapshot(repo_id, commit)
    _fetch(repo_id, images, commit)
    # What says offline that all files are there.
    write_atomically(_list_of(repo_id, commit), lambda path: path.write_text(json.dumps(images), encoding="utf-8"))
    return folder


def _converted(repo_id: str, config: str | None, commit: str) -> Any:
    """All splits of a data set that the Hub converted, as a dict of tables.

    `datasets` would take all configurations for one.

    Raises:
        UserError: Several configurations are there, and none is chosen; or only a part was converted.
    """
    from huggingface_hub import HfApi

    files = retried(lambda: HfApi().list_repo_files(repo_id, repo_type="dataset", revision=commit))
    chosen = _of_configuration(repo_id, config, files)
    names = [file for split in chosen.values() for file in split]
    _fetch(repo_id, names, commit)
    # What says offline that all files are there.
    write_atomically(_list_of(repo_id, commit, ".converted"), lambda path: path.write_text(json.dumps(files)))
    return _parquet_tables(repo_id, chosen, commit)


def _of_configuration(repo_id: str, config: str | None, files: list[str]) -> dict[str, list[str]]:
    """The files of each split of a converted data set's configuration."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        parts = PurePosixPath(file).parts
        if len(parts) == 3 and file.endswith(".parquet"):
            found.setdefault(parts[0], {}).setdefault(parts[1], []).append(file)
    if config is None and len(found) == 1:
        config = next(iter(found))
    if config not in found:
        problem = (
            f"'{repo_id}' has no configuration '{config}'" if config else f"'{repo_id}' has several configurations"
        )
        raise UserError(problem, option="data.config", choices=" or ".join(found) or "another data set")
    if partial := [split for split in found[config] if split.startswith("partial-")]:
        problem = f"the Hub converted only a part of '{repo_id}' ({', '.join(partial)}), since it is large"
        raise UserError(problem, option="data.source", choices="a copy of it in parquet files")
    return found[config]


def _parquet_tables(repo_id: str, files: dict[str, list[str]], commit: str) -> Any:
    import datasets

    folder = _snapshot(repo_id, commit)
    paths = {split: [str(folder / name) for name in names] for split, names in files.items()}
    return datasets.load_dataset("parquet", data_files=paths)


def _states_configurations(repo_id: str, commit: str) -> bool:
    from huggingface_hub import errors

    try:
        card = fetch(repo_id, "dataset", "README.md", commit)
    except errors.RemoteEntryNotFoundError:
        return False
    return bool(card_metadata(card).get("configs"))


def _snapshot(repo_id: str, commit: str) -> Path:
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=repo_id, repo_type="dataset")
    return Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit


def _list_of(repo_id: str, commit: str, kind: str = "") -> Path:
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "mixer_finetune" / "image_folders"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{repo_id.replace('/', '--')}--{commit}{kind}.json"


def _from_cache(repo_id: str, config: str | None, revision: str) -> tuple[Any, str]:
    """What an earlier run left of the commit that the cache knows for a revision, as `_load` gives it.

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

    if _list_of(repo_id, commit).is_file():
        images, folder = json.loads(_list_of(repo_id, commit).read_text(encoding="utf-8")), _snapshot(repo_id, commit)
        if config in (None, "default") and all((folder / image).is_file() for image in images):
            return folder, commit
    if (listed := _list_of(repo_id, commit, ".converted")).is_file():
        chosen = _of_configuration(repo_id, config, json.loads(listed.read_text()))
        if all((_snapshot(repo_id, commit) / file).is_file() for split in chosen.values() for file in split):
            return _parquet_tables(repo_id, chosen, commit), commit
        raise errors.LocalEntryNotFoundError(f"'{repo_id}' is not in the cache at commit {commit}")
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

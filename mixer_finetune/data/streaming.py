"""Parquet files that are read while a run goes on, row group by row group, and never as a whole.

What a run needs at once lies in a cache of a given size on the disk, which all processes of the machine share: each
row group is fetched once for all of them. Rows are numbered through all files, so sampler, augmentation and resuming
work as for any other data; only the order of training keeps rows of a row group near each other.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixer_finetune.data import columns as _columns
from mixer_finetune.data.hub_tables import hub_parquet
from mixer_finetune.data.reading import Asked, Tables
from mixer_finetune.errors import UserError
from mixer_finetune.files import sweep, write_atomically
from mixer_finetune.hub.read import hub_errors, is_repo_id
from mixer_finetune.hub.retry import is_transient, reason, retried
from mixer_finetune.randomness import ORDER, STREAM, random_bits, uniform

HUB = "hf://"
_AT_ONCE = 8  # files whose footers are read at once
_OPEN_GROUPS = 16  # row groups that a process keeps mapped


@dataclass(frozen=True)
class Shard:
    """A parquet file.

    Attributes:
        path: On this machine, or `hf://datasets/user/name@commit/file`.
        group_rows: Rows of each row group.
        group_bytes: Of the image column, compressed, in each row group.
    """

    path: str
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]


class StreamedRecords:
    """The rows of parquet files in the place of a `datasets.Dataset` with an image column.

    Args:
        shards: The files, in order.
        column: Of the images.
        cache_bytes: Most bytes that are kept on the disk.

    Attributes:
        groups: Row group of each row, numbered through all files, (rows,).
    """

    streamed = True

    def __init__(self, shards: Sequence[Shard], column: str, cache_bytes: int) -> None:
        self.shards, self.column, self.cache_bytes = list(shards), column, cache_bytes
        rows = [n for shard in shards for n in shard.group_rows]
        self._of_group = [(shard, i) for shard in shards for i in range(len(shard.group_rows))]
        self._starts = np.cumsum([0, *rows])
        self.groups = np.repeat(np.arange(len(rows)), rows)
        self._names = {shard.path: _fingerprint(shard.path, column) for shard in shards}
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}  # what is mapped here is not there

    def __getitem__(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        """The undecoded images of those rows.

        Raises:
            UserError: They can't be fetched.
        """
        found = []
        for row in rows:
            group = int(self.groups[row])
            value = self._table(group).column(self.column)[row - int(self._starts[group])].as_py() or {}
            # A path without bytes would be a file of this machine, which a row of a table may not have read.
            found.append({"bytes": value.get("bytes") or b"", "path": value.get("path")})
        return {self.column: found}

    def window_bytes(self, buffer: int) -> int:
        """About how many bytes of row groups are in use at once, where images are put off by up to `buffer` places."""
        sizes = [size for shard in self.shards for size in shard.group_bytes]
        return int(sum(sizes) * min(1.0, buffer / max(len(self), 1))) + max(sizes, default=0)

    def _table(self, group: int) -> pa.Table:
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        shard, number = self._of_group[group]
        file = _cache_folder() / f"{self._names[shard.path]}-{number}.arrow"
        table = _mapped(file)
        while table is None:  # another process may remove it again before it is mapped
            with _locked(file):
                if not file.exists():
                    self._fetch(shard, number, file)
                table = _mapped(file)
        self._tables[group] = table
        if len(self._tables) > _OPEN_GROUPS:
            self._tables.popitem(last=False)
        return table

    def _fetch(self, shard: Shard, number: int, file: Path) -> None:
        def read() -> pa.Table:
            with _parquet(shard.path) as parquet:
                return parquet.read_row_group(number, columns=[self.column])

        with _talking_to_the_hub(shard.path):
            table = _read(read, shard.path)

        def write(path: Path) -> None:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)

        write_atomically(file, write)
        _make_room(file, self.cache_bytes)


def streamed_order(groups: NDArray[np.int64], seed: int, epoch: int, buffer: int) -> NDArray[np.int64]:
    """A permutation of the samples that depends on (seed, epoch) alone, and goes through the row groups one by one.

    The row groups come in a random order, and each sample is then put off by up to `buffer` places, at random: as a
    shuffle buffer of that size does, but for its dependence on what was read before.

    Args:
        groups: Row group of each sample, (n,).
        seed: Of the run.
        epoch: Counted from 0.
        buffer: Samples.
    """
    n, distinct = len(groups), np.unique(groups)
    place = np.empty(int(distinct[-1]) + 1, np.int64) if n else np.empty(0, np.int64)
    place[distinct] = np.argsort(np.argsort(random_bits(seed, STREAM, epoch, distinct, 1)[:, 0], kind="stable"))
    one_by_one = np.argsort(place[groups], kind="stable")
    later = np.arange(n) + buffer * uniform(seed, ORDER, epoch, one_by_one, 1)[:, 0]
    return one_by_one[np.argsort(later, kind="stable")]


def read_stream(asked: Asked) -> Tables | None:
    """The splits of a data set that is to be streamed; None where that is not asked for.

    Raises:
        UserError: It can't be streamed, or the Hub can't be reached.
    """
    if not asked.stream:
        return None
    name = str(asked.source)
    if asked.path is not None and asked.path.suffix == ".parquet" and asked.path.is_file():
        files, commit = {"train": [str(asked.path)]}, None
    elif asked.path is not None and not asked.path.exists() and is_repo_id(name):
        files, commit = hub_parquet(name, asked.config, asked.revision or "main")
    else:
        problem = f"{name} can't be streamed: that is for parquet files, on the Hub or a single one here"
        raise UserError(problem, option="stream", choices="false")
    sweep(_cache_folder())
    tables, streams = {}, {}
    some_file = next(iter(files.values()))[0]
    with _talking_to_the_hub(some_file), ThreadPoolExecutor(_AT_ONCE) as pool:
        for split, paths in files.items():
            heads = list(pool.map(_head, paths))
            features = _features(heads[0].schema)
            images = _columns.image_column(features, asked.image_column)
            labels = list(asked.label_columns or [_columns.label_column(features, asked.label_column)])
            shards = [_shard(path, head, images) for path, head in zip(paths, heads, strict=True)]
            parts = list(pool.map(lambda path, columns=labels: _columns_of(path, columns), paths))
            tables[split] = _dataset(pa.concat_tables(parts), features)
            streams[split] = StreamedRecords(shards, images, int(asked.stream_cache_gb * 1e9))
    return Tables(name, tables, commit, None, streams)


@dataclass(frozen=True)
class _Head:
    """What stands at the end of a parquet file."""

    schema: pa.Schema
    metadata: Any


def _head(path: str) -> _Head:
    def read() -> _Head:
        with _parquet(path) as parquet:
            return _Head(parquet.schema_arrow, parquet.metadata)

    head: _Head = _read(read, path)
    return head


def _features(schema: pa.Schema) -> Any:
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _shard(path: str, head: _Head, column: str) -> Shard:
    groups = [head.metadata.row_group(i) for i in range(head.metadata.num_row_groups)]
    sizes = [
        sum(
            group.column(i).total_compressed_size
            for i in range(group.num_columns)
            if group.column(i).path_in_schema.split(".")[0] == column
        )
        for group in groups
    ]
    return Shard(path, tuple(group.num_rows for group in groups), tuple(sizes))


def _columns_of(path: str, columns: list[str]) -> pa.Table:
    def read() -> pa.Table:
        with _parquet(path) as parquet:
            return parquet.read(columns=columns)

    return _read(read, path)


def _dataset(table: pa.Table, features: Any) -> Any:
    import datasets

    chosen = datasets.Features({name: features[name] for name in table.column_names})
    return datasets.Dataset(table.replace_schema_metadata(None).cast(chosen.arrow_schema))


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """A parquet file, of which only what is asked for is read."""
    if not path.startswith(HUB):
        with pq.ParquetFile(path) as parquet:
            yield parquet
        return
    from huggingface_hub import HfFileSystem

    with HfFileSystem().open(path, "rb", cache_type="none") as file, pq.ParquetFile(pa.PythonFile(file)) as parquet:
        yield parquet


def _read(read: Any, path: str) -> Any:
    """The result of a read of a file, tried again while the Hub fails.

    Raises:
        UserError: It fails for good.
    """
    try:
        return retried(read)
    except Exception as error:
        if is_transient(error):
            raise UserError(f"{path} can't be read now ({reason(error)})", advice="go on with {resume}") from error
        if isinstance(error, FileNotFoundError | pa.ArrowException) and not path.startswith(HUB):
            said = str(error).splitlines()[0]
            raise UserError(f"{path} can't be read as parquet ({said})", option="source") from error
        raise


def _talking_to_the_hub(path: str) -> Any:
    """As `hub_errors`, where a path is the Hub's. Threads share what it changes, so it is for all of them at once."""
    if not path.startswith(HUB):
        return nullcontext()
    repo_id = path.removeprefix(HUB).split("@")[0].partition("/")[2]
    return hub_errors(repo_id, "dataset", "source")


# The cache


def _cache_folder() -> Path:
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "mixer_finetune" / "streamed"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else fetches that file in this block."""
    from huggingface_hub.utils._fixes import WeakFileLock

    with WeakFileLock(file.with_suffix(".lock")):
        yield


def _fingerprint(path: str, column: str) -> str:
    """Of a file's content, as far as its name says it: the Hub's has the commit, one of this machine a date."""
    status = None if path.startswith(HUB) else os.stat(path)
    of_now = (status.st_size, status.st_mtime_ns) if status else ()
    return hashlib.sha256(repr((path, column, of_now)).encode()).hexdigest()[:24]


def _mapped(file: Path) -> pa.Table | None:
    """A row group as it lies in the cache; None where it does not."""
    try:
        os.utime(file)  # the oldest goes first
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except FileNotFoundError:
        return None


def _make_room(newest: Path, most: int) -> None:
    """Remove the row groups that were used the longest ago, until the rest fits."""
    files = []
    for file in newest.parent.glob("*.arrow"):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        files.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= most:
            return
        if file != newest:
            file.unlink(missing_ok=True)
            file.with_suffix(".lock").unlink(missing_ok=True)
            total -= size

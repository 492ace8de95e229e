"""A file of numbers that any number of processes fill together, chunk by chunk, and map into their memory.

    values: n rows of L x C numbers, then a byte for each chunk of rows: 0 not there yet, 1 there, 2 there with gaps

A process that computes a chunk holds a lock on its byte, which the system takes back when the process dies; a chunk
counts once its values are on the disk. So nothing is computed twice, and what a kill left is gone on with.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

try:
    import fcntl
except ImportError:  # another system: processes then compute the same values twice
    fcntl = None  # type: ignore[assignment]

# Seconds of work that a kill may cost: to flush more often takes time.
COMMIT_EVERY = 1.0
_WHOLE, _GAPS = 1, 2


class FeatureFile:
    """Values of the images of a split.

    Args:
        path: Of the file, whose name says what the values depend on.
        shape: (n, L, C).
        dtype: np.float32 or np.float64.
        chunk: Rows that are computed at once.

    Raises:
        OSError: There is no room for it, or no right to write.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: type[np.floating], chunk: int) -> None:
        self.path, self.shape, self.dtype, self.chunk = path, shape, np.dtype(dtype), chunk
        self.chunks = -(-shape[0] // chunk)
        self.size = int(np.prod(shape)) * self.dtype.itemsize  # of the values; the marks come behind them
        self._pending: list[tuple[int, int]] = []
        self._committed = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.stat().st_size if path.is_file() else 0
        if there < self.size + self.chunks and self.size > shutil.disk_usage(path.parent).free / 2:
            raise OSError(f"{path.parent} has too little room")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _reserve(self._file, self.size + self.chunks)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Keep what is there, and let others do the rest."""
        try:
            self.commit()
        finally:
            os.close(self._file)

    def _marks(self) -> NDArray[np.uint8]:
        return np.frombuffer(os.pread(self._file, self.chunks, self.size), np.uint8)

    def missing(self) -> list[int]:
        """Chunks that are not there yet."""
        return [int(i) for i in np.flatnonzero(self._marks() == 0)]

    def gaps(self) -> list[int]:
        """Chunks in which a row has no values."""
        return [int(i) for i in np.flatnonzero(self._marks() == _GAPS)]

    def rows(self, chunk: int) -> slice:
        """The rows of a chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.shape[0]))

    def claim(self, chunk: int) -> bool:
        """Whether the chunk is this process's to compute: it is neither there, nor being computed by another."""
        if any(chunk == mine for mine, _ in self._pending) or not self._lock(chunk):
            return False
        if self._marks()[chunk]:
            self._unlock(chunk)
            return False
        return True

    def write(self, chunk: int, values: NDArray[np.floating]) -> None:
        """Put in the values of a chunk that was claimed, (rows, L, C); a row of an image without any is NaN."""
        row = self.dtype.itemsize * self.shape[1] * self.shape[2]
        content = memoryview(np.ascontiguousarray(values, self.dtype).tobytes())
        at = chunk * self.chunk * row
        while content:  # a write may do less than it was asked for
            done = os.pwrite(self._file, content, at)
            content, at = content[done:], at + done
        self._pending.append((chunk, _GAPS if np.isnan(values).any() else _WHOLE))
        if time.monotonic() - self._committed >= COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Let what was written count, for all processes and for good."""
        if self._pending:
            os.fsync(self._file)
        for chunk, mark in self._pending:
            os.pwrite(self._file, bytes([mark]), self.size + chunk)
            self._unlock(chunk)
        self._pending.clear()
        self._committed = time.monotonic()

    def values(self) -> Tensor:
        """All of them, (n, L, C), mapped into memory."""
        dtype = torch.float64 if self.dtype.itemsize == 8 else torch.float32
        count = int(np.prod(self.shape))
        return torch.from_file(str(self.path), shared=False, size=count, dtype=dtype).view(self.shape)

    def _lock(self, chunk: int) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.size + chunk)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a file system without locks
        return True

    def _unlock(self, chunk: int) -> None:
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self.size + chunk)
            except OSError:
                return


class FeatureMemory:
    """The same in the memory of one process, where the disk can't take it.

    Args:
        shape: (n, L, C).
        dtype: np.float32 or np.float64.
        chunk: Rows that are computed at once.
    """

    path = "memory"

    def __init__(self, shape: tuple[int, int, int], dtype: type[np.floating], chunk: int) -> None:
        self.shape, self.dtype, self.chunk = shape, np.dtype(dtype), chunk
        self._values = np.empty(shape, self.dtype)
        self._todo, self._gaps = list(range(-(-shape[0] // chunk))), list[int]()

    def close(self) -> None:
        """Nothing is left open."""

    def missing(self) -> list[int]:
        """Chunks that are not there yet."""
        return list(self._todo)

    def gaps(self) -> list[int]:
        """Chunks in which a row has no values."""
        return self._gaps

    def rows(self, chunk: int) -> slice:
        """The rows of a chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.shape[0]))

    def claim(self, chunk: int) -> bool:
        """Whether the chunk is to be computed."""
        return chunk in self._todo

    def write(self, chunk: int, values: NDArray[np.floating]) -> None:
        """Put in the values of a chunk."""
        self._values[self.rows(chunk)] = values
        self._todo.remove(chunk)
        if np.isnan(values).any():
            self._gaps.append(chunk)

    def commit(self) -> None:
        """Nothing is kept."""

    def values(self) -> Tensor:
        """All of them, (n, L, C)."""
        return torch.from_numpy(self._values)


def _reserve(file: int, size: int) -> None:
    """Make a file at least that long, with zeros; on a disk that has no room for it, now and not while it is mapped.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    elif os.fstat(file).st_size < size:
        os.truncate(file, size)

"""Slow rewards: through any executor, and remembered by the content of the sample.

    cached(through(reward, ProcessPoolExecutor(8)))

asks the executor only for samples not seen before; copies of a particle are one sample.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .calls import Reward, WrongLength, evaluate, one_each, reward_name

__all__ = ["CachedReward", "ExecutedReward", "cached", "content_key", "through"]


def through(reward: Reward, executor: Executor, *, chunk_size: int = 1) -> "ExecutedReward":
    """``reward`` evaluated by ``executor``, ``chunk_size`` samples a task, results in the order of the samples.

    A process pool (or Dask's, or MPI's) needs a reward and samples that can be pickled. A task that raises is repeated
    sample by sample; those that still raise get NaN, so that the finished tasks of the others are kept, and the first
    error is raised only if none worked. The executor stays the caller's: it is not shut down.
    """
    return ExecutedReward(reward, executor, chunk_size)


def cached(reward: Reward, *, max_size: int | None = None, key: Callable[[Any], bytes] | None = None) -> "CachedReward":
    """``reward`` remembered by the content of each sample; only new samples are handed over, each once.

    Right only where the reward is a function of the sample (no noise of its own). What raises is not remembered.

    Args:
        reward: samples -> one number each.
        max_size: samples remembered (the least recently used go first); unbounded if None, some 150 bytes each.
        key: content of a sample -> bytes; :func:`content_key` if None.
    """
    return CachedReward(reward, max_size, key or content_key)


class ExecutedReward:
    """See :func:`through`."""

    def __init__(self, reward: Reward, executor: Executor, chunk_size: int) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
        self.reward, self.executor, self.chunk_size = reward, executor, chunk_size

    @property
    def name(self) -> str:
        """Name of the wrapped reward."""
        return reward_name(self.reward)

    def __call__(self, samples: Any) -> Tensor:
        """Values (B,) float64 in the order of ``samples``; NaN where the reward raised."""
        chunks = [samples[i : i + self.chunk_size] for i in range(0, len(samples), self.chunk_size)]
        values, errors = self._gather(chunks)
        if errors and self.chunk_size > 1:
            failed = sorted(errors)
            singles = [(i, chunks[i][j : j + 1]) for i in failed for j in range(len(chunks[i]))]
            again, errors = self._gather([sample for _, sample in singles])
            for i in failed:
                values[i] = torch.cat([v for (owner, _), v in zip(singles, again, strict=True) if owner == i])
        if errors and len(errors) == len(samples):
            raise errors[min(errors)]
        return torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)

    def _gather(self, chunks: list[Any]) -> tuple[list[Tensor], dict[int, Exception]]:
        futures = [self.executor.submit(self.reward, chunk) for chunk in chunks]
        values, errors = [], {}
        for i, (future, chunk) in enumerate(zip(futures, chunks, strict=True)):
            try:
                values.append(one_each(future.result(), self.name, len(chunk)).detach())
            except WrongLength:
                raise
            except Exception as error:
                errors[i] = error
                values.append(torch.full((len(chunk),), torch.nan, dtype=torch.float64))
        return values, errors


class CachedReward:
    """See :func:`cached`.

    Attributes:
        hits: samples answered from memory, copies within a batch included.
        misses: samples handed to the reward.
    """

    def __init__(self, reward: Reward, max_size: int | None, key: Callable[[Any], bytes]) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size: got {max_size}, expected at least 1 or None")
        self.reward, self.max_size, self.key = reward, max_size, key
        self.hits = 0
        self.misses = 0
        self._known: OrderedDict[bytes, float] = OrderedDict()

    @property
    def name(self) -> str:
        """Name of the wrapped reward."""
        return reward_name(self.reward)

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, samples: Any) -> Tensor:
        """Values (B,) float64 in the order of ``samples``."""
        keys = [self.key(sample) for sample in samples]
        found = {key: self._known[key] for key in keys if key in self._known}
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in found:
                first.setdefault(key, row)
        if first:
            rows = list(first.values())
            chosen = samples[rows] if isinstance(samples, (Tensor, np.ndarray)) else [samples[row] for row in rows]
            found.update(zip(first, evaluate(self.reward, chosen, len(rows)).tolist(), strict=True))
        self.misses += len(first)
        self.hits += len(keys) - len(first)
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while self.max_size is not None and len(self._known) > self.max_size:
            self._known.popitem(last=False)
        return torch.tensor([found[key] for key in keys], dtype=torch.float64)


def content_key(sample: Any) -> bytes:
    """A digest (16 bytes) of a tensor, array, PIL image, text, bytes or RDKit molecule; type and shape included.

    Raises:
        TypeError: a kind of sample whose content is not known; give ``key`` to :func:`cached`.
    """
    if isinstance(sample, Tensor):
        plain = sample.detach().cpu().contiguous()
        parts: tuple[Any, ...] = ("tensor", plain.dtype, tuple(plain.shape), plain.view(-1).view(torch.uint8).numpy())
    elif isinstance(sample, np.ndarray):
        parts = ("array", sample.dtype, sample.shape, np.ascontiguousarray(sample).view(np.uint8))
    elif isinstance(sample, Image.Image):
        parts = ("image", sample.mode, sample.size, sample.getpalette(), sample.tobytes())
    elif isinstance(sample, str):
        parts = ("text", sample.encode())
    elif isinstance(sample, (bytes, int, float)):
        parts = (type(sample).__name__, repr(sample).encode())
    elif hasattr(sample, "ToBinary"):
        parts = ("molecule", sample.ToBinary())
    else:
        raise TypeError(f"no content key for {type(sample).__name__}: give cached(..., key=...)")
    digest = hashlib.blake2b(repr(parts[:-1]).encode(), digest_size=16)
    digest.update(memoryview(parts[-1]).cast("B"))
    return digest.digest()

"""Features of few dimensions from an embedding of many: a linear map, fitted once, kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Embedding", "Projection"]

Embedding = Callable[[Any], Tensor]
"""Samples -> embeddings (rows, m), such as a classifier's or CLIP's."""

_RIDGE = 1e-3
"""Of the variance of every entry within classes, so that an embedding with idle or equal entries can be whitened."""


@dataclass(frozen=True, eq=False)
class Projection:
    """(e(x) - ``mean``) ``matrix``: a feature map (rows, d) from an embedding e.

    Attributes:
        embedding: samples -> (rows, m), differentiable where gradients are wanted.
        matrix: (m, d) float64.
        mean: (m,) float64.

    Raises:
        ValueError: shapes that do not fit.
    """

    embedding: Embedding
    matrix: Tensor
    mean: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.mean.shape != self.matrix.shape[:1]:
            raise ValueError(
                f"matrix, mean: got {tuple(self.matrix.shape)}, {tuple(self.mean.shape)}, expected (m, d), (m,)"
            )

    @property
    def name(self) -> str:
        """For reports."""
        return f"projection({getattr(self.embedding, '__name__', type(self.embedding).__name__)})"

    @property
    def dimension(self) -> int:
        """d."""
        return self.matrix.shape[1]

    def __call__(self, samples: Any) -> Tensor:
        """(rows, d) float64 on the CPU."""
        return self.project(self.embedding(samples))

    def project(self, embedded: Tensor) -> Tensor:
        """(rows, d) of embeddings (rows, m)."""
        return (embedded.double().cpu() - self.mean) @ self.matrix

    # --- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def pca(cls, embedding: Embedding, embedded: Tensor, dimension: int) -> Projection:
        """The directions of largest variance, each scaled to unit variance; the largest entry of each is positive.

        Args:
            embedding: kept.
            embedded: (n, m) embeddings of samples.
            dimension: d.

        Raises:
            ValueError: fewer than two samples, more dimensions than the data have.
        """
        rows, mean = _centred(embedded)
        _, deviations, directions = torch.linalg.svd(rows / (len(rows) - 1) ** 0.5, full_matrices=False)
        usable = int((deviations > 1e-9 * deviations[0]).sum())
        if not 1 <= dimension <= usable:
            raise ValueError(f"dimension: got {dimension}, expected 1 to {usable}, in which the embeddings vary")
        return cls(embedding, _signed(directions[:dimension].T / deviations[:dimension]), mean)

    @classmethod
    def discriminant(cls, embedding: Embedding, embedded: Tensor, classes: Tensor, dimension: int) -> Projection:
        """The directions that part classes best, pair by pair, in units of the deviation within classes.

        A pair counts as much as it is parted, not as far as it is apart, so that a class far from all others leaves
        room for the rest (Loog, Duin, Haeb-Umbach 2001, IEEE Trans. Pattern Anal. Mach. Intell. 23, 762, eq. 13).

        Args:
            embedding: kept.
            embedded: (n, m) embeddings of samples.
            classes: (n,) int64.
            dimension: d, below the number of classes.

        Raises:
            ValueError: numbers that do not fit.
        """
        rows, mean = _centred(embedded)
        labels, place = torch.unique(classes, return_inverse=True)
        if place.shape != rows.shape[:1] or not 1 <= dimension <= min(len(labels) - 1, rows.shape[1]):
            raise ValueError(
                f"classes, dimension: got {tuple(classes.shape)} with {len(labels)} classes for {len(rows)} samples, "
                f"dimension {dimension}; expected one class a sample and fewer dimensions than classes"
            )
        counts = torch.bincount(place).double()
        means = torch.zeros((len(labels), rows.shape[1]), dtype=torch.float64).index_add(0, place, rows)
        means = means / counts[:, None]
        within = rows - means[place]
        widths = (within.square().sum(dim=0) / (len(rows) - len(labels))).sqrt()
        widths = torch.where(widths > 1e-9 * widths.max(), widths, 1.0)
        one = torch.eye(len(widths), dtype=torch.float64)
        scatter = (within / widths).T @ (within / widths) / (len(rows) - len(labels)) + _RIDGE * one
        whitener = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter).T, one, upper=True) / widths[:, None]
        directions = torch.linalg.eigh(_pairs(means @ whitener, counts / len(rows))).eigenvectors.flip(1)[:, :dimension]
        return cls(embedding, _signed(whitener @ directions), mean)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Matrix and mean as safetensors; the embedding is not kept."""
        from safetensors.torch import save_file

        save_file({"matrix": self.matrix.contiguous(), "mean": self.mean.contiguous()}, str(path))

    @classmethod
    def load(cls, path: str | Path, embedding: Embedding) -> Projection:
        """The map that :meth:`save` wrote, for the same embedding.

        Raises:
            ValueError: the file holds something else.
        """
        from safetensors.torch import load_file

        found = load_file(str(path))
        if set(found) != {"matrix", "mean"}:
            raise ValueError(f"{path}: holds {sorted(found)}, expected matrix and mean")
        return cls(embedding, found["matrix"], found["mean"])


def _centred(embedded: Tensor) -> tuple[Tensor, Tensor]:
    if embedded.ndim != 2 or len(embedded) < 2 or not bool(embedded.isfinite().all()):
        raise ValueError(f"embedded: got {tuple(embedded.shape)}, expected finite (n, m) with n of at least 2")
    rows = embedded.detach().cpu().double()
    mean = rows.mean(dim=0)
    return rows - mean, mean


def _pairs(means: Tensor, shares: Tensor) -> Tensor:
    """Scatter (m, m) of pairs of class means (C, m) in whitened units, each pair by erf(D / sqrt 8) / (2 D^2)."""
    first, second = torch.triu_indices(len(means), len(means), offset=1)
    apart = means[first] - means[second]
    distance = apart.square().sum(dim=1).sqrt().clamp_min(1e-12)
    weight = shares[first] * shares[second] * torch.erf(distance / 8.0**0.5) / (2.0 * distance.square())
    return (weight[:, None] * apart).T @ apart


def _signed(matrix: Tensor) -> Tensor:
    """The same columns, the largest entry of each positive: a decomposition leaves the sign open."""
    largest = matrix.gather(0, matrix.abs().argmax(dim=0, keepdim=True))
    return matrix * torch.where(largest < 0, -1.0, 1.0)

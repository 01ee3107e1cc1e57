"""The root mean square deviation from a reference structure after optimal superposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import check_group, check_positions, safe_sqrt
from .rotation import optimal_rotation
from .weights import check_weights, normalised

__all__ = ["RMSD", "Superposition"]


@dataclass(frozen=True, eq=False)
class Superposition:
    r"""Mean square deviations from reference structures, each after the best translation and rotation.

    A structure x is laid onto a reference y by minimising :math:`\sum_i v_i |R (x_i - \bar x) - (y_i - \bar y)|^2` over
    proper rotations (Kabsch), then :math:`d^2 = \sum_j w_j |R (x_j - \bar x) - (y_j - \bar y)|^2`.

    Args:
        references: (F, N, 3) in nm, F structures of the whole molecule.
        atoms: displaced atoms j, whose deviation counts.
        align: aligned atoms i, or None for ``atoms``.
        weights, align_weights: of ``atoms`` and ``align``, scaled to sum 1; None for equal ones.  Without ``align``
            the alignment takes ``weights`` too.
        name: label, for errors.

    Raises:
        ValueError: for bad shapes, indices, or weights.
    """

    references: torch.Tensor
    atoms: tuple[int, ...]
    align: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    align_weights: tuple[float, ...] | None = None
    name: str = "rmsd"

    def __post_init__(self) -> None:
        shape = tuple(self.references.shape)
        if len(shape) != 3 or shape[-1] != 3 or not torch.isfinite(self.references).all():
            raise ValueError(f"{self.name}: references must be finite, of shape (F, N, 3) in nm, got {shape}")
        object.__setattr__(self, "references", self.references.detach().double().clone())
        check_group(self.name, self.atoms, at_least=2)
        check_weights(self.name, self.weights, len(self.atoms))
        check_group(self.name, self.aligned, at_least=2)
        if self.align is None and self.align_weights is not None:
            raise ValueError(f"{self.name}: align_weights without align; the alignment takes the weights")
        check_weights(self.name, self.align_weights, len(self.aligned))
        if max(*self.atoms, *self.aligned) >= shape[1]:
            raise ValueError(f"{self.name}: an atom is outside the {shape[1]} atoms of the reference")

    def __repr__(self) -> str:
        """Sizes, not coordinates."""
        frames, total, _ = self.references.shape
        align = "" if self.align is None else f", align={len(self.align)} atoms"
        return f"Superposition({frames} of {total} atoms, atoms={len(self.atoms)} atoms{align}, name={self.name!r})"

    @property
    def aligned(self) -> tuple[int, ...]:
        """The atoms that are laid onto the reference."""
        return self.atoms if self.align is None else self.align

    @property
    def same_atoms(self) -> bool:
        """Whether the atoms that are aligned are those, with the weights, whose deviation counts."""
        return self.align is None

    def deviations(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Differences R^T (displaced - reference) in the frame of the positions, (B, F, n, 3), and weights (n,)."""
        check_positions(self.name, positions, (*self.atoms, *self.aligned))
        weights = normalised(self.weights, len(self.atoms), positions)
        aligned_weights = (
            weights if self.same_atoms else normalised(self.align_weights, len(self.aligned), positions)
        )[:, None]
        references = self.references.to(positions)
        x, y = (_pick(p, self.aligned) for p in (positions, references))
        x_mean, y_mean = ((aligned_weights * p).sum(1, keepdim=True) for p in (x, y))
        covariance = torch.einsum("fni,bnj->bfij", aligned_weights * (y - y_mean), x - x_mean)
        rotation = optimal_rotation(covariance)
        moved = _pick(positions, self.atoms) - x_mean
        fixed = _pick(references, self.atoms) - y_mean
        return moved[:, None] - torch.einsum("bfji,fnj->bfni", rotation, fixed), weights

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Mean square deviations (B, F) in nm^2 of positions (B, N, 3) in nm."""
        difference, weights = self.deviations(positions)
        return (weights[:, None] * difference * difference).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class RMSD:
    """Root mean square deviation from a reference in nm, after optimal superposition without reflection.

    At deviation 0 the gradient is undefined and is returned as 0, never NaN.

    Args:
        superposition: reference, atoms, alignment and weights; one reference.
        name: label in files and plots.

    Raises:
        ValueError: for several references.

    Example:
        >>> rmsd = RMSD(Superposition(torch.rand(1, 10, 3), atoms=(0, 2, 4, 6)))
        >>> rmsd.unit
        'nm'
    """

    superposition: Superposition
    name: str = "rmsd"

    def __post_init__(self) -> None:
        if len(self.superposition.references) != 1:
            raise ValueError(f"{self.name}: needs one reference, got {len(self.superposition.references)}")

    @property
    def period(self) -> None:
        """Not periodic."""
        return

    @property
    def unit(self) -> str:
        """Nanometres."""
        return "nm"

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Deviations (B,) in nm of positions (B, N, 3) in nm."""
        return safe_sqrt(self.superposition(positions)[:, 0])


def _pick(positions: torch.Tensor, atoms: tuple[int, ...]) -> torch.Tensor:
    return positions.index_select(1, torch.tensor(atoms, device=positions.device))

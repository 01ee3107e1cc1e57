"""Lennard-Jones and Coulomb pairs in plain torch (reference implementation).

Positions come as (N, 3, B); energies are (B,) in kJ/mol.
"""

import torch
from torch import Tensor, nn

from .tables import NonbondedTable

__all__ = ["Nonbonded"]


class Nonbonded(nn.Module):
    """E = sum over pairs of qq/r + c12/r^12 - c6/r^6, with an optional cutoff and reaction field."""

    i: Tensor
    j: Tensor
    qq: Tensor
    c6: Tensor
    c12: Tensor

    def __init__(self, table: NonbondedTable, dtype: torch.dtype) -> None:
        super().__init__()
        n = len(table.qq)
        upper = torch.triu_indices(n, n, offset=1)
        tables = [torch.as_tensor(t, dtype=dtype)[upper[0], upper[1]] for t in (table.qq, table.c6, table.c12)]
        keep = (tables[0] != 0) | (tables[1] != 0) | (tables[2] != 0)
        self.register_buffer("i", upper[0][keep])
        self.register_buffer("j", upper[1][keep])
        for name, values in zip(("qq", "c6", "c12"), tables, strict=True):
            self.register_buffer(name, values[keep][:, None])
        atoms = torch.as_tensor(table.exception_atoms)
        self.register_buffer("exception_i", atoms[:, 0].contiguous())
        self.register_buffer("exception_j", atoms[:, 1].contiguous())
        for name in ("qq", "c6", "c12"):
            values = torch.as_tensor(getattr(table, f"exception_{name}"), dtype=dtype)
            self.register_buffer(f"exception_{name}", values[:, None])
        self.cutoff, self.k_rf, self.c_rf = table.cutoff, table.k_rf, table.c_rf

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        r2 = (positions[self.i] - positions[self.j]).square().sum(dim=1)
        inverse = torch.rsqrt(r2)
        coulomb = inverse if self.cutoff is None else inverse + self.k_rf * r2 - self.c_rf
        pair = self.qq * coulomb + _lennard_jones(inverse, self.c6, self.c12)
        if self.cutoff is None:
            return pair.sum(dim=0)
        # a comparison with NaN is false; multiply by "not beyond" so that NaN stays visible
        return torch.where(r2 > self.cutoff**2, 0.0, pair).sum(dim=0) + self._exceptions(positions)

    def _exceptions(self, positions: Tensor) -> Tensor:
        i, j = self.get_buffer("exception_i"), self.get_buffer("exception_j")
        inverse = torch.rsqrt((positions[i] - positions[j]).square().sum(dim=1))
        qq, c6, c12 = (self.get_buffer(f"exception_{name}") for name in ("qq", "c6", "c12"))
        return (qq * inverse + _lennard_jones(inverse, c6, c12)).sum(dim=0)


def _lennard_jones(inverse: Tensor, c6: Tensor, c12: Tensor) -> Tensor:
    inverse6 = inverse.square() ** 3
    return inverse6 * (c12 * inverse6 - c6)

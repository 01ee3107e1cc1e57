"""Generalized Born solvation of the OBC and GBn families in plain torch (reference implementation).

Burial integral I_i (Hawkins, Cramer, Truhlar 1996), effective radius 1/B = 1/or - tanh(a psi - b psi^2 + c
psi^3)/radius with psi = I or (Onufriev, Bashford, Case 2004), neck correction (Mongan et al. 2007;
Nguyen, Roe, Simmerling 2013), energy -k/2 (1/eps_in - exp(-kappa f)/eps_out) q_i q_j / f with f^2 = r^2 + B_i B_j
exp(-r^2 / (4 B_i B_j)) (Still et al. 1990). Positions come as (N, 3, B); energies are (B,) in kJ/mol.
"""

import torch
from torch import Tensor, nn

from .tables import GeneralizedBornTable

__all__ = ["GeneralizedBorn"]

_PROBE = 0.14  # nm, radius of a water molecule in the surface term


class GeneralizedBorn(nn.Module):
    """One generalized Born model; see the module's docstring for the formulas."""

    i: Tensor
    j: Tensor
    charge: Tensor
    radius: Tensor
    offset_radius: Tensor
    scaled_radius: Tensor
    tanh: Tensor

    def __init__(self, table: GeneralizedBornTable, dtype: torch.dtype) -> None:
        super().__init__()
        n = len(table.charge)
        upper = torch.triu_indices(n, n, offset=1)
        self.register_buffer("i", upper[0])
        self.register_buffer("j", upper[1])
        for name in ("charge", "radius", "offset_radius", "scaled_radius"):
            self.register_buffer(name, torch.as_tensor(getattr(table, name), dtype=dtype)[:, None])
        self.register_buffer("tanh", torch.as_tensor(table.tanh, dtype=dtype).T[:, :, None].contiguous())
        self.has_neck = table.neck_m is not None
        for name, values in (("neck_m", table.neck_m), ("neck_d", table.neck_d)):
            self.register_buffer(name, None if values is None else torch.as_tensor(values, dtype=dtype))
        self.neck_cutoff, self.kappa, self.surface = table.neck_cutoff, table.kappa, table.surface
        self.coulomb, self.cutoff, self.buried_term = table.coulomb, table.cutoff, table.buried_term
        self.solute_dielectric, self.solvent_dielectric = table.solute_dielectric, table.solvent_dielectric

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        r = (positions[self.i] - positions[self.j]).square().sum(dim=1).sqrt()
        born = self.born_radii(r)
        energy = (0.5 * self._screened(self.charge.square(), born, 0.0)).sum(dim=0)
        if self.surface:
            ratio = self.radius / born
            energy = energy + (self.surface * (self.radius + _PROBE).square() * (ratio.square() ** 3)).sum(dim=0)
        bi, bj = born[self.i], born[self.j]
        r2, product = r.square(), bi * bj
        f = (r2 + product * torch.exp(-r2 / (4.0 * product))).sqrt()
        # with a cutoff OpenMM shifts the pairs, not the self-energies, to zero at the cutoff
        shift = 0.0 if self.cutoff is None else 1.0 / self.cutoff
        pair = self._screened(self.charge[self.i] * self.charge[self.j], f, shift)
        return energy + self._within(r, pair).sum(dim=0)

    def born_radii(self, r: Tensor) -> Tensor:
        """Effective Born radii (N, B) in nm from the pair distances (n_pairs, B)."""
        integral = torch.zeros((len(self.charge), r.shape[1]), dtype=r.dtype, device=r.device)
        integral = integral.index_add(0, self.i, self._within(r, self._burial(r, self.i, self.j)))
        integral = integral.index_add(0, self.j, self._within(r, self._burial(r, self.j, self.i)))
        psi = integral * self.offset_radius
        a, b, c = self.tanh
        inside = torch.tanh(psi * (a - psi * (b - psi * c)))
        return 1.0 / (1.0 / self.offset_radius - inside / self.radius)

    def _burial(self, r: Tensor, atom: Tensor, other: Tensor) -> Tensor:
        """Contribution (n_pairs, B) of the spheres ``other`` to the burial integrals of ``atom``."""
        own, scaled = self.offset_radius[atom], self.scaled_radius[other]
        upper = r + scaled
        lower = torch.maximum(own, (r - scaled).abs())
        term = (
            1.0 / lower
            - 1.0 / upper
            + 0.25 * (r - scaled.square() / r) * (upper.square().reciprocal() - lower.square().reciprocal())
            + 0.5 * torch.log(lower / upper) / r
        )
        if self.buried_term:
            term = term + torch.where(scaled - r > own, 2.0 * (1.0 / own - 1.0 / lower), 0.0)
        term = torch.where(upper <= own, 0.0, 0.5 * term)
        if self.has_neck:
            height, position = (
                self.get_buffer("neck_m")[atom, other][:, None],
                self.get_buffer("neck_d")[atom, other][:, None],
            )
            shift2 = (r - position).square()
            neck = height / (1.0 + 100.0 * shift2 + 0.3e6 * shift2**3)
            term = term + torch.where(r > self.radius[atom] + self.radius[other] + self.neck_cutoff, 0.0, neck)
        return term

    def _screened(self, charges: Tensor, f: Tensor, shift: float) -> Tensor:
        screening = torch.exp(-self.kappa * f) if self.kappa else 1.0
        factor = -self.coulomb * (1.0 / self.solute_dielectric - screening / self.solvent_dielectric)
        return factor * charges * (1.0 / f - shift)

    def _within(self, r: Tensor, value: Tensor) -> Tensor:
        return value if self.cutoff is None else torch.where(r > self.cutoff, 0.0, value)

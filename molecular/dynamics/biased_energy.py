"""An energy with a bias and restraints along collective variables, E(x) + V(xi(x)) + R(x)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...fkc.bias import RepulsionBias
from ..cvs import CollectiveVariable, Variables
from ..energies import Energy, EnergyForces
from .restraints import Restrained, same_period

__all__ = ["BiasTerms", "BiasedEnergy"]


class BiasTerms(NamedTuple):
    """What a bias and restraints add; on the CPU.

    Attributes:
        values: (B, d) float64, the biased variables.
        bias: (B,) kJ/mol; zero without a bias.
        restraints: (B,) kJ/mol of each restraint, by name.
    """

    values: Tensor
    bias: Tensor
    restraints: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """(B,) kJ/mol: bias and restraints together."""
        return sum(self.restraints.values(), start=self.bias)


class _Slopes(NamedTuple):
    """Terms, and the derivatives (B, D) of their sum by all D different variables, biased ones first."""

    terms: BiasTerms
    slopes: Tensor


class BiasedEnergy:
    """E(x) + V(xi(x)) + restraints, an :class:`~feynkac.molecular.energies.Energy`.

    Variables and their derivatives are computed in the precision of the positions, once for bias and restraints
    together; bias and restraints in float64 on the CPU. Energies are float64; forces have the precision of the
    energy's own. A configuration whose variables, bias or restraints are not finite, or not their forces, has energy
    +inf and zero forces and is counted in ``n_non_finite``.

    Args:
        energy: without bias.
        variables: d collective variables, in the order of the bias.
        bias: in kJ/mol, or None.
        restraints: with names of their own.

    Raises:
        ValueError: names or periods of the variables that differ from the bias's, one name for two restraints or two
            different variables, or a wall that does not fit the period of its variable.
    """

    def __init__(
        self,
        energy: Energy,
        variables: Sequence[CollectiveVariable],
        bias: RepulsionBias | None,
        restraints: Sequence[Restrained] = (),
    ) -> None:
        self.energy = energy
        self.variables = tuple(variables)
        self.bias = bias
        self.restraints = tuple(restraints)
        names = [restraint.name for restraint in self.restraints]
        if len(set(names)) != len(names):
            raise ValueError(f"restraints: got the names {names}, expected each once")
        for restraint in self.restraints:
            restraint.check()
        if bias is not None:
            _check_variables(self.variables, bias)
        self._all, self._columns = _together(self.variables, self.restraints)
        self._lost = [0]  # shared with the energies of other biases

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return self.energy.n_atoms

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        return self.energy.kT

    @property
    def topology(self) -> Any:
        """The OpenMM topology of the energy, or None."""
        return self.energy.topology

    @property
    def n_calls(self) -> int:
        """Evaluations of the energy, which a bias does not add to."""
        return self.energy.n_calls

    @property
    def n_non_finite(self) -> int:
        """Configurations so far whose energy, variables, bias or restraints were not finite."""
        return self.energy.n_non_finite + self._lost[0]

    def with_bias(self, bias: RepulsionBias | None) -> "BiasedEnergy":
        """The same energy and restraints under another bias; counters are shared."""
        other = BiasedEnergy(self.energy, self.variables, bias, self.restraints)
        other._lost = self._lost
        other._all = self._all  # which has checked its gradients
        return other

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies (B,) in kJ/mol of positions (B, N, 3) in nm; once differentiable where the energy is.

        Raises:
            ValueError: the positions require a gradient, and the values of a variable do not follow them.
        """
        energy = self.energy(positions)
        values = self._values(positions)
        terms, slopes = self._slopes(values.detach())
        added = terms.total.to(energy.device)
        if values.requires_grad:
            # zero in value; its derivative carries the slopes back to the positions
            added = added + (slopes.to(values) * (values - values.detach())).sum(dim=1)
        lost = torch.isfinite(energy.detach()) & ~torch.isfinite(added.detach())
        self._lost[0] += int(lost.sum())
        total = energy + added
        return torch.where(torch.isfinite(total), total, torch.inf)

    def energy_and_forces(self, positions: Tensor) -> EnergyForces:
        """Energies (B,) float64 in kJ/mol and forces (B, N, 3) in kJ/mol/nm of positions (B, N, 3) in nm.

        Raises:
            ValueError: the values of a variable do not follow the positions.
        """
        energy, forces = self.energy.energy_and_forces(positions)
        if self._all is None or (self.bias is None and not self.restraints):
            return EnergyForces(energy, forces)
        linear = self._all.linearised(positions.detach())
        terms, slopes = self._slopes(linear.values)
        more = linear.forces(slopes.to(linear.values)).to(forces)
        total = energy + terms.total.to(energy.device)
        if math.isfinite(total.sum().item()) and math.isfinite(more.sum().item()):
            return EnergyForces(total, forces + more)
        bad = ~(torch.isfinite(total) & torch.isfinite(more).flatten(1).all(dim=1))
        self._lost[0] += int((bad & torch.isfinite(energy)).sum())
        return EnergyForces(total.masked_fill(bad, torch.inf), (forces + more).masked_fill(bad[:, None, None], 0.0))

    def terms(self, positions: Tensor) -> BiasTerms:
        """Variables, bias and restraints at positions (B, N, 3) in nm; no call of the energy."""
        return self._slopes(self._values(positions.detach())).terms

    def rebiased(self, positions: Tensor, now: EnergyForces, bias: RepulsionBias | None) -> EnergyForces:
        """Energies and forces under another bias, from those under this one; no call of the energy.

        Args:
            positions: (B, N, 3) nm.
            now: this energy at ``positions``. Rows with energy +inf keep it, and zero forces.
            bias: the other one.
        """
        if self._all is None:
            return now
        linear = self._all.linearised(positions.detach())
        (before, old), (after, new) = self._slopes(linear.values), self.with_bias(bias)._slopes(linear.values)
        energy = now.energy + (after.bias - before.bias).to(now.energy)
        lost = ~torch.isfinite(energy)
        forces = now.forces + linear.forces((new - old).to(linear.values)).to(now.forces)
        return EnergyForces(energy.masked_fill(lost, torch.inf), forces.masked_fill(lost[:, None, None], 0.0))

    def _values(self, positions: Tensor) -> Tensor:
        """(B, D), in the precision of the positions."""
        return positions.new_zeros((len(positions), 0)) if self._all is None else self._all(positions)

    def _slopes(self, values: Tensor) -> _Slopes:
        values, size = values.to("cpu", torch.float64), len(self.variables)
        if self.bias is None:
            bias, slopes = values.new_zeros(len(values)), torch.zeros_like(values)
        else:
            bias, slopes = self.bias.value_and_gradient(values[:, :size])
            slopes = pad(slopes, (0, values.shape[1] - size))
        restraints = {}
        for restraint, column in zip(self.restraints, self._columns, strict=True):
            restraints[restraint.name], slope = restraint.wall.value_and_gradient(values[:, column])
            slopes[:, column] += slope
        return _Slopes(BiasTerms(values[:, :size], bias, restraints), slopes)


def _together(
    variables: Sequence[CollectiveVariable], restraints: Sequence[Restrained]
) -> tuple[Variables | None, list[int]]:
    """All different variables, biased ones first, and the column of each restraint's."""
    everything, columns = list(variables), []
    for restraint in restraints:
        known = [k for k, variable in enumerate(everything) if variable is restraint.variable]
        known += [k for k, variable in enumerate(everything) if variable == restraint.variable]
        if not known:
            known = [len(everything)]
            everything.append(restraint.variable)
        columns.append(known[0])
    return Variables(everything) if everything else None, columns


def _check_variables(variables: Sequence[CollectiveVariable], bias: RepulsionBias) -> None:
    given = [variable.name for variable in variables]
    expected = [variable.name for variable in bias.variables]
    if given != expected:
        raise ValueError(f"variables: got {given}, but the bias acts on {expected}, in this order")
    for variable, known in zip(variables, bias.variables, strict=True):
        if not same_period(variable.period, known.period):
            raise ValueError(f"{known.name}: its period is {variable.period}, but {known.period} in the bias")

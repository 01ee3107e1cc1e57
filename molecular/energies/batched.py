"""A whole OpenMM System evaluated for a batch of configurations at once, without OpenMM in the loop."""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..units import kT as thermal_energy
from .bonded import Angles, Bonds, Cmaps, Torsions
from .errors import EnergyInputError, report_constraints
from .generalized_born import GeneralizedBorn
from .native import NativeKernel, native_status
from .nonbonded import Nonbonded
from .protocol import EnergyForces, check_positions, count_non_finite
from .read_system import read_system
from .tables import ForceFieldTables

__all__ = ["BatchedForceField"]

Backend = Literal["auto", "native", "torch"]


class _NativeEnergy(torch.autograd.Function):
    """Energy with analytic forces as its gradient; once differentiable."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, kernel: NativeKernel, threads: int) -> Tensor:
        energy, forces = kernel.evaluate(positions, forces=True, threads=threads)
        ctx.save_for_backward(forces)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (forces,) = ctx.saved_tensors
        return -forces * gradients[0].to(forces.dtype)[:, None, None], None, None


class BatchedForceField:
    """Energies and forces of many configurations of one molecule, read off an OpenMM System.

    Two implementations of the same formulas: plain torch (any device, differentiable any number of times; the
    reference) and a compiled CPU kernel with analytic forces. ``backend="auto"`` takes the kernel for CPU tensors
    where a C++ compiler is at hand, else torch. Follows the :class:`~feynkac.molecular.energies.Energy` protocol.

    Example::

        force_field = BatchedForceField.from_openmm(system, temperature=300.0)
        energy, forces = force_field.energy_and_forces(positions)  # (B,) kJ/mol, (B, N, 3) kJ/mol/nm
    """

    def __init__(
        self,
        tables: ForceFieldTables,
        *,
        topology: Any = None,
        temperature: float = 300.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        backend: Backend = "auto",
        chunk_elements: int = 20_000_000,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise EnergyInputError(f"dtype: got {dtype}, expected torch.float32 or torch.float64")
        if backend not in ("auto", "native", "torch"):
            raise EnergyInputError(f"backend: got {backend!r}, expected 'auto', 'native' or 'torch'")
        self.tables = tables
        self.topology = topology
        self.temperature = temperature
        self.dtype = dtype
        self.device = torch.device(device or "cpu")
        self.n_calls = 0
        self.n_non_finite = 0
        self._kT = thermal_energy(temperature)
        self._terms = _reference_terms(tables, dtype).to(self.device)
        self._kernel = self._choose_kernel(backend)
        # the torch path holds a few dozen (pairs, B) arrays; this bounds their size
        self._torch_chunk = max(1, chunk_elements // max(1, tables.n_atoms * (tables.n_atoms - 1) // 2))

    @classmethod
    def from_openmm(
        cls,
        system: Any,
        *,
        topology: Any = None,
        temperature: float = 300.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        backend: Backend = "auto",
    ) -> Self:
        """Read an ``openmm.System``: every force it holds is evaluated, or the conversion raises.

        Args:
            system: the System; its constraints are counted in ``n_constraints``, warned of, and not applied.
            topology: the ``openmm.app.Topology`` it belongs to (optional); its atom count must agree.
            temperature: in K, for ``kT``.
            dtype: arithmetic of the evaluation; energies are always returned as float64.
            device: where the torch implementation evaluates.
            backend: ``"auto"``, ``"native"`` (compiled CPU kernel or an error) or ``"torch"``.

        Raises:
            UnsupportedForceError: a force, or a setting of one, that is not supported.
            EnergyInputError: topology and System have different numbers of atoms, or dtype or backend is unknown.
        """
        if topology is not None and topology.getNumAtoms() != system.getNumParticles():
            raise EnergyInputError(
                f"topology: has {topology.getNumAtoms()} atoms, but the System has {system.getNumParticles()} particles"
            )
        tables = read_system(system)
        report_constraints(tables.n_constraints)
        return cls(tables, topology=topology, temperature=temperature, dtype=dtype, device=device, backend=backend)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.tables.n_atoms

    @property
    def n_constraints(self) -> int:
        """Constraints of the System. They are not applied: bond lengths are free unless the System has no term for
        them."""
        return self.tables.n_constraints

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        return self._kT

    @property
    def backend(self) -> str:
        """``"native"`` or ``"torch"``: what evaluates CPU tensors."""
        return "torch" if self._kernel is None else "native"

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies (B,) float64 in kJ/mol of positions (B, N, 3) in nm; differentiable.

        Raises:
            EnergyInputError: wrong shape or type of positions.
        """
        positions = self._prepare(positions)
        if self._kernel is not None and positions.requires_grad:
            energy: Tensor = _NativeEnergy.apply(positions, self._kernel, torch.get_num_threads())  # type: ignore[no-untyped-call]
        elif self._kernel is not None:
            energy = self._kernel.evaluate(positions, forces=False, threads=torch.get_num_threads()).energy
        else:
            energy = torch.cat([self._reference(part) for part in torch.split(positions, self._torch_chunk)])
        energy, _, bad = count_non_finite(energy, None)
        self.n_non_finite += bad
        return energy

    def energy_and_forces(self, positions: Tensor) -> EnergyForces:
        """Energies (B,) float64 in kJ/mol and forces (B, N, 3) in kJ/mol/nm, in the precision of ``dtype``.

        Raises:
            EnergyInputError: wrong shape or type of positions.
        """
        positions = self._prepare(positions).detach()
        if self._kernel is not None:
            energy, forces = self._kernel.evaluate(positions, forces=True, threads=torch.get_num_threads())
        else:
            parts = [self._reference_forces(part) for part in torch.split(positions, self._torch_chunk)]
            energy, forces = torch.cat([p.energy for p in parts]), torch.cat([p.forces for p in parts])
        energy, cleaned, bad = count_non_finite(energy, forces)
        self.n_non_finite += bad
        return EnergyForces(energy, forces if cleaned is None else cleaned)

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Energies (B,) in kJ/mol term by term (bonds, angles, torsions, ...), by the torch implementation."""
        check_positions(positions, self.n_atoms)
        batch_last = positions.to(self.device, self.dtype).permute(1, 2, 0).contiguous()
        return {name: term(batch_last) for name, term in self._terms.items()}

    def _prepare(self, positions: Tensor) -> Tensor:
        check_positions(positions, self.n_atoms)
        self.n_calls += len(positions)
        return positions.to(self.device, self.dtype)

    def _choose_kernel(self, backend: Backend) -> NativeKernel | None:
        if backend == "torch" or (backend == "auto" and self.device.type != "cpu"):
            return None
        if self.device.type != "cpu":
            raise EnergyInputError(f"device: got {self.device} with backend='native', expected 'cpu'")
        if backend == "auto" and not native_status().available:
            return None
        return NativeKernel(self.tables)

    def _reference(self, positions: Tensor) -> Tensor:
        batch_last = positions.permute(1, 2, 0).contiguous()
        total = torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
        for term in self._terms.values():
            total = total + term(batch_last).to(torch.float64)
        return total

    def _reference_forces(self, positions: Tensor) -> EnergyForces:
        with torch.enable_grad():
            leaf = positions.detach().clone().requires_grad_(True)
            energy = self._reference(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return EnergyForces(energy.detach(), -gradient)


def _reference_terms(tables: ForceFieldTables, dtype: torch.dtype) -> nn.ModuleDict:
    terms: dict[str, nn.Module] = {
        "bonds": Bonds(tables.bonds, dtype),
        "angles": Angles(tables.angles, dtype),
        "torsions": Torsions(tables.torsions, dtype),
    }
    if tables.cmaps is not None:
        terms["cmaps"] = Cmaps(tables.cmaps, dtype)
    if tables.nonbonded is not None:
        terms["nonbonded"] = Nonbonded(tables.nonbonded, dtype)
    if tables.born is not None:
        terms["generalized_born"] = GeneralizedBorn(tables.born, dtype)
    return nn.ModuleDict(terms)

"""Energies and forces by OpenMM itself, for any System: in this process, or by a pool of processes with a context
each."""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..systems import load_system, require_openmm
from ..units import kT as thermal_energy
from .errors import EnergyInputError, report_constraints
from .protocol import EnergyForces, check_positions, count_non_finite

__all__ = ["OpenMMEnergy", "PlatformSpeed", "measure_platforms"]

Floats = NDArray[np.float64]


class PlatformSpeed(NamedTuple):
    """Measured speed of one way to run OpenMM: single-configuration energies with forces a second."""

    platform: str
    threads: int
    per_second: float


class _Worker:
    """One OpenMM context that evaluates configurations one by one."""

    def __init__(self, system_xml: str, platform: str, threads: int) -> None:
        openmm = require_openmm()
        properties = {"Threads": str(threads)} if platform == "CPU" else {}
        self._integrator = openmm.VerletIntegrator(0.001)  # the context keeps only a weak hold on it
        self._context = openmm.Context(
            openmm.XmlSerializer.deserialize(system_xml),
            self._integrator,
            openmm.Platform.getPlatformByName(platform),
            properties,
        )
        self._error: type[Exception] = openmm.OpenMMException

    def evaluate(self, positions: Floats, forces: bool) -> tuple[Floats, Floats]:
        """Energies (B,) and forces (B, N, 3), or an empty array without ``forces``; NaN where OpenMM refuses."""
        energy = np.full(len(positions), np.nan)
        force = np.full(positions.shape if forces else (0,), np.nan)
        for row, configuration in enumerate(positions):
            try:
                self._context.setPositions(configuration)
                state = self._context.getState(energy=True, forces=forces)
            except self._error:  # "Particle coordinate is NaN" and the like: this configuration's fault only
                continue
            energy[row] = state.getPotentialEnergy()._value
            if forces:
                force[row] = state.getForces(asNumpy=True)._value
        return energy, force


_process_worker: _Worker | None = None


def _start_process(system_xml: str, platform: str, threads: int) -> None:
    global _process_worker
    _process_worker = _Worker(system_xml, platform, threads)


def _evaluate_in_process(positions: Floats, forces: bool) -> tuple[Floats, Floats]:
    if _process_worker is None:
        raise RuntimeError("the pool's process was started without its OpenMM context")
    return _process_worker.evaluate(positions, forces)


def measure_platforms(
    system: Any, positions: Tensor, *, seconds: float = 0.3, threads: Sequence[int] = (1,)
) -> list[PlatformSpeed]:
    """Measure energies with forces a second of every installed platform, fastest first.

    Args:
        system: an ``openmm.System``.
        positions: (N, 3) nm, a configuration with finite energy.
        seconds: time spent on each way.
        threads: thread counts tried on the CPU platform.
    """
    openmm = require_openmm()
    xml = openmm.XmlSerializer.serialize(system)
    row = positions.detach().cpu().double().numpy()[None]
    speeds = []
    for index in range(openmm.Platform.getNumPlatforms()):
        name = openmm.Platform.getPlatform(index).getName()
        for count in threads if name == "CPU" else (1,):
            try:
                worker = _Worker(xml, name, count)
                worker.evaluate(row, True)
            except openmm.OpenMMException:  # installed but without its device
                continue
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                worker.evaluate(row, True)
                done += 1
            speeds.append(PlatformSpeed(name, count, done / (time.perf_counter() - start)))
    return sorted(speeds, key=lambda s: -s.per_second)


class OpenMMEnergy:
    """OpenMM's energy of any System, for batches of configurations; follows the ``Energy`` protocol.

    Non-finite results, also NaN coordinates that OpenMM refuses, become ``+inf`` and are counted. Constraints of the
    System do not enter the energy; ``n_constraints`` reports them. With ``workers`` > 0 a pool of that many processes
    shares each batch, in order; close it with :meth:`close` or a ``with`` block.

    Example::

        with OpenMMEnergy(system, temperature=300.0, workers=2) as energy:
            values = energy(positions)  # (B, N, 3) nm -> (B,) kJ/mol
    """

    def __init__(
        self,
        system: Any,
        *,
        topology: Any = None,
        temperature: float = 300.0,
        platform: str = "auto",
        threads: int = 1,
        workers: int = 0,
        executor: Executor | None = None,
        reference_positions: Tensor | None = None,
    ) -> None:
        """Set up contexts.

        Args:
            system: an ``openmm.System``. topology: its ``openmm.app.Topology`` (optional). temperature: K, for
            ``kT``. platform: a platform's name, or ``"auto"``: the fastest by measurement at ``reference_positions``
            (or, without
                them, on the first batch).
            threads: threads of the CPU platform, for each context.
            workers: processes; 0 evaluates in this process.
            executor: a ready ``concurrent.futures`` executor to use instead, whose processes were started with
                :meth:`initializer`.
            reference_positions: (N, 3) nm for the measurement.

        Raises:
            EnergyInputError: topology and System differ in size, an unknown platform, or a negative number of workers.
        """
        openmm = require_openmm()
        if topology is not None and topology.getNumAtoms() != system.getNumParticles():
            raise EnergyInputError(
                f"topology: has {topology.getNumAtoms()} atoms, but the System has {system.getNumParticles()} particles"
            )
        known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform not in ("auto", *known):
            raise EnergyInputError(f"platform: got {platform!r}, expected 'auto' or one of {', '.join(known)}")
        if workers < 0 or threads < 1:
            raise EnergyInputError(f"workers, threads: got {workers}, {threads}, expected >= 0 and >= 1")
        report_constraints(system.getNumConstraints())
        self.topology = topology
        self.temperature = temperature
        self.n_calls = 0
        self.n_non_finite = 0
        self._system = system
        self._xml = openmm.XmlSerializer.serialize(system)
        self._kT = thermal_energy(temperature)
        self._platform = platform
        self._threads = threads
        self._workers = workers
        self._executor = executor
        self._owns_executor = executor is None
        self._local: _Worker | None = None
        if platform == "auto" and reference_positions is not None:
            self._choose(reference_positions)

    @classmethod
    def from_files(
        cls,
        pdb: str | Path,
        force_field: Sequence[str],
        *,
        nonbonded_method: str = "NoCutoff",
        cutoff: float = 2.0,
        constraints: str = "none",
        **options: Any,
    ) -> Self:
        """Build the System from a PDB file and OpenMM force-field files; ``options`` as for the class.

        Raises:
            SystemBuildError: structure and force field do not fit; the message names the residue and its atoms.
        """
        built = load_system(
            pdb,
            force_field=force_field,
            nonbonded_method=nonbonded_method,
            cutoff=cutoff,
            constraints=constraints,
        )
        options.setdefault("reference_positions", built.positions)
        return cls(built.system, topology=built.topology, **options)

    @property
    def n_atoms(self) -> int:
        """Number of particles of the System."""
        return int(self._system.getNumParticles())

    @property
    def n_constraints(self) -> int:
        """Constraints of the System; they are not part of the energy."""
        return int(self._system.getNumConstraints())

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        return self._kT

    @property
    def platform(self) -> str:
        """The platform in use, or ``"auto"`` before the first batch has decided."""
        return self._platform

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies (B,) float64 in kJ/mol of positions (B, N, 3) in nm (not differentiable).

        Raises:
            EnergyInputError: wrong shape or type of positions.
        """
        energy, _ = self._evaluate(positions, forces=False)
        energy, _, bad = count_non_finite(energy, None)
        self.n_non_finite += bad
        return energy

    def energy_and_forces(self, positions: Tensor) -> EnergyForces:
        """Energies (B,) in kJ/mol and forces (B, N, 3) in kJ/mol/nm, float64.

        Raises:
            EnergyInputError: wrong shape or type of positions.
        """
        energy, forces = self._evaluate(positions, forces=True)
        energy, cleaned, bad = count_non_finite(energy, forces)
        self.n_non_finite += bad
        return EnergyForces(energy, forces if cleaned is None else cleaned)

    def initializer(self) -> tuple[Any, tuple[str, str, int]]:
        """Function and arguments that start one process of an executor of the caller's own."""
        return _start_process, (self._xml, self._resolved_platform(None), self._threads)

    def close(self) -> None:
        """End the processes of the pool."""
        if self._executor is not None and self._owns_executor:
            self._executor.shutdown()
            self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _evaluate(self, positions: Tensor, *, forces: bool) -> tuple[Tensor, Tensor]:
        check_positions(positions, self.n_atoms)
        self.n_calls += len(positions)
        batch = positions.detach().cpu().double().numpy()
        if len(batch) == 0:
            return torch.empty(0, dtype=torch.float64), torch.empty(positions.shape, dtype=torch.float64)
        if self._workers == 0 and self._executor is None:
            if self._local is None:
                self._local = _Worker(self._xml, self._resolved_platform(positions[0]), self._threads)
            energy, force = self._local.evaluate(batch, forces)
            return torch.from_numpy(energy), torch.from_numpy(force)
        pool = self._pool(positions[0])
        # a few pieces a worker even out slow ones; map keeps the order
        pieces = np.array_split(batch, min(len(batch), 4 * max(1, self._workers)))
        results = list(pool.map(_evaluate_in_process, pieces, [forces] * len(pieces)))
        return (
            torch.from_numpy(np.concatenate([r[0] for r in results])),
            torch.from_numpy(np.concatenate([r[1] for r in results])),
        )

    def _pool(self, configuration: Tensor) -> Executor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._xml, self._resolved_platform(configuration), self._threads),
            )
        return self._executor

    def _resolved_platform(self, configuration: Tensor | None) -> str:
        if self._platform == "auto":
            if configuration is None:
                raise EnergyInputError("platform: 'auto' needs reference_positions to be measured on")
            self._choose(configuration)
        return self._platform

    def _choose(self, configuration: Tensor) -> None:
        usable = torch.nan_to_num(configuration.detach().double().cpu())
        self._platform = measure_platforms(self._system, usable, seconds=0.1, threads=(self._threads,))[0].platform

"""Read an OpenMM System into :class:`~feynkac.molecular.energies.tables.ForceFieldTables`.

Every force of the System is either read exactly or refused by name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..units import COULOMB_CONSTANT
from .born_forms import read_custom_born, read_gbsa_obc
from .cmap import bicubic_coefficients
from .errors import UnsupportedForceError
from .tables import (
    AngleTable,
    BondTable,
    CmapTable,
    ForceFieldTables,
    GeneralizedBornTable,
    NonbondedTable,
    TorsionTable,
)

__all__ = ["read_system"]

_WITHOUT_ENERGY = (
    "CMMotionRemover",
    "AndersenThermostat",
    "MonteCarloBarostat",
    "MonteCarloAnisotropicBarostat",
    "MonteCarloMembraneBarostat",
    "MonteCarloFlexibleBarostat",
)
# cos^n(x) as a combination of cos(m x), m = 0..5: the Ryckaert-Bellemans polynomial as a Fourier series.
_POWERS_OF_COSINE = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1 / 2, 0, 1 / 2, 0, 0, 0],
        [0, 3 / 4, 0, 1 / 4, 0, 0],
        [3 / 8, 0, 1 / 2, 0, 1 / 8, 0],
        [0, 10 / 16, 0, 5 / 16, 0, 1 / 16],
    ]
)


def read_system(system: Any) -> ForceFieldTables:
    """Read all forces of an OpenMM System.

    Raises:
        UnsupportedForceError: a force, or one of its settings, is not supported; the message names it.
    """
    bonds: list[tuple[list[int], float, float]] = []
    angles: list[tuple[list[int], float, float]] = []
    series = _TorsionSeries()
    single: dict[str, Any] = {}
    ignored = []
    for i in range(system.getNumParticles()):
        if system.isVirtualSite(i):
            raise UnsupportedForceError(f"particle {i} is a virtual site; virtual sites are not supported")
    for force in system.getForces():
        name = type(force).__name__
        if name in _WITHOUT_ENERGY:
            ignored.append(name)
            continue
        if force.usesPeriodicBoundaryConditions():
            raise UnsupportedForceError(f"{name}: periodic boundary conditions are not supported")
        if name == "HarmonicBondForce":
            bonds += [_plain(force.getBondParameters(i), 2) for i in range(force.getNumBonds())]
        elif name == "HarmonicAngleForce":
            angles += [_plain(force.getAngleParameters(i), 3) for i in range(force.getNumAngles())]
        elif name == "PeriodicTorsionForce":
            series.add_periodic(force)
        elif name == "RBTorsionForce":
            series.add_ryckaert_bellemans(force)
        elif name in _SINGLE:
            slot, reader = _SINGLE[name]
            if slot in single:
                raise UnsupportedForceError(f"{name}: a second {slot} force in one System is not supported")
            single[slot] = reader(force)
        else:
            raise UnsupportedForceError(
                f"{name} is not supported by the batched force field (it never drops a term); use OpenMMEnergy"
            )
    return ForceFieldTables(
        n_atoms=system.getNumParticles(),
        masses=np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())], dtype=np.float64),
        bonds=BondTable(*_columns(bonds, 2)),
        angles=AngleTable(*_columns(angles, 3)),
        torsions=series.table(),
        cmaps=single.get("CMAP"),
        nonbonded=single.get("nonbonded"),
        born=single.get("generalized Born"),
        n_constraints=system.getNumConstraints(),
        ignored=tuple(ignored),
    )


def _value(quantity: Any) -> float:
    """A number in OpenMM's own unit system (nm, kJ/mol, rad, e)."""
    return float(getattr(quantity, "_value", quantity))


def _plain(row: Any, n_atoms: int) -> tuple[list[int], float, float]:
    return [int(a) for a in row[:n_atoms]], _value(row[n_atoms]), _value(row[n_atoms + 1])


def _columns(rows: list[tuple[list[int], float, float]], n_atoms: int) -> tuple[Any, Any, Any]:
    atoms = np.array([r[0] for r in rows], dtype=np.int64).reshape(-1, n_atoms)
    return (
        atoms,
        np.array([r[1] for r in rows], dtype=np.float64),
        np.array([r[2] for r in rows], dtype=np.float64),
    )


class _TorsionSeries:
    """Collects torsions as Fourier series, merging the terms that act on the same four atoms."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], dict[tuple[str, int], float]] = {}

    def _add(self, atoms: tuple[int, ...], kind: str, order: int, amount: float) -> None:
        # E depends on the torsion of the reversed quadruple in the same way, so both share a row.
        key = min(atoms, atoms[::-1])
        row = self._rows.setdefault(key, {})
        row[kind, order] = row.get((kind, order), 0.0) + amount

    def add_periodic(self, force: Any) -> None:
        for i in range(force.getNumTorsions()):
            *atoms, n, phase, k = force.getTorsionParameters(i)
            phase, k = _value(phase), _value(k)
            key = tuple(int(a) for a in atoms)
            self._add(key, "constant", 0, k)
            self._add(key, "cosine", int(n), k * np.cos(phase))
            self._add(key, "sine", int(n), k * np.sin(phase))

    def add_ryckaert_bellemans(self, force: Any) -> None:
        for i in range(force.getNumTorsions()):
            *atoms, c0, c1, c2, c3, c4, c5 = force.getTorsionParameters(i)
            key = tuple(int(a) for a in atoms)
            harmonics = np.array([_value(c) for c in (c0, c1, c2, c3, c4, c5)]) @ _POWERS_OF_COSINE
            self._add(key, "constant", 0, float(harmonics[0]))
            for m in range(1, 6):
                # the polynomial is in psi = phi - pi, and cos(m psi) = (-1)^m cos(m phi)
                self._add(key, "cosine", m, float((-1) ** m * harmonics[m]))

    def table(self) -> TorsionTable:
        n_max = max([order for row in self._rows.values() for _, order in row] + [1])
        atoms = np.array(list(self._rows), dtype=np.int64).reshape(-1, 4)
        constant = np.array([row.get(("constant", 0), 0.0) for row in self._rows.values()], dtype=np.float64)
        series = {}
        for kind in ("cosine", "sine"):
            rows = [[row.get((kind, n), 0.0) for n in range(1, n_max + 1)] for row in self._rows.values()]
            series[kind] = np.array(rows, dtype=np.float64).reshape(-1, n_max)
        return TorsionTable(atoms, constant, series["cosine"], series["sine"])


def _read_cmap(force: Any) -> CmapTable:
    maps = []
    for i in range(force.getNumMaps()):
        size, energy = force.getMapParameters(i)
        maps.append(bicubic_coefficients(np.array([_value(e) for e in energy]).reshape(size, size).T))
    rows = np.array([force.getTorsionParameters(i) for i in range(force.getNumTorsions())], dtype=np.int64).reshape(
        -1, 9
    )
    return CmapTable(tuple(maps), rows[:, 0].copy(), rows[:, 1:5].copy(), rows[:, 5:9].copy())


def _read_nonbonded(force: Any) -> NonbondedTable:
    if force.getNonbondedMethod() not in (force.NoCutoff, force.CutoffNonPeriodic):
        raise UnsupportedForceError("NonbondedForce: only NoCutoff and CutoffNonPeriodic are supported")
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise UnsupportedForceError("NonbondedForce: parameter offsets are not supported")
    cutoff = None
    k_rf = c_rf = 0.0
    if force.getNonbondedMethod() == force.CutoffNonPeriodic:
        if force.getUseSwitchingFunction():
            raise UnsupportedForceError("NonbondedForce: a switching function is not supported")
        cutoff = _value(force.getCutoffDistance())
        dielectric = force.getReactionFieldDielectric()
        k_rf = (dielectric - 1.0) / (2.0 * dielectric + 1.0) / cutoff**3
        c_rf = 3.0 * dielectric / (2.0 * dielectric + 1.0) / cutoff
    rows = [[_value(v) for v in force.getParticleParameters(i)] for i in range(force.getNumParticles())]
    charge, sigma, epsilon = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    qq = COULOMB_CONSTANT * charge[:, None] * charge[None, :]
    s6 = (0.5 * (sigma[:, None] + sigma[None, :])) ** 6
    c6 = 4.0 * np.sqrt(epsilon[:, None] * epsilon[None, :]) * s6
    c12 = c6 * s6
    exceptions = [force.getExceptionParameters(i) for i in range(force.getNumExceptions())]
    kept: list[tuple[int, int, float, float, float]] = []
    for table in (qq, c6, c12):
        np.fill_diagonal(table, 0.0)
    for a, b, q, s, e in exceptions:
        q, s, e = COULOMB_CONSTANT * _value(q), _value(s), _value(e)
        row = (q, 4.0 * e * s**6, 4.0 * e * s**12)
        inside = row if cutoff is None else (0.0, 0.0, 0.0)
        for table, number in zip((qq, c6, c12), inside, strict=True):
            table[a, b] = table[b, a] = number
        if cutoff is not None and any(row):
            kept.append((a, b, *row))
    columns = np.array([k[2:] for k in kept], dtype=np.float64).reshape(-1, 3)
    return NonbondedTable(
        qq=qq,
        c6=c6,
        c12=c12,
        cutoff=cutoff,
        k_rf=k_rf,
        c_rf=c_rf,
        exception_atoms=np.array([k[:2] for k in kept], dtype=np.int64).reshape(-1, 2),
        exception_qq=columns[:, 0].copy(),
        exception_c6=columns[:, 1].copy(),
        exception_c12=columns[:, 2].copy(),
    )


def _read_gbsa(force: Any) -> GeneralizedBornTable:
    return read_gbsa_obc(force, COULOMB_CONSTANT)


_SINGLE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "CMAPTorsionForce": ("CMAP", _read_cmap),
    "NonbondedForce": ("nonbonded", _read_nonbonded),
    "GBSAOBCForce": ("generalized Born", _read_gbsa),
    "CustomGBForce": ("generalized Born", read_custom_born),
}

"""The numbers of a force field, read off an OpenMM System: plain arrays, no OpenMM objects.

Units: nm, kJ/mol, elementary charge, rad. Index arrays are int64, parameters float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AngleTable",
    "BondTable",
    "CmapTable",
    "ForceFieldTables",
    "GeneralizedBornTable",
    "NonbondedTable",
    "TorsionTable",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BondTable:
    """Harmonic bonds, E = k (r - r0)^2 / 2. ``atoms`` (n, 2), ``length`` (n,) nm, ``k`` (n,) kJ/mol/nm^2."""

    atoms: Ints
    length: Floats
    k: Floats


@dataclass(frozen=True)
class AngleTable:
    """Harmonic angles, E = k (theta - theta0)^2 / 2. ``atoms`` (n, 3), ``angle`` (n,) rad, ``k`` kJ/mol/rad^2."""

    atoms: Ints
    angle: Floats
    k: Floats


@dataclass(frozen=True)
class TorsionTable:
    """Torsions as finite Fourier series, one row for every quadruple of atoms.

    E(phi) = constant + sum_{n=1..n_max} cosine[:, n-1] cos(n phi) + sine[:, n-1] sin(n phi).
    Periodic torsions k (1 + cos(n phi - delta)) and Ryckaert-Bellemans torsions both have this form exactly.
    """

    atoms: Ints
    constant: Floats
    cosine: Floats
    sine: Floats


@dataclass(frozen=True)
class CmapTable:
    """Torsion-pair correction maps. ``coefficients`` (n_maps, G, G, 4, 4): bicubic patch, powers of (t, u) in [0, 1).

    ``first``, ``second`` (n, 4): atoms of the two torsions; ``map_index`` (n,).
    """

    coefficients: tuple[Floats, ...]
    map_index: Ints
    first: Ints
    second: Ints


@dataclass(frozen=True)
class NonbondedTable:
    """Lennard-Jones and Coulomb interactions as dense symmetric pair tables.

    ``qq``, ``c6``, ``c12`` (N, N): E = qq/r + c12/r^12 - c6/r^6, zero on the diagonal and for excluded pairs. Without
    a cutoff the exceptions' own parameters stand in the tables; with one they are listed apart, because OpenMM
    applies neither the cutoff nor the reaction field to them. ``cutoff`` nm or None; reaction field E = qq (1/r +
    k_rf r^2 - c_rf).
    """

    qq: Floats
    c6: Floats
    c12: Floats
    cutoff: float | None
    k_rf: float
    c_rf: float
    exception_atoms: Ints
    exception_qq: Floats
    exception_c6: Floats
    exception_c12: Floats


@dataclass(frozen=True)
class GeneralizedBornTable:
    """A generalized Born model of the OBC / GBn family with an optional surface term.

    Per atom (N,): ``charge`` (e), ``radius`` (nm), ``offset_radius`` (nm), ``scaled_radius`` (nm), and ``tanh`` (N,
    3) the coefficients (a, b, c) of 1/B = 1/or - tanh(a psi - b psi^2 + c psi^3)/radius with psi = I or. ``neck_m``,
    ``neck_d`` (N, N) are the neck correction's height (already scaled) and position, or None. ``coulomb`` is the
    Coulomb constant the model was written with. ``surface`` kJ/mol/nm^2: E = surface (radius + 0.14)^2 (radius/B)^6.
    ``buried_term``: GBSAOBCForce adds 2 (1/or - 1/L) where an atom lies inside another's scaled sphere; the
    CustomGBForce expressions do not.
    """

    charge: Floats
    radius: Floats
    offset_radius: Floats
    scaled_radius: Floats
    tanh: Floats
    neck_m: Floats | None
    neck_d: Floats | None
    neck_cutoff: float
    coulomb: float
    solute_dielectric: float
    solvent_dielectric: float
    kappa: float
    surface: float
    cutoff: float | None
    buried_term: bool


@dataclass(frozen=True)
class ForceFieldTables:
    """All terms of one System. ``constraints`` are reported (count), never applied."""

    n_atoms: int
    masses: Floats
    bonds: BondTable
    angles: AngleTable
    torsions: TorsionTable
    cmaps: CmapTable | None
    nonbonded: NonbondedTable | None
    born: GeneralizedBornTable | None
    n_constraints: int
    ignored: tuple[str, ...]
    """Forces without an energy (CMMotionRemover, barostats, thermostats), by name."""

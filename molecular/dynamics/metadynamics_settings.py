"""How long a metadynamics run is to be, and how it moves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...fkc.bias import RepulsionBias
from ..cvs import CollectiveVariable
from ..energies import Energy
from .metadynamics import Metadynamics
from .restraints import Restrained

__all__ = ["MetadynamicsSettings"]


@dataclass(frozen=True, kw_only=True)
class MetadynamicsSettings:
    """How long to run, and how. Lengths are per walker, and rounded to whole deposits and records.

    Attributes:
        walkers: B, all moved as one batch.
        fill_ps: growth of the bias; 0 to sample under the bias as it is given.
        burn_in_ps: under the frozen bias, dropped: the filling leaves the walkers out of equilibrium. 0 for none.
        production_ps: under the frozen bias, kept; at least one record.
        temperature: K.
        melt_ps: plain dynamics without bias at ``melt_temperature``, to spread the walkers; 0 for none.
        melt_temperature: K.
        pace: steps between deposits.
        record_steps: steps between records of the production.
        fill_record_steps: steps between records of the filling, a multiple of ``pace`` (default: ``pace``).
        positions_every: keep the positions of every n-th record of the production; 0 for none.
        time_step: ps.
        friction: 1/ps.
        mass: amu, one number for all atoms or (N,) numbers.

    Raises:
        ValueError: for numbers out of range, and for a positive length that rounds to no deposit or record at all.
    """

    walkers: int
    fill_ps: float
    burn_in_ps: float
    production_ps: float
    temperature: float = 300.0
    melt_ps: float = 0.0
    melt_temperature: float = 600.0
    pace: int = 50
    record_steps: int = 50
    fill_record_steps: int | None = None
    positions_every: int = 0
    time_step: float = 0.002
    friction: float = 2.0
    mass: float | Sequence[float] = 12.0

    def __post_init__(self) -> None:
        for name in ("walkers", "pace", "record_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("fill_ps", "burn_in_ps", "production_ps", "melt_ps", "positions_every"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}, expected a number from 0 on")
        for name in ("time_step", "production_ps"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}, expected a positive number of ps")
        for name, what, steps, count in (
            ("fill_ps", "deposit", self.pace, self.deposits),
            ("burn_in_ps", "record", self.record_steps, self.burn_in_records),
            ("production_ps", "record", self.record_steps, self.records),
        ):
            if getattr(self, name) > 0 and count == 0:
                raise ValueError(
                    f"{name}: {getattr(self, name):g} ps hold no {what}, of which there is one every {steps} steps of "
                    f"{self.time_step:g} ps, {steps * self.time_step:g} ps"
                )

    @property
    def deposits(self) -> int:
        """Batches that the filling deposits."""
        return round(self.fill_ps / (self.pace * self.time_step))

    @property
    def burn_in_records(self) -> int:
        """Length of the burn-in, in intervals between records."""
        return round(self.burn_in_ps / (self.record_steps * self.time_step))

    @property
    def records(self) -> int:
        """Records of the production, at least one."""
        return round(self.production_ps / (self.record_steps * self.time_step))

    def method(
        self,
        energy: Energy,
        variables: Sequence[CollectiveVariable],
        bias: RepulsionBias,
        restraints: Sequence[Restrained] = (),
        *,
        rct_points: Tensor | None = None,
    ) -> Metadynamics:
        """The dynamics that these settings describe; walkers without a finite energy are retired."""
        return Metadynamics(
            energy,
            variables,
            bias,
            temperature=self.temperature,
            time_step=self.time_step,
            friction=self.friction,
            mass=self.mass,
            restraints=restraints,
            pace=self.pace,
            rct_points=rct_points,
        )

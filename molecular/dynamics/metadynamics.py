"""Metadynamics with many walkers that share one bias: fill, then sample under the frozen bias.

All walkers move as one batch and deposit together (multiple walkers: Raiteri et al. 2006, J. Phys. Chem. B 110, 3533),
every height being computed with the bias of all. While the bias grows the law of the walkers changes, and weights are
approximate: (V_t - c(t)) / kT for hills (Tiwary, Parrinello 2015, J. Phys. Chem. B 119, 736), V_t / kT for OPES. Under
a frozen bias V / kT is exact, and only that carries error bars.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Generator, Tensor, isfinite, no_grad

from ...fkc.bias import Hills, OpesBias, RepulsionBias
from ..cvs import CollectiveVariable
from ..energies import Energy, EnergyForces
from ..units import kT as thermal_energy
from .biased_energy import BiasedEnergy, BiasTerms
from .langevin import Explosion, Langevin
from .metadynamics_state import MetadynamicsState, Record
from .restraints import Restrained
from .walkers import LangevinState

__all__ = ["Metadynamics"]


@dataclass(frozen=True)
class Metadynamics:
    """Walkers that share a growing bias.

    Attributes:
        energy: with forces, without bias.
        variables: d collective variables, in the order of the bias.
        bias: at the start; any rule of growth.
        temperature: K; its kT must be the bias's, to a part in a thousand.
        time_step: ps.
        friction: 1/ps.
        mass: amu, one number or (N,).
        restraints: walls and restraints; they stay in the target.
        pace: steps between deposits.
        rct_points: (n, d) evenly over the domain, on which c(t) of hills without a grid is computed; records of the
            filling have no weights otherwise.
        on_explosion: "retire" walkers without a finite energy, or "raise".
    """

    energy: Energy
    variables: Sequence[CollectiveVariable]
    bias: RepulsionBias
    temperature: float = field(kw_only=True)
    time_step: float = field(kw_only=True)
    friction: float = field(kw_only=True)
    mass: float | Sequence[float] | Tensor = field(default=12.0, kw_only=True)
    restraints: Sequence[Restrained] = field(default=(), kw_only=True)
    pace: int = field(default=50, kw_only=True)
    rct_points: Tensor | None = field(default=None, kw_only=True)
    on_explosion: Explosion = field(default="retire", kw_only=True)

    def __post_init__(self) -> None:
        if self.pace < 1:
            raise ValueError(f"pace: got {self.pace}, expected at least one step")
        if not math.isclose(self.bias.kT, thermal_energy(self.temperature), rel_tol=1e-3):
            raise ValueError(
                f"bias: its kT is {self.bias.kT:g}, but {thermal_energy(self.temperature):g} kJ/mol at "
                f"{self.temperature:g} K; give the bias that kT, or the run the bias's temperature by "
                "MetadynamicsSettings(temperature=...)"
            )
        self._dynamics(self.biased(self.bias))

    def biased(self, bias: RepulsionBias | None) -> BiasedEnergy:
        """Energy, bias and restraints."""
        return BiasedEnergy(self.energy, self.variables, bias, self.restraints)

    def check_values(self, positions: Tensor) -> None:
        """Refuse variables without a finite value for any of the walkers at ``positions`` (B, N, 3) nm.

        Raises:
            ValueError: naming a biased or restrained variable.
        """
        known = {variable.name: variable for variable in self.variables}
        known |= {restraint.variable.name: restraint.variable for restraint in self.restraints}
        for name, variable in known.items():
            with no_grad():
                values = variable(positions.detach())
            if not bool(isfinite(values).any()):
                what = "biased" if variable in self.variables else "restrained"
                first, every = float(values[0]), f"all {len(values)} walkers" if len(values) > 1 else "the walker"
                raise ValueError(
                    f"variables: the {what} variable {name} is {first} for {every} at the start: a force cannot act "
                    "through it; mend it, or start where it is finite"
                )

    def init(self, generator: Generator, positions: Tensor) -> MetadynamicsState:
        """Start walkers at ``positions`` (B, N, 3) nm.

        Raises:
            ValueError: a biased or restrained variable is finite for no walker.
            WalkerExploded: a starting position has no finite energy.
            WalkersExploded: none has.
        """
        self.check_values(positions)
        walkers = self._dynamics(self.biased(self.bias)).init(generator, positions)
        return MetadynamicsState(walkers, self.bias, 0)

    def fill(
        self, generator: Generator, state: MetadynamicsState, deposits: int, *, record_every: int | None = None
    ) -> Iterator[tuple[MetadynamicsState, Record]]:
        """Grow the bias by ``deposits`` batches, one every ``pace`` steps.

        After any record the run may end, and go on from its state later, with the same bits.

        Args:
            generator: of the noise.
            state: where to start.
            deposits: how many more.
            record_every: steps between records, a multiple of ``pace`` (default: ``pace``). The last one may be early.

        Raises:
            ValueError: ``record_every`` is not a multiple of ``pace``.
            WalkersExploded: no walker is left.
        """
        every = self._check_every(record_every)
        if every % self.pace:
            raise ValueError(f"record_every: got {every} steps, expected a multiple of the pace, {self.pace}")
        target = self.biased(state.bias)
        hills: list[Hills] = []
        for done in range(1, deposits + 1):
            walkers = self._dynamics(target).step(generator, state.walkers, self.pace)
            terms = target.terms(walkers.positions)
            time = walkers.steps * self.time_step
            felt = state.bias
            grown, new = felt.deposit(terms.values[walkers.alive.cpu()], time=time)
            hills.append(new)
            pushed = self._rebiased(target, walkers, grown)
            state = state._replace(walkers=pushed, bias=grown, deposits=state.deposits + 1)
            target = target.with_bias(grown)
            if (done * self.pace) % every == 0 or done == deposits:
                yield state, self._record(walkers, terms, felt, self._rct(felt), tuple(hills))
                hills = []

    def produce(
        self, generator: Generator, state: MetadynamicsState, records: int, *, record_every: int | None = None
    ) -> Iterator[tuple[MetadynamicsState, Record]]:
        """Sample under the bias of ``state``, which does not change.

        Args:
            generator: of the noise.
            state: where to start.
            records: how many.
            record_every: steps between records (default: ``pace``).

        Raises:
            WalkersExploded: no walker is left.
        """
        every = self._check_every(record_every)
        target = self.biased(state.bias)
        dynamics, rct = self._dynamics(target), self._rct(state.bias)
        for _ in range(records):
            walkers = dynamics.step(generator, state.walkers, every)
            state = state._replace(walkers=walkers)
            yield state, self._record(walkers, target.terms(walkers.positions), state.bias, rct, frozen=True)

    def _check_every(self, record_every: int | None) -> int:
        every = self.pace if record_every is None else record_every
        if every < 1:
            raise ValueError(f"record_every: got {every}, expected at least one step")
        return every

    def _dynamics(self, target: BiasedEnergy) -> Langevin:
        return Langevin(target, self.temperature, self.time_step, self.friction, self.mass, self.on_explosion)

    @staticmethod
    def _rebiased(target: BiasedEnergy, walkers: LangevinState, bias: RepulsionBias) -> LangevinState:
        now = EnergyForces(walkers.energy, walkers.forces)
        energy, forces = target.rebiased(walkers.positions, now, bias)
        return walkers._replace(energy=energy, forces=forces)

    def _rct(self, bias: RepulsionBias) -> float:
        """c(t) in kJ/mol; NaN for OPES, and for hills without a grid or points to compute it on."""
        if isinstance(bias, OpesBias) or (self.rct_points is None and bias.grid_axes is None):
            return math.nan
        return bias.rct(self.rct_points)

    def _record(
        self,
        walkers: LangevinState,
        terms: BiasTerms,
        felt: RepulsionBias,
        rct: float,
        hills: tuple[Hills, ...] = (),
        *,
        frozen: bool = False,
    ) -> Record:
        shift = 0.0 if frozen or isinstance(felt, OpesBias) else rct
        alive = walkers.alive.cpu()
        log_weights = ((terms.bias - shift) / felt.kT).masked_fill(~alive, -math.inf)
        energy = walkers.energy.cpu() - terms.total
        return Record(
            time=walkers.steps * self.time_step,
            values=terms.values,
            bias=terms.bias,
            rct=rct,
            energy=energy,
            restraints=terms.restraints,
            alive=alive,
            log_weights=log_weights,
            positions=walkers.positions,
            frozen=frozen,
            hills=hills,
        )

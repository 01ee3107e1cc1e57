"""What the particles of P populations are and carry, permuted by one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

__all__ = ["Cloud", "permute"]


def permute(values: Tensor, ancestors: Tensor) -> Tensor:
    """``out[p, i] = values[p, ancestors[p, i]]`` for ``values`` ``(P, K, ...)`` and ``ancestors`` ``(P,
    K)``."""
    index = ancestors.reshape(ancestors.shape + (1,) * (values.ndim - 2)).expand_as(values)
    return values.gather(1, index)


@dataclass(frozen=True, eq=False)
class Cloud:
    """Particles and their luggage.

    Attributes:
        x: ``(P, K, *event)``, the particles.
        carried: ``(P, K, ...)`` each: realised values that travel with a particle (log-densities, scores,
            rewards).
        shared: ``(P, ...)`` each: values of a population as a whole (temperature, step size), never permuted.
    """

    x: Tensor
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_populations(self) -> int:
        """P."""
        return self.x.shape[0]

    @property
    def n_particles(self) -> int:
        """K."""
        return self.x.shape[1]

    def permuted(self, ancestors: Tensor | None) -> Cloud:
        """Everything that travels with a particle, rearranged; None is the identity."""
        if ancestors is None:
            return self
        carried = {name: permute(value, ancestors) for name, value in self.carried.items()}
        return replace(self, x=permute(self.x, ancestors), carried=carried)

    def select(self, rows: Tensor) -> Cloud:
        """Some of the populations; ``rows`` int64."""
        return Cloud(
            self.x[rows],
            {name: value[rows] for name, value in self.carried.items()},
            {name: value[rows] for name, value in self.shared.items()},
        )

    def updated(self, rows: Tensor, part: Cloud) -> Cloud:
        """This cloud with the populations ``rows`` replaced by those of ``part``."""
        return Cloud(
            self.x.index_copy(0, rows, part.x),
            {name: value.index_copy(0, rows, part.carried[name]) for name, value in self.carried.items()},
            {name: value.index_copy(0, rows, part.shared[name]) for name, value in self.shared.items()},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors: ``x``, ``carried.*``, ``shared.*``."""
        carried = {f"carried.{name}": value for name, value in self.carried.items()}
        shared = {f"shared.{name}": value for name, value in self.shared.items()}
        return {"x": self.x, **carried, **shared}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Cloud:
        """Inverse of :meth:`state_dict`."""
        return cls(state["x"], _under("carried.", state), _under("shared.", state))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

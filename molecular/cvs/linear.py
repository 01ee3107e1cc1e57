"""Linear combinations of collective variables, TICA's components among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import CollectiveVariable, wrapped
from .variables import Variables

__all__ = ["Linear", "periodic_features"]

_PERIOD_TOLERANCE = 1e-6
"""In periods: covers the rounding of degrees and of six printed digits."""


def periodic_features(values: torch.Tensor, periods: Sequence[float | None]) -> torch.Tensor:
    """Values (B, d) as features (B, f): a periodic variable becomes its cosine and its sine, an open one stays.

    The order is that of the variables.  Estimators of slow modes should be fitted to these features, in which a
    circle has no seam.
    """
    columns: list[torch.Tensor] = []
    for value, period in zip(values.unbind(1), periods, strict=True):
        if period is None:
            columns.append(value)
        else:
            angle = value * (2 * math.pi / period)
            columns += [angle.cos(), angle.sin()]
    return torch.stack(columns, dim=1)


@dataclass(frozen=True, eq=False)
class Linear:
    r"""Linear combination :math:`o + \sum_k c_k (f_k - m_k)` of features f of other variables.

    The features are the variables themselves, or with ``expand`` those of `periodic_features`.

    Args:
        variables: the variables.
        coefficients: c, one a feature.
        means: m, one a feature; None for 0.
        offset: o.
        expand: whether periodic variables enter as cosine and sine.
        period: period of the combination, such as 2 pi for the sum of two torsions; None for an open axis.
        unit: of the combination; "shared" for that of all variables, if they have one in common and enter as they are.
        name: label in files and plots.

    Raises:
        ValueError: for a number of coefficients or means that does not fit, for a period that is not positive, or for
            a periodic variable that enters as it is into a combination that would jump at its seam: an open one, or
            one whose period does not divide the coefficient times the variable's period.

    Example:
        >>> from feynkac.molecular.cvs import Distance
        >>> difference = Linear([Distance(0, 1, "a"), Distance(1, 2, "b")], coefficients=[1.0, -1.0], name="asymmetry")
    """

    variables: Variables | Sequence[CollectiveVariable]
    coefficients: Sequence[float]
    means: Sequence[float] | None = None
    offset: float = 0.0
    expand: bool = False
    period: float | None = None
    unit: str = "shared"
    name: str = "linear"

    def __post_init__(self) -> None:
        stack = self.variables if isinstance(self.variables, Variables) else Variables(self.variables)
        coefficients = tuple(float(c) for c in self.coefficients)
        count = sum(2 if self.expand and p is not None else 1 for p in stack.periods)
        for what, numbers in (("coefficients", coefficients), ("means", self.means)):
            if numbers is not None and len(numbers) != count:
                raise ValueError(f"{self.name}: {count} {what} are needed, one a feature, got {len(numbers)}")
        if not all(math.isfinite(x) for x in (*coefficients, *(self.means or ()), self.offset)):
            raise ValueError(f"{self.name}: coefficients, means and offset must be finite")
        if self.period is not None and not (math.isfinite(self.period) and self.period > 0):
            raise ValueError(f"{self.name}: the period must be positive, got {self.period}")
        periodic = [n for n, p in zip(stack.names, stack.periods, strict=True) if p is not None]
        if periodic and not self.expand and self.period is None:
            raise ValueError(
                f"{self.name}: {periodic[0]} is periodic, and a combination of it jumps where it wraps: "
                "expand periodic variables into cosine and sine, or give the combination's own period"
            )
        if self.period is not None and not self.expand:
            _check_period(self.name, self.period, stack, coefficients)
        units = set(stack.units)
        shared = units.pop() if len(units) == 1 and not (self.expand and periodic) else ""
        object.__setattr__(self, "variables", stack)
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "means", None if self.means is None else tuple(float(m) for m in self.means))
        object.__setattr__(self, "unit", shared if self.unit == "shared" else self.unit)

    @classmethod
    def from_estimator(
        cls,
        variables: Sequence[CollectiveVariable],
        estimator: Any,
        *,
        component: int = 0,
        expand: bool = True,
        name: str = "linear",
    ) -> Linear:
        """One component of a fitted linear model: deeptime's TICA and VAMP, scikit-learn's PCA and the like.

        The coefficients are read off ``estimator.transform`` of zeros and of unit vectors, so that the centring and
        scaling of the model are kept.

        Args:
            variables: the variables the model was fitted on, in order.
            estimator: with ``transform`` from (n, f) to (n, c) arrays, fitted on `periodic_features` if ``expand``.
            component: column of the transform, 0 for the slowest mode.
            expand: as above.
            name: label in files and plots.

        Raises:
            ValueError: if the transform is not affine, does not take f features, or has no such component.
        """
        stack = Variables(list(variables))
        count = sum(2 if expand and p is not None else 1 for p in stack.periods)
        probe = torch.cat((torch.zeros(1, count), torch.eye(count), torch.linspace(-2, 3, count)[None])).double()
        try:
            found = torch.as_tensor(estimator.transform(probe.numpy())).double().reshape(count + 2, -1)
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"{name}: the model does not transform {count} features: {error}") from error
        if not 0 <= component < found.shape[1]:
            raise ValueError(f"{name}: component {component} is none of the model's {found.shape[1]}")
        column = found[:, component]
        offset, slopes = column[0], column[1:-1] - column[0]
        expected = offset + probe[-1] @ slopes
        if not torch.allclose(expected, column[-1], rtol=1e-4, atol=1e-6 * float(column.abs().max())):
            raise ValueError(f"{name}: the transform of the model is not linear")
        return cls(stack, slopes.tolist(), offset=float(offset), expand=expand, unit="", name=name)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B,) of positions (B, N, 3) in nm."""
        stack = self.variables
        assert isinstance(stack, Variables)
        features = stack(positions)
        if self.expand:
            features = periodic_features(features, stack.periods)
        if self.means is not None:
            features = features - features.new_tensor(self.means)
        value = (features * features.new_tensor(self.coefficients)).sum(-1) + self.offset
        return value if self.period is None else wrapped(value, self.period)


def _check_period(name: str, period: float, variables: Variables, coefficients: Sequence[float]) -> None:
    """Refuse a period of which a turn of some variable is not a whole number."""
    for variable, coefficient in zip(variables, coefficients, strict=True):
        turn = 0.0 if variable.period is None else coefficient * variable.period
        if abs(turn / period - round(turn / period)) > _PERIOD_TOLERANCE:
            raise ValueError(
                f"{name}: a turn of {variable.name} changes it by {turn:g}, which is not a whole number of its periods "
                f"of {period:g}, so that it would jump: choose a period that divides {abs(turn):g}, or expand periodic "
                "variables into cosine and sine"
            )

"""A single-pass autoregressive density over internal coordinates: q(y) = prod_i q_i(y_i | y_<i).

Each coordinate has its own small network (:mod:`feynkac.flows.conditioners`) that sets a rational-quadratic
spline: around the circle over a uniform base for circular torsions; an affine map and a spline with linear tails
over a standard normal base for the others, which are first mapped to the real line (log of bonds, logit of angles
and arcs) and standardised. Splines and sums of log-densities run in the dtype of the coordinates, the networks
in that of their parameters: float64 coordinates through float32 networks give an exactly normalised density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .conditioners import ConditionerStack
from .domains import Domain
from .splines import circular_knots, interval_knots, spline_forward, spline_inverse

__all__ = ["AutoregressiveSplineFlow", "default_order"]

_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_WIDTH_LIMIT = 2.0  # log of the widest conditional, in standard deviations of the data
_FEATURE_BOUND = 8.0  # standardised coordinates enter the networks clamped here: no wild extrapolation in the tails


def default_order(domains: Sequence[Domain]) -> tuple[int, ...]:
    """Circular torsions first (backbone outwards), then arcs, angles, bonds: stiff degrees follow soft ones."""
    rank = {"circular": 0, "arc": 1, "angle": 2, "bond": 3}
    return tuple(sorted(range(len(domains)), key=lambda column: (rank[domains[column].kind], column)))


class AutoregressiveSplineFlow(nn.Module):
    """Normalised density over coordinates y (B, D) with the given domains.

    Args:
        domains: D domains.
        order: the columns in the order of the factorisation; :func:`default_order` if None.
        hidden: width of the two hidden layers of each network.
        bins: spline bins of the coordinates on the line.
        circular_bins: spline bins of circular torsions.
        harmonics: torsions enter the networks as cos and sin of 1 ... harmonics times the angle.
        tail_bound: the spline acts within this many standard deviations; beyond, tails are Gaussian.
        seed: of the initial weights.

    Raises:
        ValueError: ``order`` is not a permutation of the columns.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        order: Sequence[int] | None = None,
        hidden: int = 80,
        bins: int = 8,
        circular_bins: int = 20,
        harmonics: int = 3,
        tail_bound: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.order = tuple(order) if order is not None else default_order(domains)
        if sorted(self.order) != list(range(len(self.domains))):
            raise ValueError(f"order must be a permutation of the {len(self.domains)} columns")
        self.settings = {
            "hidden": hidden,
            "bins": bins,
            "circular_bins": circular_bins,
            "harmonics": harmonics,
            "tail_bound": tail_bound,
        }
        self.harmonics, self.tail_bound = harmonics, tail_bound
        circular = [c for c in self.order if self.domains[c].kind == "circular"]
        line = [c for c in self.order if self.domains[c].kind != "circular"]
        self.n_circular = len(circular)
        widths = {c: 2 * harmonics if self.domains[c].kind == "circular" else 1 for c in self.order}
        start: dict[int, int] = {}
        for column in self.order:
            start[column] = sum(widths[c] for c in start)
        sizes = [3 * circular_bins] * len(circular) + [2 + 3 * bins - 1] * len(line)
        self.networks = ConditionerStack(
            [start[c] for c in circular + line],
            sizes,
            n_features=sum(widths.values()),
            hidden=hidden,
            generator=torch.Generator().manual_seed(seed),
        )
        self._start, self._width = start, widths
        # networks (and all per-coordinate tensors below) are laid out as circular columns, then those on the line
        layout = circular + line
        gather = [start[c] + h for c in layout for h in range(widths[c])]
        self.bond_mask: Tensor
        self.feature_order: Tensor
        self.columns: Tensor
        self.lower: Tensor
        self.width: Tensor
        self.location: Tensor
        self.scale: Tensor
        self._constant("columns", torch.tensor(layout))
        self._constant("feature_order", torch.tensor(gather).argsort())
        lines = [self.domains[c] for c in line]
        self._constant("bond_mask", torch.tensor([d.kind == "bond" for d in lines], dtype=torch.bool))
        low = [self.domains[c].lower for c in layout]
        width = [self.domains[c].width if math.isfinite(self.domains[c].width) else 1.0 for c in layout]
        self._constant("lower", torch.tensor(low, dtype=torch.float64))
        self._constant("width", torch.tensor(width, dtype=torch.float64))
        self.register_buffer("location", torch.zeros(len(line), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(line), dtype=torch.float64))

    @property
    def dimension(self) -> int:
        """Number of coordinates D."""
        return len(self.domains)

    def log_prob(self, y: Tensor) -> Tensor:
        """log q (B,) of coordinates y (B, D), wrapped into their domains; -inf outside the domains."""
        u, s, log_scale, inside = self._standardise(y)
        outputs = self.networks(self._features(u, s))
        total = log_scale
        if self.n_circular:
            raw = outputs[0][0].to(y.dtype)
            _, log_slope = spline_forward(u.T, circular_knots(raw))
            total = total + log_slope.sum(0)
        if s.shape[1]:
            raw, linear = (part.to(y.dtype) for part in outputs[-1])
            mean, log_width, spline = torch.split(raw, [1, 1, raw.shape[-2] - 2], dim=-2)
            log_width = _limited(log_width.squeeze(-2))
            standard = (s.T - (mean + linear).squeeze(-2)) * (-log_width).exp()
            z, log_slope = spline_forward(standard, interval_knots(spline, self.tail_bound))
            log_slope = log_slope - log_width
            total = total + (log_slope - 0.5 * z * z - _LOG_SQRT_TWO_PI).sum(0)
        return torch.where(inside, total, -math.inf)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw y (n, D) in ``dtype``; one small network after another, in the order of the factorisation."""
        here, there = generator.device, self.location.device
        uniform = torch.rand(n, self.n_circular, generator=generator, device=here, dtype=dtype)
        n_line = self.dimension - self.n_circular
        normal = torch.randn(n, n_line, generator=generator, device=here, dtype=dtype)
        return self.from_base(uniform.to(there), normal.to(there))

    @torch.no_grad()
    def from_base(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Map base variables to coordinates: uniform (n, circular) in [0, 1) and normal (n, others) -> y (n, D)."""
        n, dtype = uniform.shape[0], uniform.dtype
        weights = self.networks.weight1.dtype
        features = torch.zeros(len(self.feature_order), n, dtype=weights, device=uniform.device)
        u, s = torch.empty_like(uniform), torch.empty_like(normal)
        network_of = {column: index for index, column in enumerate(self.columns.tolist())}
        for column in self.order:
            network = network_of[column]
            raw, linear = (part.to(dtype) for part in self.networks.single(network, features))
            if network < self.n_circular:
                u[:, network] = spline_inverse(uniform[:, network], circular_knots(raw))[0]
                new = self._harmonics(u[:, network : network + 1])
            else:
                index = network - self.n_circular
                z = spline_inverse(normal[:, index], interval_knots(raw[2:], self.tail_bound))[0]
                s[:, index] = raw[0] + linear[0] + z * _limited(raw[1]).exp()
                new = s[:, index : index + 1].clamp(-_FEATURE_BOUND, _FEATURE_BOUND)
            features[self._start[column] : self._start[column] + self._width[column]] = new.T.to(weights)
        return self._unstandardise(u, s)

    @torch.no_grad()
    def initialise(self, y: Tensor) -> None:
        """Start at the Gaussian model of the data y (n, D): standardise, then regress every coordinate on the line
        linearly on the features before it. What is left to learn is only what is not Gaussian.
        """
        self.location.zero_()
        self.scale.fill_(1.0)
        if self.n_circular == self.dimension:
            return
        y = y.double()
        _, s, _, inside = self._standardise(y)
        y, s = y[inside], s[inside]
        self.location.copy_(s.mean(0))
        self.scale.copy_(s.std(0).clamp(min=1e-8))
        u, s, _, _ = self._standardise(y)
        features = self._features(u, s).double()
        centre = features.mean(0)
        centred = features - centre
        gram = centred.T @ centred / len(s) + 1e-6 * torch.eye(features.shape[1], dtype=torch.float64)
        target = centred.T @ s / len(s)
        for index in range(s.shape[1]):
            network = self.n_circular + index
            seen = self.networks.n_inputs[network]
            slope = torch.linalg.solve(gram[:seen, :seen], target[:seen, index])
            residual = (s[:, index] - s[:, index].mean() - centred[:, :seen] @ slope).std()
            self.networks.linear[network, 0, :seen] = slope.to(self.networks.linear.dtype)
            self.networks.bias_out[-1][index, 0, 0] = s[:, index].mean() - centre[:seen] @ slope
            self.networks.bias_out[-1][index, 1, 0] = _unlimited(residual.clamp(min=1e-6, max=1.0).log())

    def _standardise(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Torsions in turns u (B, circular), the rest standardised s (B, line), log|d(u, s)/dy| (B,), inside (B,)."""
        c = self.n_circular
        unit = (y[:, self.columns] - self.lower.to(y.dtype)) / self.width.to(y.dtype)
        u, p = unit[:, :c] % 1.0, unit[:, c:]
        inside = torch.where(self.bond_mask, p > 0.0, (p > 0.0) & (p < 1.0)).all(-1) & y.isfinite().all(-1)
        p = torch.where(inside[:, None], p, 0.5)
        u = torch.where(inside[:, None], u, 0.5)
        rest = torch.where(self.bond_mask, 1.0, 1.0 - p)
        s = p.log() - rest.log()
        log_scale = -(p.log() + rest.log()).sum(-1)
        constant = self.width.log().sum() + self.scale.log().sum()
        s = (s - self.location.to(y.dtype)) / self.scale.to(y.dtype)
        return u, s, log_scale - constant.to(y.dtype), inside

    def _unstandardise(self, u: Tensor, s: Tensor) -> Tensor:
        line = s * self.scale.to(s.dtype) + self.location.to(s.dtype)
        line = torch.where(self.bond_mask, line.exp(), line.sigmoid())
        unit = torch.cat([u, line], dim=-1)
        y = unit * self.width.to(s.dtype) + self.lower.to(s.dtype)
        return torch.empty_like(y).index_copy_(1, self.columns, y)

    def _harmonics(self, u: Tensor) -> Tensor:
        turns = torch.arange(1, self.harmonics + 1, device=u.device, dtype=u.dtype) * (2.0 * math.pi)
        angle = u[..., None] * turns
        return torch.cat([angle.cos(), angle.sin()], dim=-1).flatten(1)

    def _features(self, u: Tensor, s: Tensor) -> Tensor:
        features = torch.cat([self._harmonics(u), s.clamp(-_FEATURE_BOUND, _FEATURE_BOUND)], dim=-1)
        return features[:, self.feature_order].to(self.networks.weight1.dtype)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def _limited(log_width: Tensor) -> Tensor:
    """Smooth upper limit of a conditional's width.

    Nothing is wider than the data; without the limit a network that extrapolates sends draws to infinity, where no
    energy can call them back.
    """
    return _WIDTH_LIMIT - functional.softplus(_WIDTH_LIMIT - log_width)


def _unlimited(log_width: Tensor) -> Tensor:
    """Inverse of :func:`_limited`."""
    return _WIDTH_LIMIT - torch.expm1(_WIDTH_LIMIT - log_width).log()

r"""A denoiser for clusters of identical particles, equivariant under permutations and rigid motions, mirrors included.

The preconditioning is that of Karras et al. (2022), table 1: :math:`D(y, \sigma) = c_{skip}\,y + c_{out}F(c_{in}\,y,
\sigma)`. F passes messages between all pairs and moves particles along their differences (Satorras, Hoogeboom and
Welling 2021, equations 3 to 6, with messages symmetric in the pair: the centre of mass stays and half of the work is
saved).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear, silu

__all__ = ["GraphDenoiser", "denoising_loss"]


class GraphDenoiser(nn.Module):
    """E[x | y] of mean-free configurations x of n identical particles, y = x + sigma noise (mean-free).

    Args:
        particles: n.
        dimensions: d.
        data_std: of a mean-free coordinate, sqrt(E |x|^2 / (d (n - 1))).
        hidden: width of messages.
        layers: rounds of messages.
        radial: bumps 1/(1 + (distance - centre)^2) that a distance is written in, narrower at short range.
        reach: the largest distance that they cover, in units of the noised standard deviation.
        core: length over which the data's log-density changes most quickly; below this noise level F falls as
            sigma/core, as it must for the score to have a limit.
        generator: of the initial parameters; None: seed 0.
    """

    bumps: Tensor
    incidence: Tensor

    def __init__(
        self,
        particles: int,
        dimensions: int,
        data_std: float,
        *,
        hidden: int = 32,
        layers: int = 4,
        radial: int = 32,
        reach: float = 5.0,
        core: float = 0.1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if particles < 2 or not data_std > 0.0:
            raise ValueError(f"particles, data_std: got {particles}, {data_std}, expected at least 2 and above 0")
        self.particles, self.dimensions, self.data_std, self.core = particles, dimensions, data_std, core
        self.rounds = nn.ModuleList(_Round(hidden, radial, i > 0, i < layers - 1) for i in range(layers))
        self.time = nn.Sequential(_linear(2 * _WAVES + 1, hidden), nn.SiLU(), _linear(hidden, hidden))
        self.register_buffer("bumps", _bumps(radial, reach), persistent=False)
        self.register_buffer("incidence", _incidence(particles), persistent=False)
        self._initialise(torch.Generator().manual_seed(0) if generator is None else generator)

    def _initialise(self, generator: Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.rounds:
            assert isinstance(layer, _Round)
            nn.init.normal_(layer.move.weight, std=0.01, generator=generator)

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Clean configurations (B, n, d), mean-free.

        Args:
            y: (B, n, d); its centre of mass is forgotten. In double precision the score (D - y)/sigma^2 keeps its
                digits at small noise, whatever the precision of the parameters.
            sigma: (B,), positive.
        """
        sigma = sigma.to(y)[:, None, None]
        total = (sigma.square() + self.data_std**2).sqrt()
        y = y - y.mean(dim=1, keepdim=True)
        scaled = (y / total).to(self.bumps)
        moved = (self._network(scaled, sigma[:, 0, 0].to(self.bumps)) - scaled).to(y)
        falling = sigma / (sigma.square() + self.core**2).sqrt()
        return (self.data_std / total).square() * y + sigma * self.data_std / total * falling * moved

    def _network(self, x: Tensor, sigma: Tensor) -> Tensor:
        clock = self.time(_waves(sigma.log()))
        x = x.transpose(0, 1)  # particles before the batch: sums over pairs are then one matrix product
        nodes: Tensor | None = None
        for layer in self.rounds:
            apart = _across(self.incidence, x)
            squared = apart.square().sum(dim=2, keepdim=True) + 1e-12
            basis = linear(
                torch.cat([squared.sqrt(), squared], dim=2), self.bumps[:, 1:], self.bumps[:, 0]
            ).reciprocal()
            nodes, push = layer(nodes, basis, clock, self.incidence.abs())
            x = x + _across(self.incidence.T, push * apart)
        return x.transpose(0, 1)


class _Round(nn.Module):
    """One round of messages: features of particles and how far every pair is pushed apart."""

    def __init__(self, hidden: int, radial: int, reads: bool, writes: bool) -> None:
        super().__init__()
        self.radial = _linear(radial, hidden, bias=False)
        self.clock = _linear(hidden, hidden)
        self.node = _linear(hidden, hidden, bias=False) if reads else None
        self.message = _linear(hidden, hidden)
        self.update = _linear(hidden, hidden) if writes else None
        self.move = _linear(hidden, 1, bias=False)

    def forward(
        self, nodes: Tensor | None, basis: Tensor, clock: Tensor, touching: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Nodes (n, B, H), None before the first round, and pushes (pairs, B, 1); ``touching`` (pairs, n) says who is
        in a pair."""
        start = self.radial(basis) + self.clock(clock)
        if self.node is not None and nodes is not None:
            start = start + _across(touching, self.node(nodes))
        message = silu(self.message(silu(start)))
        if self.update is not None:
            gathered = _across(touching.T, message) / (touching.shape[1] - 1) ** 0.5
            update = silu(self.update(gathered))
            nodes = update if nodes is None else nodes + update
        return nodes, self.move(message)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Without initial values, whose making would draw from torch's global generator."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return made


def _across(matrix: Tensor, values: Tensor) -> Tensor:
    """``matrix`` (m, n) times ``values`` (n, B, F): (m, B, F)."""
    return (matrix @ values.flatten(1)).view(len(matrix), *values.shape[1:])


_WAVES = 4


def _waves(log_sigma: Tensor) -> Tensor:
    """(B, 2 waves + 1) smooth features of the noise level."""
    place = 0.25 * log_sigma[:, None]
    angles = place * 2.0 ** torch.arange(_WAVES, device=place.device, dtype=place.dtype)
    return torch.cat([place, angles.sin(), angles.cos()], dim=1)


def _bumps(count: int, reach: float) -> Tensor:
    """(count, 3) coefficients of 1 + (distance - centre)^2/width^2 as a polynomial in the distance."""
    places = torch.arange(count, dtype=torch.float64) / (count - 1)
    centres, widths = reach * places.square(), 2.0 * reach * (places + 0.5 / count) / count
    sharpness = widths.pow(-2)
    return torch.stack([1.0 + sharpness * centres.square(), -2.0 * sharpness * centres, sharpness], dim=1).float()


def _incidence(particles: int) -> Tensor:
    """(pairs, n): +1 at the first of a pair, -1 at the second."""
    first, second = torch.triu_indices(particles, particles, offset=1)
    eye = torch.eye(particles)
    return eye[first] - eye[second]


def denoising_loss(
    model: GraphDenoiser,
    x: Tensor,
    sigma: Tensor,
    noise: Tensor,
    score: Tensor | None = None,
) -> Tensor:
    r"""Mean squared error of D, weighted so that every noise level counts the same at the beginning.

    The weight is 1/c_out^2 (Karras et al. 2022). Where the data's own score is known, the target at small noise is that
    of target score matching (De Bortoli et al. 2024, arXiv 2402.08667): E[x | y] is also E[y + sigma^2 score(x) | y],
    with a variance that falls with sigma. The two targets are mixed with the weight core^2/(core^2 + sigma^2).

    Args:
        model: the denoiser.
        x: (B, n, d) mean-free data.
        sigma: (B,).
        noise: (B, n, d) standard normal; its centre of mass is removed here.
        score: (B, n, d) gradient of the data's log-density at ``x``, mean-free; None: the only target is ``x``.

    Returns:
        (B,) mean over coordinates.
    """
    level = sigma[:, None, None]
    noise = noise - noise.mean(dim=1, keepdim=True)
    y = x + level * noise
    target = x
    if score is not None:
        share = model.core**2 / (model.core**2 + level.square())
        target = (1.0 - share) * x + share * (y + level.square() * score)
    weight = (sigma.square() + model.data_std**2) / (sigma * model.data_std).square()
    loss: Tensor = weight * (model(y, sigma) - target).square().mean(dim=(1, 2))
    return loss

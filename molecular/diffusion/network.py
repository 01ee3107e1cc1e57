"""The denoiser of one molecule: equivariant, aware of chirality, cheap.

An energy that is a function of distances and signed volumes has forces that are sums of their gradients, with one
coefficient each. The network is of that form: a residual network maps the standardised invariants and the noise level
to the coefficients. At low noise it is a force field, close to linear in the strain of each bond (a linear path leads
from the invariants to the coefficients). At noise that hides the hand of a chiral centre or the turn of a methyl group
the right answer is far from what shows through, and one pass does not find it: further passes look at the invariants of
the clean prediction so far, see what is wrong with it, and move the atoms along its own gradients.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .geometry import Invariants, bonded_quadruples
from .levels import Level, PredictionType, flow_level, log_uniform_betas, predicted, vp_level, vp_ratios
from .topology import MoleculeTopology

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
except ImportError as error:
    raise ImportError("feynkac.molecular.diffusion needs diffusers: pip install 'feynkac[diffusion]'") from error

__all__ = ["DenoiserOutput", "MoleculeDenoiser", "new_denoiser"]


_LEFT = 0.4  # noise that the invariants of a clean prediction are standardised for, a share of w
_TINY = 1e-9


class DenoiserOutput(NamedTuple):
    """Result of :meth:`MoleculeDenoiser.forward`: ``sample`` (B, N, 3), the prediction in the asked form."""

    sample: Tensor


class _Block(nn.Module):
    """h + W2 silu(W1 (norm(h) (1 + scale) + shift))."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(embedding, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.condition(level).chunk(2, dim=-1)
        change: Tensor = self.outer(nn.functional.silu(self.inner(self.norm(h) * (1.0 + scale) + shift)))
        return h + change


class _Pass(nn.Module):
    """Invariants and noise level -> coefficients: a residual network, and beside it a linear path from those of y."""

    def __init__(self, size: int, clean: bool, width: int, blocks: int, embedding: int) -> None:
        super().__init__()
        self.size = size
        both = 2 * size if clean else size
        self.level = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.enter = nn.Linear(both, width)
        self.layers = nn.ModuleList(_Block(width, embedding) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(embedding, 2 * width)
        self.leave = nn.Linear(width, both)
        self.gain = nn.Linear(embedding, size)
        self.direct = nn.Linear(size, size, bias=False)
        for layer in (self.leave, self.direct):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, z: Tensor, waves: Tensor, fast: bool) -> tuple[Tensor, Tensor]:
        """Coefficients (B, P + Q) for the gradients at y, and (B, P + Q or 0) for those at the clean prediction."""
        e = self.level(waves)
        straight = self.direct(z[:, : self.size] * (1.0 + self.gain(e)))
        h = self.enter(z)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=fast):
            for block in self.layers:
                h = block(h, e)
            scale, shift = self.condition(e).chunk(2, dim=-1)
            h = self.leave(self.norm(h) * (1.0 + scale) + shift)
        at_y, at_clean = h.to(z).split([self.size, h.shape[1] - self.size], 1)
        return at_y + straight, at_clean


class MoleculeDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """E[x | y] of frames x of one molecule, from y = x + w eps, in a unit in which they have unit variance.

    Args:
        elements: of the N atoms, in order.
        atom_names: of the atoms.
        residue_names: of the residue of each atom.
        residue_indices: of each atom, from 0.
        bonds: pairs of atom indices.
        quadruples: whose signed volumes the network sees; without any, mirror images look alike.
        length_unit: nm.
        noise_range: lowest and highest w of the variance-preserving table.
        num_train_timesteps: entries of that table.
        width: of the hidden layers.
        blocks: residual blocks of a pass.
        passes: of the network; the first looks at y alone, each other one at y and at the clean prediction so far.
        embedding: size of the embedding of the noise level.

    Raises:
        ValueError: lists of different lengths, or an index that is no atom.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        elements: Sequence[str],
        atom_names: Sequence[str],
        residue_names: Sequence[str],
        residue_indices: Sequence[int],
        bonds: Sequence[Sequence[int]],
        quadruples: Sequence[Sequence[int]],
        length_unit: float,
        noise_range: Sequence[float] = (0.002, 30.0),
        num_train_timesteps: int = 1000,
        width: int = 384,
        blocks: int = 2,
        passes: int = 2,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.topology = MoleculeTopology.from_lists(elements, atom_names, residue_names, residue_indices, bonds)
        self.topology.check_atoms("quadruples", quadruples, 4)
        if not (length_unit > 0.0 and math.isfinite(length_unit)):
            raise ValueError(f"length_unit: got {length_unit}, expected a positive finite number of nm")
        self.betas = log_uniform_betas(noise_range[0], noise_range[1], num_train_timesteps)
        self._ratios = vp_ratios(self.betas)
        self.fast = False
        self.invariants = Invariants(len(elements), quadruples)
        size = self.invariants.size
        self.steps = nn.ModuleList(_Pass(size, k > 0, width, blocks, embedding) for k in range(passes))

    @property
    def n_atoms(self) -> int:
        """N."""
        return len(self.topology.elements)

    def level_of(self, timestep: Tensor, prediction_type: PredictionType) -> Level:
        """alpha and sigma (B, 1, 1) at ``timestep`` (B,): by the table, or on straight lines for ``"flow"``."""
        if prediction_type == "flow":
            return flow_level(timestep, self.config.num_train_timesteps)
        return vp_level(self._ratios, timestep)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        prediction_type: PredictionType = "epsilon",
        return_dict: bool = True,
    ) -> DenoiserOutput | tuple[Tensor]:
        """A prediction from x = alpha x0 + sigma eps.

        Args:
            sample: (B, N, 3) in the model's unit of length.
            timestep: one, or (B,), in [0, ``num_train_timesteps``].
            prediction_type: the form of the result: noise, v = alpha eps - sigma x0, x0, or for ``"flow"`` eps - x0.
            return_dict: False returns a tuple.

        Raises:
            ValueError: an unknown form, or a sample of another molecule.
        """
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        level = self.level_of(t, prediction_type)
        size = (level.alpha.square() + level.sigma.square()).sqrt().to(sample)
        centre = sample.mean(1, keepdim=True)
        u = (sample - centre) / size
        output = self.output(u, level)
        prediction = predicted(prediction_type, u, output, centre / size, level)
        return DenoiserOutput(prediction) if return_dict else (prediction,)

    def denoised(self, y: Tensor, noise: Tensor | float) -> Tensor:
        """The clean prediction D(y, w), (B, N, 3) without centre of mass.

        D = y / (1 + w^2) + w / sqrt(1 + w^2) F(y / sqrt(1 + w^2), w): Karras et al. 2022, eq. 7 and table 1.

        Args:
            y: (B, N, 3) = x0 + w eps.
            noise: w, one or (B,), above zero.
        """
        w = torch.as_tensor(noise, dtype=torch.float64, device=y.device).reshape(-1, 1, 1).expand(len(y), 1, 1)
        level = Level(torch.ones_like(w), w)
        u = (y - y.mean(1, keepdim=True)) * (1.0 + w * w).rsqrt().to(y)
        return predicted("sample", u, self.output(u, level), torch.zeros_like(y[:, :1]), level)

    def output(self, u: Tensor, level: Level) -> Tensor:
        """F (B, N, 3) from positions ``u`` (B, N, 3) of unit variance, without centre, and their level.

        Raises:
            ValueError: positions of another molecule.
        """
        if u.ndim != 3 or tuple(u.shape[1:]) != (self.n_atoms, 3):
            raise ValueError(f"sample: got shape {tuple(u.shape)}, expected (B, {self.n_atoms}, 3)")
        size = (level.alpha.square() + level.sigma.square()).sqrt()
        signal, noise = (level.alpha / size)[:, 0].to(u), (level.sigma / size)[:, 0].to(u)
        waves = self._embedded(level).to(u)
        z, vectors = self.invariants(u, signal, noise)
        coefficients, _ = self.steps[0](z, waves, self.fast)
        result = self.invariants.forces(coefficients, vectors)
        left = (_LEFT * noise / signal.clamp(min=_TINY)).clamp(max=1.0)
        size = (1.0 + left * left).rsqrt()
        for step in self.steps[1:]:
            clean = signal[:, None] * u + noise[:, None] * result
            again, turned = self.invariants(clean * size[:, None], size, left * size)
            at_y, at_clean = step(torch.cat([z, again], 1), waves, self.fast)
            result = result + self.invariants.forces(at_y, vectors) + self.invariants.forces(at_clean, turned)
        return result

    def _embedded(self, level: Level) -> Tensor:
        """(B, embedding) bumps over log w; beyond a factor of two of the table's ends all levels look alike."""
        low, high = (math.log(w) for w in self.config.noise_range)
        low, high = low - math.log(2.0), high + math.log(2.0)
        count = self.config.embedding
        log_w = (level.sigma.log() - level.alpha.log()).clamp(low, high).reshape(-1, 1)
        spacing = (high - low) / (count - 1)
        centres = low + spacing * torch.arange(count, dtype=log_w.dtype, device=log_w.device)
        return torch.exp(-0.5 * ((log_w - centres) / (1.5 * spacing)).square())


def new_denoiser(topology: MoleculeTopology, length_unit: float, *, seed: int, **sizes: Any) -> MoleculeDenoiser:
    """An untrained denoiser that sees the volumes of all :func:`bonded_quadruples`.

    Args:
        topology: of the molecule.
        length_unit: nm.
        seed: of the first weights; torch's global generator is left as it was.
        sizes: other arguments of :class:`MoleculeDenoiser`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: MoleculeDenoiser = MoleculeDenoiser(
            elements=list(topology.elements),
            atom_names=list(topology.atom_names),
            residue_names=list(topology.residue_names),
            residue_indices=list(topology.residue_indices),
            bonds=[list(bond) for bond in topology.bonds],
            quadruples=[list(four) for four in bonded_quadruples(topology.bonds)],
            length_unit=length_unit,
            **sizes,
        )
    return made

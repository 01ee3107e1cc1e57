"""Training of a denoiser on frames: denoising score matching, sharpened by the forces where these are known.

The network's output F has the target (x0 - c_skip y) / c_out (Karras et al. 2022, eq. 8), whose noise does not fall
with the noise level: at w far below a bond's fluctuation nearly nothing of it can be predicted. For frames of a
Boltzmann law the score of the data s0 = -grad U / kT is known, and

    score of y = E[s0(x0) | y] = E[(x0 - y) / w^2 | y]

(target score matching, De Bortoli et al. 2024, and denoising score matching, Vincent 2011). Any mixture
a (x0 - y) / w^2 + (1 - a) s0 has the same mean, and the second moment over data and noise is smallest at

    a = w^2 / (w^2 + v),   v = D / E|s0|^2,   D = 3 N - 3,

since E[x0 . s0] = -D by integration by parts; v is the harmonic mean of the variances along stiff and soft directions.
At low noise the target then is the force, at high noise the frame.
"""

import torch
from torch import Tensor

__all__ = ["target_of", "training_levels"]


def target_of(frames: Tensor, scores: Tensor | None, noise: Tensor, w: Tensor, stiffness: float) -> Tensor:
    """What F is regressed on, (B, N, 3).

    With s = w / sqrt(1 + w^2) and c = 1 / sqrt(1 + w^2): a (s x0 - c eps) + (1 - a) (s x0 + s w eps + w s0 / c).

    Args:
        frames: x0 (B, N, 3), mean-free.
        scores: s0 (B, N, 3) in the same unit, or None for a = 1.
        noise: eps (B, N, 3), mean-free.
        w: (B, 1, 1).
        stiffness: E|s0|^2 / (3 N - 3), 1 / v.
    """
    signal = (1.0 + w * w).rsqrt()
    sigma = w * signal
    plain = sigma * frames - signal * noise
    if scores is None:
        return plain
    force = sigma * frames + sigma * w * noise + (w / signal) * scores
    share = 1.0 / (1.0 + w * w * stiffness)  # 1 - a
    return torch.lerp(plain, force, share)


def training_levels(
    count: int,
    generator: torch.Generator,
    *,
    lowest: float,
    highest: float,
    centre: float,
    spread: float,
    share_uniform: float,
) -> Tensor:
    """w (count, 1, 1), one from each of ``count`` strata: most log-normal about ``centre``, the others log-uniform.

    Args:
        count: of levels.
        generator: of the places within strata.
        lowest, highest: bounds of w.
        centre: median of the log-normal part.
        spread: standard deviation of its log w.
        share_uniform: share of the log-uniform part.
    """
    uniform = round(share_uniform * count)
    shares = (uniform, count - uniform)
    place = [(torch.arange(n) + torch.rand(n, generator=generator)) / max(n, 1) for n in shares]
    spread_out = lowest * (highest / lowest) ** place[0]
    central = centre * torch.exp(spread * torch.special.ndtri(place[1].clamp(1e-6, 1.0 - 1e-6)))
    return torch.cat([spread_out, central]).clamp(lowest, highest).reshape(-1, 1, 1)

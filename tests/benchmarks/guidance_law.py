r"""The law that guidance names, from independent paths, and how far draws are from it; for ``bench_guidance.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feynkac.steering import Level
from feynkac.steering.kernel import gaussian_step, log_ratio
from feynkac.steering.predictions import clean_prediction, noise_prediction
from feynkac.steering.schedulers import rule_for

COMPONENTS, BLOCKS, JACKKNIFE, CHUNK = 20, 6, 16, 256
"""Principal components; blocks of the jackknife of a way, and of the paths; rows of the denoiser at a time."""


@dataclass(frozen=True)
class Setting:
    """What all ways share.

    Attributes:
        pipe: of the digits.
        label: the class.
        scale: w.
        steps: of the denoiser.
        rows: in a batch of a way.
        batches: independent ones.
        down_to: noise over signal down to which the law is that of guidance; 0: to the end.
    """

    pipe: Any
    label: int
    scale: float
    steps: int
    rows: int
    batches: int
    down_to: float

    def corrects(self, level: Level) -> bool:
        """The law is that of guidance at this noise level."""
        return level.sigma >= self.down_to * level.alpha and level.sigma > 0.0

    def call(self, rows: int, seed: int, **options: Any) -> Tensor:
        """(rows, 1, 8, 8)."""
        generator = torch.Generator().manual_seed(seed)
        images: Tensor = self.pipe(
            self.label, rows, self.steps, self.scale, generator, output_type="pt", **options
        ).images
        return images


# --- the exact law --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Paths:
    """Where independent guided paths end.

    Attributes:
        images: (n, 1, 8, 8) in [0, 1].
        log_weights: (n,) of the guided law over that of the paths.
    """

    images: Tensor
    log_weights: Tensor

    def part(self, kept: Tensor) -> Paths:
        """Some of them."""
        return Paths(self.images[kept], self.log_weights[kept])

    @property
    def weights(self) -> Tensor:
        """(n,) adding to one."""
        return self.log_weights.softmax(0)

    @property
    def ess(self) -> float:
        """Effective number of paths."""
        return 1.0 / float(self.weights.square().sum())


@torch.no_grad()
def exact_paths(setting: Setting, count: int, seed: int) -> Paths:
    """Guided paths with the weights that they lack."""
    generator = torch.Generator().manual_seed(seed)
    parts = [_some(setting, min(CHUNK, count - i), generator) for i in range(0, count, CHUNK)]
    return Paths(torch.cat([part.images for part in parts]), torch.cat([part.log_weights for part in parts]))


def _some(setting: Setting, rows: int, generator: torch.Generator) -> Paths:
    pipe, w = setting.pipe, setting.scale
    scheduler, rule = pipe.scheduler, rule_for(pipe.scheduler)
    scheduler.set_timesteps(setting.steps)
    levels, prediction = rule.levels(scheduler), rule.prediction(scheduler)
    labels = torch.tensor([setting.label, pipe.null_class]).repeat_interleave(rows)
    x, total = torch.randn((rows, 1, 8, 8), generator=generator), torch.zeros(rows, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        said = pipe.unet(torch.cat([x, x]), t, class_labels=labels).sample.chunk(2)
        with_class, without = (clean_prediction(x, o, levels[i], prediction, exploding=False) for o in said)
        guided = without + w * (with_class - without)
        if i == setting.steps - 1:
            break
        with_class, without, own = (
            gaussian_step(part, noise_prediction(x, part, levels[i]), levels[i], levels[i + 1], 1.0)
            for part in (with_class, without, guided)
        )
        z = torch.randn(x.shape, generator=generator)
        if setting.corrects(levels[i + 1]):
            total += w * log_ratio(with_class.mean - own.mean, z, own.std)
            total += (1.0 - w) * log_ratio(without.mean - own.mean, z, own.std)
        x = own.mean + own.std * z
    return Paths((guided / 2 + 0.5).clamp(0, 1), total)


# --- measures -------------------------------------------------------------------------------------------------------


class Judge:
    """Compares draws with the exact law.

    Args:
        exact: paths.
        axes: (64, 20) principal axes.
        classifier: of the digits.
        label: the class.
    """

    def __init__(self, exact: Paths, axes: Tensor, classifier: Any, label: int) -> None:
        self.points, self.weights, self.axes = exact.images.flatten(1).double() @ axes, exact.weights, axes
        self.classifier, self.label = classifier, label
        self.within = _within(self.points, self.weights)

    def features(self, images: Tensor) -> Tensor:
        """(n, 3): class right, log probability of the class, mean ink."""
        with torch.no_grad():
            log_p = self.classifier(images * 2 - 1).log_softmax(dim=1)
        right = (log_p.argmax(dim=1) == self.label).double()
        return torch.stack([right, log_p[:, self.label].double(), images.double().mean(dim=(1, 2, 3))], dim=1)

    def measures(self, images: Tensor, weights: Tensor) -> Tensor:
        """(P, 3) of populations (P, K, 1, 8, 8) with weights (P, K)."""
        found = self.features(images.flatten(0, 1)).reshape(*weights.shape, 3)
        return (weights[..., None] * found).sum(dim=1)

    def distance(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean distances between populations (P, P), and to the exact law (P,)."""
        count, particles = weights.shape
        points = images.flatten(0, 1).flatten(1).double() @ self.axes
        w = weights.reshape(-1)
        cross = w * (torch.cdist(points, self.points) @ self.weights)
        pairs = w[:, None] * torch.cdist(points, points) * w
        return (
            pairs.reshape(count, particles, count, particles).sum(dim=(1, 3)),
            cross.reshape(count, particles).sum(dim=1),
        )

    def energy(self, pairs: Tensor, cross: Tensor) -> float:
        """The unbiased energy distance of some populations."""
        count = len(cross)
        between = float(pairs.sum() - pairs.trace()) / (count * (count - 1))
        return 2.0 * float(cross.mean()) - between - self.within

    def all(self, images: Tensor, weights: Tensor) -> tuple[list[float], list[float]]:
        """Energy distance, share of the class, log probability, ink; and their jackknife errors."""
        measures, (pairs, cross) = self.measures(images, weights), self.distance(images, weights)
        blocks = min(BLOCKS, len(cross))
        block = torch.arange(len(cross)) * blocks // len(cross)

        def estimate(kept: Tensor) -> Tensor:
            energy = self.energy(pairs[kept][:, kept], cross[kept])
            return torch.cat([torch.tensor([energy]), measures[kept].mean(dim=0)])

        whole = estimate(block >= 0)
        left = torch.stack([estimate(block != b) for b in range(blocks)])
        errors = ((blocks - 1) / blocks * (left - left.mean(dim=0)).square().sum(dim=0)).sqrt()
        return whole.tolist(), errors.tolist()


def shift(paths: Paths, judge: Judge) -> tuple[list[float], list[float]]:
    """What the weights move on the paths themselves, which without weights have the law of plain guidance.

    Returns:
        Energy distance of the paths without weights to those with, and mean features without less those with; and their
        jackknife errors.
    """
    features, gaps = judge.features(paths.images), torch.cdist(judge.points, judge.points)
    block = torch.arange(len(gaps)) * JACKKNIFE // len(gaps)

    def estimate(kept: Tensor) -> Tensor:
        w, d = paths.part(kept).weights, gaps[kept][:, kept]
        u = torch.full_like(w, 1.0 / len(w))

        def apart(a: Tensor, b: Tensor) -> Tensor:
            return (a @ d @ b) / (1.0 - a @ b)

        energy = 2.0 * apart(u, w) - apart(u, u) - apart(w, w)
        return torch.cat([energy[None], (u - w) @ features[kept]])

    left = torch.stack([estimate(block != b) for b in range(JACKKNIFE)])
    errors = ((JACKKNIFE - 1) / JACKKNIFE * (left - left.mean(dim=0)).square().sum(dim=0)).sqrt()
    return estimate(block >= 0).tolist(), errors.tolist()


def _within(points: Tensor, weights: Tensor) -> float:
    """Mean distance of two different points."""
    return float(weights @ torch.cdist(points, points) @ weights) / (1.0 - float(weights.square().sum()))


def floor(paths: Paths, axes: Tensor, classifier: Any, label: int) -> tuple[float, float]:
    """Energy distance of one half of the paths to the other, both weighted: mean and deviation of eight splits."""
    generator, found = torch.Generator().manual_seed(5), []
    for _ in range(8):
        mine, theirs = (paths.part(half) for half in torch.randperm(len(paths.images), generator=generator).chunk(2))
        judge, points = Judge(theirs, axes, classifier, label), mine.images.flatten(1).double() @ axes
        cross = float(mine.weights @ torch.cdist(points, judge.points) @ judge.weights)
        found.append(2.0 * cross - _within(points, mine.weights) - judge.within)
    values = torch.tensor(found)
    return float(values.mean()), float(values.std())

r"""Classifier-free guidance with and without its weight, against the law that it names.

    python tests/benchmarks/bench_guidance.py [--quick] [--label 3] [--steps 20] [--scales 1.5 2 3] [--out results.json]

The shipped digits, one class. Guidance at scale w names :math:`p_u^{1-w} p_c^w`; with the Gaussian steps K of the class
and of no class its law on this grid of noise levels is the geometric average of their path measures, and independent
guided paths have it under the weights

.. math:: \prod_t \frac{K_c(x_{t-1} | x_t)^w K_u(x_{t-1} | x_t)^{1-w}}{K_w(x_{t-1} | x_t)}.

That is the reference: no resampling, so many paths that their effective number is in the hundreds. Every way spends the
same denoiser calls: rows x steps x 2 branches.

The two predictions of a trained model are not those of one law. What they disagree in at little noise enters the
weights with the inverse noise, and rare paths outweigh all others: the exact law is then dominated by the model's
errors, and no number of particles finds it. So the weights are those of the levels down to ``--down-to``; from there
on all ways and the reference are guided alike, without weights. ``--down-to 0`` shows the rest.

Distance: the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| between the law of one draw of a way and the exact one,
in the first 20 principal components of the pixels; X and X' from different populations, so its expectation is zero
where the law is right, whatever the number of particles, and it can be negative. Errors: jackknife over six blocks of
independent populations; of the exact row, the deviation between halves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from guidance_law import COMPONENTS, Judge, Setting, exact_paths, floor, shift
from machine import describe
from torch import Tensor

from feynkac.fkc import log_mean_exp
from feynkac.steering import Annealed, FinalContext, Guidance, Memory, StepContext, Target, Weighed, attach
from feynkac.steering.pixel_classifier import PixelClassifier
from feynkac.steering.pixel_pipeline import load_pipeline

DATA = Path(__file__).parents[2] / "data"


# --- the ways -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a way drew.

    Attributes:
        images: (P, K, 1, 8, 8) in [0, 1].
        weights: (P, K), of each population adding to one.
        log_evidence: (P,), or None without weights.
        seconds: of processor time.
    """

    images: Tensor
    weights: Tensor
    log_evidence: Tensor | None
    seconds: float

    @property
    def ess(self) -> Tensor:
        """(P,)."""
        return 1.0 / self.weights.square().sum(dim=1)


def plain(setting: Setting, eta: float) -> Drawn:
    """Guidance as it is."""
    begun = time.thread_time()
    images = torch.cat([setting.call(setting.rows, 100 + b, eta=eta) for b in range(setting.batches)])
    return Drawn(images[:, None], torch.ones(len(images), 1).double(), None, time.thread_time() - begun)


@dataclass(frozen=True)
class Noisy:
    """A control of the noisy levels; below them the pipeline goes on as it is.

    Attributes:
        control: :class:`Guidance`, whose weight is that of the coming move, or :class:`Annealed`, whose weight is that
            of the move that was made.
        setting: says which levels.
    """

    control: Any
    setting: Setting
    candidates = 1
    on = "latents"
    records_branches = True

    @property
    def name(self) -> str:
        """For reports."""
        return str(self.control.name)

    @property
    def plans_moves(self) -> bool:
        """It disposes of moves."""
        return bool(getattr(self.control, "plans_moves", False))

    def begin(self, rows: int) -> Memory:
        """As the control."""
        memory: Memory = self.control.begin(rows)
        return memory

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """As the control, above."""
        if not self.setting.corrects(context.level if self.plans_moves else context.following):
            return None
        weighed: Weighed | None = self.control.weigh(context, memory)
        if weighed is not None and not self.setting.corrects(context.following):
            weighed = replace(weighed, planned=None)
        return weighed

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """What was weighed on the way."""
        return Target(final.applied, torch.zeros_like(final.applied))


def corrected(setting: Setting, particles: int, control: Callable[[], Any]) -> Drawn:
    """Guidance with weights, in populations of ``particles``."""
    begun, images, weights, evidence = time.thread_time(), [], [], []
    populations = setting.rows // particles
    for b in range(setting.batches):
        with attach(
            setting.pipe, Noisy(control(), setting), particles=particles, seed=b, transition="stochastic"
        ) as run:
            generator = torch.Generator().manual_seed(200 + b)
            found = setting.pipe(
                [setting.label] * populations, particles, setting.steps, setting.scale, generator, output_type="pt"
            ).images
        images.append(found.reshape(populations, particles, *found.shape[1:]))
        weights.append(run.weights)
        evidence.append(run.log_evidence)
    return Drawn(torch.cat(images), torch.cat(weights), torch.cat(evidence), time.thread_time() - begun)


# --- the table ------------------------------------------------------------------------------------------------------


def compare(setting: Setting, count: int, particles: list[int], classifier: Any) -> list[dict[str, Any]]:
    """All ways at one scale, as rows of the table."""
    begun = time.thread_time()
    paths = exact_paths(setting, count, seed=1)
    seconds = time.thread_time() - begun
    flat = paths.images.flatten(1).double()
    axes = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh[:COMPONENTS].T
    judge = Judge(paths, axes, classifier, setting.label)
    claims = {"mean": float(2 * flat.mean() - 1), "std": float(2 * (flat - flat.mean(dim=0)).square().mean().sqrt())}
    least, spread = floor(paths, axes, classifier, setting.label)
    exact = (paths.weights[:, None] * judge.features(paths.images)).sum(dim=0).tolist()
    log_z = float(log_mean_exp(paths.log_weights))
    error = float((paths.log_weights - log_z).exp().std()) / math.sqrt(count)
    ink = judge.features(paths.images)[:, 2]
    error_of_ink = float((paths.weights * (ink - exact[2])).square().sum().sqrt())
    errors = [spread, 0.0, 0.0, error_of_ink]
    row: dict[str, Any] = {"way": f"exact, {count} paths", "values": [least, *exact], "errors": errors}
    rows = [row | {"ess": paths.ess, "log_z": (log_z, error), "seconds": seconds}]
    print(_line(rows[0]), flush=True)
    ways: dict[str, Callable[[], Drawn]] = {
        "plain, DDIM": lambda: plain(setting, 0.0),
        "plain, stochastic": lambda: plain(setting, 1.0),
    }
    for k in particles:
        ways[f"Guidance(), K = {k}"] = lambda k=k: corrected(setting, k, Guidance)  # type: ignore[misc]
    k = particles[-1]
    ways[f"Annealed(1.0), K = {k}"] = lambda: corrected(setting, k, lambda: Annealed(1.0, **claims))
    for name, way in ways.items():
        drawn = way()
        values, errors = judge.all(drawn.images, drawn.weights)
        row = {"way": name, "values": values, "errors": errors, "seconds": drawn.seconds}
        if drawn.log_evidence is not None:
            z = drawn.log_evidence
            relative = (z - log_mean_exp(z)).exp()
            row |= {
                "ess": float(drawn.ess.mean()),
                "log_z": (float(log_mean_exp(z)), float(relative.std()) / math.sqrt(len(z))),
            }
        rows.append(row)
        print(_line(row), flush=True)
    moved, errors = shift(paths, judge)
    rows.append({"way": "shift", "values": moved, "errors": errors})
    print(
        f"\nPlain less exact on the {count} paths themselves: energy distance x 1000 {1000 * moved[0]:.1f} ± "
        f"{1000 * errors[0]:.1f}, ink {moved[3]:+.4f} ± {errors[3]:.4f}, class {100 * moved[1]:+.2f} ± "
        f"{100 * errors[1]:.2f} %"
    )
    return rows


def _line(row: dict[str, Any]) -> str:
    energy, *rest = row["values"]
    spread = row["errors"]
    cells = [row["way"], f"{1000 * energy:.1f} ± {1000 * spread[0]:.1f}"]
    cells += [f"{100 * rest[0]:.1f} ± {100 * spread[1]:.1f}" if spread[1] else f"{100 * rest[0]:.1f}"]
    cells += [f"{rest[1]:.3f}", f"{rest[2]:.4f}" + (f" ± {spread[3]:.4f}" if spread[3] else "")]
    cells += [f"{row['ess']:.1f}" if "ess" in row else "-"]
    cells += [f"{row['log_z'][0]:+.2f} ± {row['log_z'][1]:.2f}" if "log_z" in row else "-"]
    cells += [f"{row['seconds']:.0f}" if "seconds" in row else "-"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute: fewer paths, rows, steps and scales")
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--paths", type=int, default=3072, help="of the reference")
    parser.add_argument("--rows", type=int, default=256, help="in a batch of every way")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument(
        "--down-to",
        type=float,
        nargs="+",
        default=[0.6, 1.0, 2.0],
        help="noise over signal, for each scale; 0: to the end",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.scales, options.down_to, options.paths, options.rows, options.steps = [1.5], [1.0], 768, 128, 12
        options.particles = [8, 32]
    torch.set_num_threads(1)
    pipe = load_pipeline(DATA / "digits_diffusion")
    pipe.set_progress_bar_config(disable=True)
    classifier = PixelClassifier.from_pretrained(str(DATA / "digits_classifier"), local_files_only=True).eval()
    print(f"{describe()}; load {os.getloadavg()[0]:.1f}")
    print(
        f"class {options.label}, {options.steps} steps, {options.rows * options.batches} rows of every way, "
        f"{2 * options.rows * options.batches * options.steps:,} rows of the denoiser"
    )
    found = {}
    for scale, down_to in zip(options.scales, options.down_to, strict=True):
        setting = Setting(pipe, options.label, scale, options.steps, options.rows, options.batches, down_to)
        print(f"\nscale {scale:g}, weights down to noise {down_to:g}\n")
        print("| way | energy distance x 1000 | class, % | log p(class) | ink | ESS | log Z | s |")
        print("|---|---|---|---|---|---|---|---|")
        found[str(scale)] = compare(setting, options.paths, options.particles, classifier)
    if options.out is not None:
        options.out.write_text(json.dumps(vars(options) | {"out": str(options.out), "scales": found}, indent=1))


if __name__ == "__main__":
    main()

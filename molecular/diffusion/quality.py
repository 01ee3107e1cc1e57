"""How frames drawn from a model compare with frames of dynamics: bonds, energies, torsions, handedness."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cvs import Torsion
from ..energies import Energy
from .topology import MoleculeTopology

__all__ = ["chiral_centres", "compare_frames", "total_variation"]

_CHUNK = 8192
_BINS = 36


def chiral_centres(topology: MoleculeTopology) -> list[tuple[int, int, int, int]]:
    """Every atom with four neighbours, at most one of them hydrogen, and three of these, none of them hydrogen."""
    neighbours: list[list[int]] = [[] for _ in topology.elements]
    for i, j in topology.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    found = []
    for centre, around in enumerate(neighbours):
        heavy = sorted(i for i in around if topology.elements[i] != "H")
        if len(around) == 4 and len(heavy) >= 3:
            found.append((centre, heavy[0], heavy[1], heavy[2]))
    return found


def total_variation(a: Tensor, b: Tensor, bins: int = _BINS) -> float:
    """Half the sum of absolute differences of two histograms of angles, (n, d) and (m, d) in rad, ``bins`` an axis."""
    counts = []
    for angles in (a, b):
        cell = ((angles.double() + torch.pi) / (2.0 * torch.pi) * bins).long().clamp(0, bins - 1)
        place = torch.zeros(len(cell), dtype=torch.long)
        for column in cell.T:
            place = place * bins + column
        counts.append(torch.bincount(place, minlength=bins ** a.shape[1]).double() / len(cell))
    return float(0.5 * (counts[0] - counts[1]).abs().sum())


def compare_frames(
    samples: Tensor,
    frames: Tensor,
    topology: MoleculeTopology,
    energy: Energy,
    torsions: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Statistics of ``samples`` (n, N, 3) against ``frames`` (m, N, 3) of dynamics, both in nm.

    Args:
        samples: of the model.
        frames: of dynamics at the same temperature.
        topology: of both.
        energy: whose kT is that of the frames.
        torsions: name -> four atoms; a histogram of all of them together is compared.

    Returns:
        ``bonds`` (by pair of elements: means and standard deviations in nm), ``energy`` (kT), ``torsions`` (total
        variation of the joint histogram, and what as many frames at random show against all of them),
        ``hand``: share of samples with the hand of the frames at every chiral centre.
    """
    energies = [_in_chunks(energy, x).double() / energy.kT for x in (samples, frames)]
    angles = [_angles(x, torsions) for x in (samples, frames)]
    few = frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[: len(samples)]]
    finite = energies[0][energies[0].isfinite()]
    excess = energies[0] - energies[1].mean()
    return {
        "samples": len(samples),
        "frames": len(frames),
        "bonds": _bonds(samples, frames, topology),
        "energy": {
            "mean_excess_kT": float(excess.mean()),
            "std_error_of_mean_excess_kT": float(excess.std() / len(excess) ** 0.5),
            "median_excess_kT": float(energies[0].median() - energies[1].median()),
            "std_kT": float(finite.std()),
            "std_of_frames_kT": float(energies[1].std()),
            "share_above_all_frames": float((energies[0] > energies[1].max()).double().mean()),
        },
        "torsions": {
            "total_variation": total_variation(angles[0], angles[1]),
            "total_variation_of_as_many_frames": total_variation(_angles(few, torsions), angles[1]),
        }
        | {f"{name}_0_to_2_rad": _inside(angles[0][:, i], angles[1][:, i]) for i, name in enumerate(torsions)},
        "hand": _hands(samples, frames, topology),
    }


def _inside(samples: Tensor, frames: Tensor) -> dict[str, float]:
    shares = [((x > 0.0) & (x < 2.0)).double().mean() for x in (samples, frames)]
    error = (shares[0] * (1.0 - shares[0]) / len(samples)).sqrt()
    return {"samples": float(shares[0]), "std_error": float(error), "frames": float(shares[1])}


def _in_chunks(function: Any, x: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(function(part)).cpu() for part in torch.split(x, _CHUNK)])


def _angles(x: Tensor, torsions: Mapping[str, Sequence[int]]) -> Tensor:
    columns = [_in_chunks(Torsion(i, j, k, m), x) for i, j, k, m in torsions.values()]
    return torch.stack(columns, dim=1) if columns else torch.zeros(len(x), 0)


def _bonds(samples: Tensor, frames: Tensor, topology: MoleculeTopology) -> dict[str, dict[str, float]]:
    """Means over the bonds between two elements of each bond's mean and standard deviation, and the worst of them."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for i, j in topology.bonds:
        kinds.setdefault("-".join(sorted((topology.elements[i], topology.elements[j]))), []).append((i, j))
    result = {}
    for kind, pairs in kinds.items():
        i, j = torch.tensor(pairs).T
        lengths = [(x[:, i] - x[:, j]).double().square().sum(-1).sqrt() for x in (samples, frames)]
        (mean, true_mean), (spread, true_spread) = (
            [f(0) for f in (x.mean for x in lengths)],
            [x.std(0) for x in lengths],
        )
        result[kind] = {
            "mean_nm": float(mean.mean()),
            "mean_of_frames_nm": float(true_mean.mean()),
            "worst_error_of_mean_nm": float((mean - true_mean).abs().max()),
            "std_nm": float(spread.mean()),
            "std_of_frames_nm": float(true_spread.mean()),
            "worst_ratio_of_std": float(max((spread / true_spread).tolist(), key=lambda r: abs(r - 1.0))),
        }
    return result


def _hands(samples: Tensor, frames: Tensor, topology: MoleculeTopology) -> float | None:
    centres = chiral_centres(topology)
    if not centres:
        return None
    right = torch.ones(len(samples), dtype=torch.bool)
    for quadruple in centres:
        signs = []
        for x in (samples, frames):
            a, b, c, d = x[:, list(quadruple)].unbind(1)
            signs.append(((b - a) * torch.linalg.cross(c - a, d - a)).sum(-1).sign())
        right &= signs[0] == signs[1].median()
    return float(right.double().mean())

"""Batches of a repelled run as they are kept, and the files that its results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ...fkc.bias.rounds import Drawn, Round
from ...steering.repel import Batch
from ..steer.samples import output_samples
from ..tables import write_arrays
from .results import Batches, Outcome

__all__ = ["arrays", "batches_of", "bias_in", "metrics_of", "state_of", "write_data"]


def state_of(batch: Batch, classes: Callable[[Sequence[Any]], Tensor]) -> dict[str, Tensor]:
    """What is kept of a batch; ``classes`` reads its images."""
    images = output_samples(batch.output)
    drawn = batch.round.drawn
    assert drawn.groups is not None  # a population each
    return {
        "values": drawn.values,
        "log_weights": drawn.log_weights,
        "groups": drawn.groups,
        "ess": batch.run.ess,
        "classes": classes(images),
        "images": torch.from_numpy(np.stack([np.asarray(image) for image in images])),
        **{f"bias.{name}": value for name, value in batch.following.state_dict().items()},
    }


def bias_in(state: Mapping[str, Tensor]) -> RepulsionBias:
    """The bias that a batch left."""
    kept = {name.removeprefix("bias."): value for name, value in state.items() if name.startswith("bias.")}
    return RepulsionBias.from_state_dict(kept)


def metrics_of(unit: str, batch: Batch) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` that a batch leaves."""
    run = batch.run
    resampled = sum(record.ancestors is not None for record in run.records)
    return {
        "unit": unit,
        "batch": batch.index,
        "ess": run.ess.tolist(),
        "log_evidence": run.log_evidence.tolist(),
        "log_evidence_undone": batch.log_evidence.tolist(),
        "moves_with_resampling": resampled,
        "hills": batch.following.counts.hills,
    }


def batches_of(states: Sequence[dict[str, Tensor]], metas: Sequence[dict[str, object]], bias: RepulsionBias) -> Batches:
    """Batches as they were saved, the first under ``bias``."""
    rounds = []
    for index, state in enumerate(states):
        following = bias_in(state)
        drawn = Drawn(state["values"], state["log_weights"], None, state["groups"])
        rounds.append(Round(index, bias, drawn, following))
        bias = following
    shape = states[0]["ess"].shape[0], -1
    return Batches(
        tuple(rounds),
        torch.stack([state["classes"].reshape(shape) for state in states]),
        np.stack([state["images"].reshape(*shape, *state["images"].shape[1:]).numpy() for state in states]),
        torch.stack([state["ess"] for state in states]),
        tuple(float(str(meta["seconds"])) for meta in metas),
        tuple(dict.fromkeys(str(note) for meta in metas for note in _listed(meta["notes"]))),
    )


def _listed(notes: object) -> list[object]:
    return list(notes) if isinstance(notes, list) else []


def arrays(outcome: Outcome) -> dict[str, NDArray[np.generic]]:
    """For ``weights.npz``, by way; B batches, P populations, K samples.

    ``WAY.values`` (B, P, K, 2), ``.classes``, ``.log_weights`` without the bias, ``.biased_log_weights``,
    ``.pooled_log_weights`` of all batches joined (B, P, K), ``.ess`` (B, P); ``plane.values`` (n, 2), ``.classes``.
    """
    found = {"plane.values": outcome.plane.values, "plane.classes": outcome.plane.classes}
    for way, batches in outcome.ways():
        found |= {
            f"{way}.values": batches.values,
            f"{way}.classes": batches.classes,
            f"{way}.log_weights": batches.log_weights,
            f"{way}.biased_log_weights": batches.biased_log_weights,
            f"{way}.pooled_log_weights": batches.pooled().log_weights.reshape(batches.shape),
            f"{way}.ess": batches.ess,
        }
    return {name: value.contiguous().numpy() for name, value in found.items()}


def write_data(stage: Path, outcome: Outcome) -> None:
    """Weights, the last bias and the images of a finished run."""
    from safetensors.torch import save_file

    write_arrays(stage / "weights.npz", arrays(outcome))
    save_file(outcome.repelled.bias.state_dict(), str(stage / "bias.safetensors"))
    (stage / "samples").mkdir()
    for way, batches in outcome.ways():
        write_arrays(stage / "samples" / f"{way}.npz", {"images": batches.images})

"""A fitted network as a value: what the controls call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..context import StepContext
from ..errors import SteeringError

if TYPE_CHECKING:
    from .network import ValueNetwork

__all__ = ["LearnedValue"]


class LearnedValue:
    """Soft values for ``FKSteering(value=...)`` and ``SoftValueGuidance(intermediate=...)``.

    Whatever the network says, weights and evidence stay exact: values only choose the way, and what was applied is
    taken back at the end. A network that misleads makes them noisy, with heavy tails.

    Args:
        network: fitted; put into evaluation mode.
    """

    def __init__(self, network: "ValueNetwork") -> None:
        self.network = network.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LearnedValue":
        """The value saved in a local ``folder``; nothing is downloaded.

        Raises:
            FileNotFoundError: no ``config.json`` in it.
        """
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json, expected what LearnedValue.save_pretrained wrote")
        from .network import ValueNetwork

        return cls(ValueNetwork.from_pretrained(str(folder), local_files_only=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and parameters (safetensors)."""
        self.network.save_pretrained(str(folder))

    def to(self, device: Any) -> "LearnedValue":
        """Move the network."""
        self.network.to(device)
        return self

    @property
    def temperature(self) -> float:
        """alpha: the best values are those of a scale 1/alpha."""
        return float(self.network.config.temperature)

    @torch.no_grad()
    def evaluate(
        self, states: Tensor, levels: Tensor, clean: Tensor | None = None, *, chunk_size: int | None = None
    ) -> Tensor:
        """Values (n,) float64 on the CPU, in units of the reward.

        Args:
            states: (n, ``*shape``).
            levels: (n, 2) alpha and sigma.
            clean: (n, ``*shape``) x0-hat, where the network sees it.
            chunk_size: rows at a time; all at once if None.
        """
        device = self.network.head.weight.device
        parts = []
        for start in range(0, len(states), chunk_size or max(1, len(states))):
            rows = slice(start, start + (chunk_size or len(states)))
            seen = None if clean is None or not self.network.denoised else clean[rows].to(device)
            parts.append(self.network(states[rows].to(device), levels[rows].to(device), seen).double().cpu())
        return torch.cat(parts)

    def __call__(self, context: StepContext) -> Tensor:
        """Values (rows,) float64.

        Raises:
            SteeringError: the states are not of the shape or kind that the network was fitted to.
        """
        sample, network = context.sample, self.network
        if tuple(sample.shape[1:]) != network.shape:
            raise SteeringError(
                f"learned value: fitted to states of shape {network.shape}, got {tuple(sample.shape[1:])}; "
                "fit one for this pipeline at this size"
            )
        if sample.is_floating_point() == (network.symbols is not None):
            wanted = "continuous states" if network.symbols is None else "tokens"
            raise SteeringError(f"learned value: fitted to {wanted}, got states of {sample.dtype}")
        if network.symbols is not None and int(sample.max()) >= network.symbols.num_embeddings:
            raise SteeringError(
                f"learned value: fitted to {network.symbols.num_embeddings} tokens, got token {int(sample.max())}; "
                "say how many there are with tokens= when fitting"
            )
        level = torch.tensor([[context.level.alpha, context.level.sigma]], dtype=torch.float64)
        clean = context.clean if network.denoised else None
        return self.evaluate(sample, level.expand(len(sample), 2), clean, chunk_size=context.chunk_size)

"""Masked diffusion as a diffusers pipeline: one loop, one stepping point, nothing else."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._diffusers import BaseOutput, DiffusionPipeline
from .scheduler import MaskedDiffusionScheduler
from .tokens import Generators

__all__ = ["MaskedDiffusionPipeline", "MaskedDiffusionPipelineOutput"]


@dataclass
class MaskedDiffusionPipelineOutput(BaseOutput):  # type: ignore[misc]
    """``tokens`` (B, L) int64, and ``texts`` where the pipeline has a tokenizer."""

    tokens: Tensor
    texts: list[str] | None = None


class MaskedDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Samples token sequences by revealing masked positions.

    Args:
        model: tokens (B, L) -> logits (B, L, V), as a tensor or as ``.logits`` (so a masked language model of
            transformers is one). If it has a parameter named ``timestep``, it is also told the time t in (0, 1].
        scheduler: :class:`MaskedDiffusionScheduler`; its ``step`` is the only place where tokens change.
        tokenizer: None, or anything with ``batch_decode``.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["tokenizer"]  # noqa: RUF012  (the name and type are diffusers')

    def __init__(
        self, model: Callable[..., Any], scheduler: MaskedDiffusionScheduler, tokenizer: Any | None = None
    ) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler, tokenizer=tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        length: int | None = None,
        num_inference_steps: int = 64,
        tokens: Tensor | None = None,
        generator: Generators = None,
        output_type: str = "tokens",
        return_dict: bool = True,
    ) -> MaskedDiffusionPipelineOutput | tuple[Tensor, list[str] | None]:
        """Generate.

        Args:
            batch_size: number of sequences; 1 unless ``tokens`` says otherwise.
            length: of the sequences; the model's ``max_length`` unless given.
            num_inference_steps: T.
            tokens: (B, L) or (1, L) int64 to start from, with masks where tokens are wanted (infilling); None starts
                from masks alone.
            generator: one, or one a row.
            output_type: ``"tokens"``, or ``"text"`` to decode with the tokenizer too.
            return_dict: an output object, or the tuple of its members.

        Raises:
            ValueError: sizes that contradict each other or are missing; ``"text"`` without a tokenizer.
        """
        if output_type not in ("tokens", "text") or (output_type == "text" and self.tokenizer is None):
            raise ValueError(f"output_type: got {output_type!r}, expected 'tokens', or 'text' with a tokenizer")
        state = self._start(batch_size, length, tokens)
        self.scheduler.set_timesteps(num_inference_steps, device=state.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            state = self.scheduler.step(self._logits(state, t), t, state, generator=generator).prev_sample
        texts = list(self.tokenizer.batch_decode(state)) if output_type == "text" else None
        self.maybe_free_model_hooks()
        return MaskedDiffusionPipelineOutput(tokens=state, texts=texts) if return_dict else (state, texts)

    def _start(self, batch_size: int | None, length: int | None, tokens: Tensor | None) -> Tensor:
        device = self._device()
        if tokens is None:
            length = length if length is not None else getattr(getattr(self.model, "config", None), "max_length", None)
            if length is None:
                raise ValueError("length: not given, and the model's config has no max_length")
            shape = (1 if batch_size is None else batch_size, length)
            return torch.full(shape, self.scheduler.mask_token_id, dtype=torch.int64, device=device)
        if tokens.ndim != 2 or (length is not None and length != tokens.shape[1]):
            raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected (B, {length or 'L'})")
        rows = len(tokens) if batch_size is None else batch_size
        if len(tokens) not in (1, rows):
            raise ValueError(f"tokens: got {len(tokens)} rows, expected 1 or batch_size = {rows}")
        return tokens.to(device=device, dtype=torch.int64).expand(rows, -1).clone()

    def _device(self) -> torch.device:
        """Where to work: diffusers' answer (it knows of offloading), or, for a model without ``device``, its
        parameters'."""
        if isinstance(self.model, nn.Module) and not hasattr(self.model, "device"):
            parameter = next(self.model.parameters(), None)
            return torch.device("cpu") if parameter is None else parameter.device
        device: torch.device = self._execution_device
        return device

    def _logits(self, state: Tensor, t: Tensor) -> Tensor:
        owner: Any = self.model
        forward = getattr(owner, "forward", owner)
        timed = "timestep" in inspect.signature(forward).parameters
        output = self.model(state, timestep=t) if timed else self.model(state)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

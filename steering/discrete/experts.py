"""The models of masked diffusion pipelines as experts of correctors."""

import torch
from torch import Tensor

from ...fkc.masked import MaskedExpert
from .pipeline import MaskedDiffusionPipeline

__all__ = ["masked_expert"]


def masked_expert(pipe: MaskedDiffusionPipeline) -> MaskedExpert:
    """A pipeline's model as an expert, called as the pipeline calls it: on its device, told the time if it wants to be.

    Example:
        >>> expert = masked_expert(pipe)
        >>> sample_corrected_masked(Annealed(expert, 2.0), particles=64, seed=0)

    Args:
        pipe: its model and its scheduler's mask are used; its schedule is not.
    """

    @torch.no_grad()
    def logits(tokens: Tensor, time: Tensor) -> Tensor:
        device = pipe._device()
        return pipe._logits(tokens.to(device), time[0].to(device))

    length = getattr(getattr(pipe.model, "config", None), "max_length", None)
    return MaskedExpert(logits, pipe.scheduler.mask_token_id, timed=True, length=length)

"""The enumerated masked-diffusion model as a denoiser, so that a real pipeline has an enumerated law."""

from torch import Tensor, nn

from ..discrete._diffusers import ConfigMixin, ModelMixin, register_to_config
from ..discrete.denoiser import MaskedDenoiserOutput
from .enumerated import EnumeratedMaskedModel

__all__ = ["EnumeratedDenoiser"]


class EnumeratedDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Exact logits, log of the conditional marginals, of :class:`EnumeratedMaskedModel` with its default data law."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, max_length: int = 3) -> None:
        super().__init__()
        model = EnumeratedMaskedModel(length=max_length)
        self.model = model
        self.table = nn.Parameter(model.marginals.log(), requires_grad=False)

    def forward(self, tokens: Tensor) -> MaskedDenoiserOutput:
        """Logits (B, L, V) float64 for tokens (B, L) int64."""
        return MaskedDenoiserOutput(logits=self.table[self.model.state_index(tokens)])

"""A small convolutional classifier of images, saved and loaded the way diffusers' models are."""

import torch
from torch import Tensor, nn

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
except ImportError as error:
    raise ImportError("feynkac.steering.pixel_classifier needs diffusers: pip install 'feynkac[diffusion]'") from error

__all__ = ["PixelClassifier"]


class PixelClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Class logits of square images in [-1, 1].

    Args:
        sample_size: height and width, divisible by 2.
        in_channels: 1 for grey, 3 for colour.
        channels: of the first convolution; the later ones have twice as many.
        n_features: width of the layer before the logits.
        n_classes: number of logits.
        dropout: probability, in training only.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 1,
        channels: int = 32,
        n_features: int = 32,
        n_classes: int = 10,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if sample_size < 2 or sample_size % 2:
            raise ValueError(f"sample_size: got {sample_size}, expected an even number")
        wide, half = 2 * channels, sample_size // 2
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, wide, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(wide * half * half, n_features),
            nn.GELU(),
        )
        self.head = nn.Linear(n_features, n_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, n_features) activations before the logits, of ``images`` (B, C, H, W) in [-1, 1]."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(B, n_classes) logits of ``images`` (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(B,) most probable classes."""
        return self.forward(images).argmax(dim=1)

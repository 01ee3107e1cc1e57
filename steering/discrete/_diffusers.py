"""The base classes of diffusers that this package builds on, imported in one place."""

try:
    from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import BaseOutput
except ImportError as error:  # pragma: no cover - the extra is installed wherever the tests run
    raise ImportError("diffusers is needed here: pip install 'feynkac[diffusion]'") from error

__all__ = ["BaseOutput", "ConfigMixin", "DiffusionPipeline", "ModelMixin", "SchedulerMixin", "register_to_config"]

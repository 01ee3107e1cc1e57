"""The classes of diffusers that this package builds on, imported in one place.

To type checkers they are ``Any``: which of their members are declared differs from release to release.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    BaseOutput: Any
    ConfigMixin: Any
    DDPMScheduler: Any
    DiffusionPipeline: Any
    ModelMixin: Any
    SchedulerMixin: Any
    register_to_config: Any
else:
    try:
        from diffusers import ConfigMixin, DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
        from diffusers.configuration_utils import register_to_config
        from diffusers.utils import BaseOutput
    except ImportError as error:  # pragma: no cover - the extra is installed wherever the tests run
        raise ImportError("diffusers is needed here: pip install 'feynkac[diffusion]'") from error

__all__ = [
    "BaseOutput",
    "ConfigMixin",
    "DDPMScheduler",
    "DiffusionPipeline",
    "ModelMixin",
    "SchedulerMixin",
    "register_to_config",
]

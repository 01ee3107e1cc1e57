"""What wraps a pipeline's denoiser while controls steer it.

:class:`DenoiserTap` cuts its batch into pieces, skips rows that are copies, tells the branches of classifier-free
guidance apart, makes the model output a differentiable function of the sample, and checks that a block of rows is
conditioned alike. The pipeline and the module stay as they are.
"""

from .branches import Branches
from .find import denoisers_of, has_caches
from .names import register_argument
from .wrap import DenoiserTap

__all__ = ["Branches", "DenoiserTap", "denoisers_of", "has_caches", "register_argument"]

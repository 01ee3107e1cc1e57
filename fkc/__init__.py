"""The Feynman-Kac core: weighted populations, resampling, and the one sequential Monte Carlo loop.

Only torch and the standard library are needed (safetensors, inside ``checkpoint``). Log-weights are float64,
kept in log space and carried between resamplings; random numbers come from explicit generators, two streams a
population.

Example:
    >>> population = Population.uniform(1, 4).reweighted(torch.tensor([[0.0, 0.0, -1.0, -9.0]]))
    >>> population.log_evidence, population.ess
    >>> population, ancestors = population.resampled(torch.Generator().manual_seed(1), threshold=1.1)
"""

from .cloud import Cloud, permute
from .control_variates import ControlledMeans, regress_controls
from .correctors import (
    Annealed,
    AnnealedProduct,
    ExchangedSamples,
    GeometricAverage,
    Product,
    RefinedModel,
    RewardTilt,
    Target,
    WeightedSamples,
    corrected_model,
    sample_corrected,
    sample_exchanged,
)
from .density import Autograd, GeometricPath, LogDensity, Point, WithScore
from .diffusion import Diffusion
from .errors import (
    CheckpointError,
    NonFiniteWeightWarning,
    ParetoWarning,
    PathCollapsed,
    PopulationCollapsed,
    ScheduleExhausted,
    UnstableNoise,
    WeightError,
)
from .experts import Expert
from .genealogy import distinct_roots, evidence_std_error, mean_std_error
from .masked import MaskedExpert, sample_corrected_masked
from .mixture_estimates import MixtureEstimate, MixtureResult
from .mixture_importance import MixtureComponent, sample_mixture
from .mixture_sample import MixtureSample
from .mixture_unbiased import UnbiasedIntegrals
from .model import FeynmanKacModel, FunctionModel
from .pareto import ParetoSmoothed, Truncated, pareto_smooth, truncate
from .population import Population
from .resampling import SCHEMES, Scheme, copies, resample
from .smc import Checkpoint, Evidence, SMCResult, State, StepInfo, init, smc, step
from .streams import Stream, Streams, generator_for, normal, split_seed, uniform
from .tempering import AdaptiveSchedule, FixedSchedule, StepSizeTuning, Tempering, conditional_ess
from .weights import effective_sample_size, log_evidence_std_error, log_mean_exp, normalize

__all__ = [
    # population and weights
    "Population",
    "resample",
    "SCHEMES",
    "Scheme",
    "copies",
    "normalize",
    "log_mean_exp",
    "effective_sample_size",
    "log_evidence_std_error",
    "pareto_smooth",
    "ParetoSmoothed",
    "truncate",
    "Truncated",
    # the loop
    "smc",
    "init",
    "step",
    "State",
    "StepInfo",
    "SMCResult",
    "Evidence",
    "Checkpoint",
    "FeynmanKacModel",
    "FunctionModel",
    "Cloud",
    "permute",
    # correctors
    "Diffusion",
    "Expert",
    "Target",
    "Annealed",
    "Product",
    "AnnealedProduct",
    "GeometricAverage",
    "RewardTilt",
    "sample_corrected",
    "corrected_model",
    "sample_exchanged",
    "ExchangedSamples",
    "RefinedModel",
    "MaskedExpert",
    "sample_corrected_masked",
    "WeightedSamples",
    # several expectations from one sample
    "sample_mixture",
    "MixtureComponent",
    "MixtureResult",
    "MixtureEstimate",
    "MixtureSample",
    "UnbiasedIntegrals",
    "regress_controls",
    "ControlledMeans",
    # genealogy
    "evidence_std_error",
    "mean_std_error",
    "distinct_roots",
    # tempering
    "Tempering",
    "FixedSchedule",
    "AdaptiveSchedule",
    "StepSizeTuning",
    "conditional_ess",
    "LogDensity",
    "Autograd",
    "WithScore",
    "GeometricPath",
    "Point",
    # random streams
    "Stream",
    "Streams",
    "generator_for",
    "split_seed",
    "normal",
    "uniform",
    # errors
    "PopulationCollapsed",
    "PathCollapsed",
    "UnstableNoise",
    "WeightError",
    "NonFiniteWeightWarning",
    "ParetoWarning",
    "ScheduleExhausted",
    "CheckpointError",
]

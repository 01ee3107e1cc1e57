"""The config of a corrected run: experts, what is made of them, and how it is sampled."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..config import ExistingPath, Positive, RunName, Section, Seed, VariableName
from ..steer.config import Finite, ModelConfig, NotNegative, ResamplingScheme
from .exponent import ExponentText

__all__ = [
    "CorrectedConfig",
    "ExpertConfig",
    "LevelsConfig",
    "MixtureConfig",
    "PathConfig",
    "PipelineConfig",
    "SamplingConfig",
    "TargetConfig",
]

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


# --- experts --------------------------------------------------------------------------------------------------------


class PathConfig(Section):
    """The noising that an expert of known density is put on; ``sigma_min`` and ``sigma_max`` are for ve."""

    kind: Literal["ve", "vp", "edm", "flow"] = "ve"
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None

    @model_validator(mode="after")
    def _range_fits(self) -> PathConfig:
        given = self.sigma_min is not None or self.sigma_max is not None
        if given and self.kind not in ("ve", "edm"):
            raise ValueError(f"sigma_min and sigma_max are for kinds ve and edm, got kind {self.kind}")
        if self.sigma_min is not None and self.sigma_max is not None and not self.sigma_min < self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class MixtureConfig(Section):
    """A mixture of Gaussians of one width: ``means`` and ``std``, or a published ``case``."""

    case: Literal["gmm40"] | None = None
    means: tuple[tuple[Finite, ...], ...] | None = None
    std: PositiveFloat | None = None
    weights: tuple[PositiveFloat, ...] | None = None
    path: PathConfig = PathConfig()
    known_density: bool = True

    @model_validator(mode="after")
    def _complete(self) -> MixtureConfig:
        own = [name for name in ("means", "std", "weights") if getattr(self, name) is not None]
        if self.case is not None:
            if own:
                raise ValueError(f"{own[0]} is set by case {self.case}; leave it out")
            return self
        if self.means is None or self.std is None:
            raise ValueError("needs case: gmm40, or means: [[0.0, 1.0], ...] and std: 0.5")
        if not self.means or not self.means[0] or len({len(mean) for mean in self.means}) > 1:
            raise ValueError("means: expected one or more points of one dimension")
        if self.weights is not None and len(self.weights) != len(self.means):
            raise ValueError(f"weights: got {len(self.weights)} for {len(self.means)} means")
        return self


class PipelineConfig(ModelConfig):
    """The law that a pipeline in a local folder samples, in its latent space, when it is called with ``call``.

    ``class_label`` stands for ``call: {class_labels: ...}``; a pipeline of classes that is given neither is asked for
    no class.
    """

    class_label: Annotated[int, Field(ge=0)] | None = None
    call: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_class(self) -> PipelineConfig:
        if self.class_label is not None and "class_labels" in self.call:
            raise ValueError("needs class_label or call.class_labels, not both")
        return self


class ExpertConfig(Section):
    """A pretrained law: exactly one of its kinds, and perhaps the mean and deviation of its data.

    These two make the Gaussian reference of the sampler; left out, they are known or estimated from draws.
    """

    mixture: MixtureConfig | None = None
    pipeline: PipelineConfig | None = None
    mean: Finite | None = None
    std: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ExpertConfig:
        if len(self._given()) != 1:
            raise ValueError("needs exactly one of mixture: {...}, pipeline: {...}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("needs mean and std, or neither")
        return self

    def _given(self) -> list[str]:
        return [name for name in ("mixture", "pipeline") if getattr(self, name) is not None]

    @property
    def kind(self) -> str:
        """The one that is given."""
        return self._given()[0]


# --- targets --------------------------------------------------------------------------------------------------------

_FORMS: dict[str, tuple[int, int | None, str | None]] = {
    "annealed": (1, 1, "exponent"),
    "product": (2, None, None),
    "annealed_product": (2, None, "exponent"),
    "guidance": (2, 2, "weight"),
    "powers": (1, None, "exponents"),
}
"""Form -> least and most experts, and the key of its exponents."""


class TargetConfig(Section):
    """What is made of the experts.

    annealed: q^exponent. product: all of them. annealed_product: their product to the exponent. guidance: of experts
    [without, with] a condition, q_without^(1 - weight) q_with^weight. powers: one of the exponents for each.
    """

    form: Literal["annealed", "product", "annealed_product", "guidance", "powers"]
    experts: Annotated[tuple[str, ...], Field(min_length=1)]
    exponent: ExponentText | None = None
    exponents: tuple[ExponentText, ...] | None = None
    weight: ExponentText | None = None
    noise: NotNegative | None = None

    @model_validator(mode="after")
    def _form_fits(self) -> TargetConfig:
        least, most, key = _FORMS[self.form]
        count = len(self.experts)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            raise ValueError(f"form {self.form} takes {wanted} experts, got {count}")
        for name in ("exponent", "exponents", "weight"):
            if (getattr(self, name) is not None) != (name == key):
                takes = f"needs {key}" if name == key else f"takes no {name}"
                raise ValueError(f"form {self.form} {takes}")
        if self.exponents is not None and len(self.exponents) != count:
            raise ValueError(f"exponents: got {len(self.exponents)} for {count} experts")
        return self


class LevelsConfig(Section):
    """Noise of the sampler over the signal, from first to last: those of the first expert's path if left out.

    ``rho``: equally spaced in sigma^(1/rho); in log sigma if left out.
    """

    sigma_max: PositiveFloat | None = None
    sigma_min: PositiveFloat | None = None
    rho: PositiveFloat | None = None

    @model_validator(mode="after")
    def _falling(self) -> LevelsConfig:
        if self.sigma_max is not None and self.sigma_min is not None and not self.sigma_min < self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class SamplingConfig(Section):
    """How each target is sampled."""

    particles: Annotated[int, Field(ge=2)]
    populations: Positive = 1
    steps: Positive
    gauge: Literal["reference", "fitted", "velocities", "plain"] = "reference"
    control: Literal["none", "score", "least_squares"] = "none"
    weights: Literal["auto", "kernel", "rate", "none"] = "auto"
    churn: NotNegative = 0.0
    resampler: ResamplingScheme = "systematic"
    ess_threshold: NotNegative = 0.5
    chunk_size: Positive | None = None
    seed: Seed
    checkpoint_every: Positive = 10
    force: bool = False


class CorrectedConfig(Section):
    """`feynkac run`: sample powers and products of pretrained laws, with weights and, to compare, without.

    ``classifier``: a folder of one for the images of pipelines, which names their classes.
    """

    job: Literal["corrected"]
    name: RunName
    experts: Annotated[dict[VariableName, ExpertConfig], Field(min_length=1)]
    targets: Annotated[dict[RunName, TargetConfig], Field(min_length=1)]
    levels: LevelsConfig = LevelsConfig()
    sampling: SamplingConfig
    compare: bool = True
    classifier: ExistingPath | None = None

    @field_validator("targets")
    @classmethod
    def _experts_known(cls, targets: dict[str, TargetConfig], info: ValidationInfo) -> dict[str, TargetConfig]:
        known = info.data.get("experts")
        for name, target in targets.items():
            for expert in target.experts:
                if known is not None and expert not in known:
                    close = difflib.get_close_matches(expert, list(known), n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise ValueError(
                        f"{name}.experts: {expert!r} is none of the experts; defined: {', '.join(known)}{hint}"
                    )
        return targets

    @model_validator(mode="after")
    def _ways_differ(self) -> CorrectedConfig:
        if self.sampling.weights == "none" and self.compare:
            raise ValueError("sampling.weights none is what compare: true adds; set compare: false, or give weights")
        return self

"""The config of `feynkac steer`: a pipeline, what it is called with, rewards, and how they steer."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ...fkc.resampling import SCHEMES
from ..config import ExistingPath, Positive, RunName, Section, Seed, absolute_paths, matching

__all__ = [
    "CallConfig",
    "Finite",
    "ModelConfig",
    "NotNegative",
    "ResamplingScheme",
    "RewardConfig",
    "SamplingConfig",
    "SteerConfig",
    "SteeringConfig",
]

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _scheme(name: str) -> str:
    if name not in SCHEMES:
        raise ValueError(f"expected {' or '.join(sorted(SCHEMES))}")
    return name


ResamplingScheme = Annotated[str, AfterValidator(_scheme)]


def _scale(value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError("expected a finite number from 0 on (negate the reward to steer away from it)")
    return value


class ModelConfig(Section):
    """The pipeline: a folder that ``save_pretrained`` wrote, its scheduler's class, its type and place."""

    folder: ExistingPath
    scheduler: str | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?|mps", "auto, cpu, cuda, cuda:NUMBER or mps")] = "auto"


class CallConfig(Section):
    """What the pipeline is called with; left out: the pipeline's own default.

    Prompts or labels, each a run of its own; neither for a pipeline that takes none.
    """

    prompts: tuple[str, ...] = ()
    labels: tuple[Annotated[int, Field(ge=0)] | None, ...] = ()
    negative_prompt: str | None = None
    steps: Positive | None = None
    guidance_scale: Finite | None = None
    eta: Fraction | None = None
    size: Annotated[str, matching(r"[1-9]\d*x[1-9]\d*", "HEIGHTxWIDTH in pixels, such as 512x768")] | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> CallConfig:
        if self.prompts and self.labels:
            raise ValueError("needs prompts or labels, not both")
        given: tuple[Any, ...] = self.prompts or self.labels
        twice = [value for i, value in enumerate(given) if value in given[:i]]
        if twice:
            raise ValueError(f"{twice[0]!r} is given twice; for independent repeats: sampling.seeds")
        return self


class RewardConfig(Section):
    """A reward by name (`feynkac plugins` lists those installed), its options, and lambda.

    In options ``{prompt}`` and ``{label}`` stand for those of the population; clip_score's prompt is that one anyway.
    """

    name: str
    options: Annotated[dict[str, Any], BeforeValidator(absolute_paths)] = Field(default_factory=dict)
    scale: Annotated[float, AfterValidator(_scale)] = 1.0


class SteeringConfig(Section):
    """How the particles are steered to the rewards."""

    method: Literal["fk", "soft-value", "best-of-n"] = "fk"
    particles: Positive = 8
    candidates: Positive | None = None
    temperature: NotNegative | None = None
    potential: Literal["difference", "max", "sum"] | None = None
    transition: Literal["native", "stochastic", "auto"] = "native"
    resampler: ResamplingScheme = "systematic"
    ess_threshold: NotNegative = 0.5
    final: Literal["weighted", "resampled", "best"] = "weighted"
    chunk_size: Positive | None = None

    @model_validator(mode="after")
    def _method_fits(self) -> SteeringConfig:
        soft = self.method == "soft-value"
        for name in ("candidates", "temperature"):
            if getattr(self, name) is not None and not soft:
                raise ValueError(f"{name} is for method soft-value, got method {self.method}")
        if self.potential is not None and self.method != "fk":
            raise ValueError(f"potential is for method fk, got method {self.method}")
        if self.method == "best-of-n" and self.final != "weighted":
            raise ValueError(f"final {self.final} is for methods fk and soft-value; best-of-n keeps all, weighted")
        return self

    def resolved(self) -> SteeringConfig:
        """With the defaults of its method written out."""
        if self.method == "soft-value":
            filled = {"candidates": self.candidates or 4, "temperature": 1.0}
            if self.temperature is not None:
                filled["temperature"] = self.temperature
            return self.model_copy(update=filled)
        if self.method == "fk":
            return self.model_copy(update={"potential": self.potential or "difference"})
        return self


class SamplingConfig(Section):
    """The seed, how many independent populations each prompt gets (seeds seed, seed + 1, ...), and after how many steps
    the state inside a trajectory is saved."""

    seed: Seed = 0
    seeds: Annotated[int, Field(ge=1, le=100_000)] = 1
    checkpoint_every: Positive = 10


class SteerConfig(Section):
    """`feynkac steer`: run a diffusers pipeline as a weighted population."""

    job: Literal["steer"]
    name: RunName
    model: ModelConfig
    call: CallConfig = CallConfig()
    rewards: Annotated[tuple[RewardConfig, ...], Field(min_length=1)]
    steering: SteeringConfig = SteeringConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _rewards_fit(self) -> SteerConfig:
        method = self.steering
        if method.method == "soft-value":
            if any(reward.scale == 0.0 for reward in self.rewards):
                raise ValueError("rewards: method soft-value needs scales above zero")
            if method.temperature == 0.0 and len(self.rewards) > 1:
                raise ValueError("steering.temperature = 0.0: with several rewards expected a positive number")
        return self

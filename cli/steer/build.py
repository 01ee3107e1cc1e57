"""From the config of `feynkac steer` to the pipeline and its calls; everything that can be checked early is."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...steering import registered_schedulers
from ...steering.asking import batched_call
from ...steering.denoiser import denoisers_of
from ...steering.moves import GaussianMove
from ...steering.schedulers import rule_for
from ..errors import UserError, first_line, named_errors
from ..paths import resolve
from .config import ModelConfig, SteerConfig
from .units import Condition

__all__ = ["PipelineCalls", "check_folder", "check_scheduler", "load_model", "one_thread_for_tiny_models"]

_CONDITIONS = {"prompt": "prompt", "label": "class_labels"}
"""Kind of condition -> the pipeline's argument."""

_TINY = 5_000_000
"""Parameters of a denoiser that one thread serves best."""


# --- the pipeline ---------------------------------------------------------------------------------------------------


def check_folder(config: ModelConfig) -> Path:
    """The pipeline's folder.

    Raises:
        UserError: it is not one that ``save_pretrained`` wrote.
    """
    folder = resolve(config.folder, Path())
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"model.folder = {config.folder!r}: it has no model_index.json; expected what a pipeline's "
            "save_pretrained wrote (nothing is downloaded)"
        )
    return folder


def load_model(config: ModelConfig) -> Any:
    """The pipeline, with the scheduler, type and device that were asked for.

    Raises:
        UserError: the folder, the scheduler or the device cannot be used.
    """
    folder, device = check_folder(config), _device(config.device)
    if config.scheduler is not None and config.scheduler not in registered_schedulers():
        known = ", ".join(registered_schedulers())
        raise UserError(f"model.scheduler = {config.scheduler!r}: not known; expected one of {known}")
    try:
        pipe = _loaded(folder, getattr(torch, config.dtype))
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.folder = {config.folder!r}: cannot be loaded: {first_line(error)}") from error
    if getattr(pipe, "scheduler", None) is None:
        raise UserError(f"model.folder = {config.folder!r}: {type(pipe).__name__} has no scheduler, nothing to steer")
    if config.scheduler is not None:
        pipe.scheduler = _other_scheduler(pipe.scheduler, config.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _loaded(folder: Path, dtype: torch.dtype) -> Any:
    if json.loads((folder / "model_index.json").read_text()).get("_class_name") == "MoleculePipeline":
        from ...molecular.diffusion import MoleculePipeline

        return MoleculePipeline.from_pretrained(str(folder), local_files_only=True, dtype=dtype)
    from ...steering.pixel_pipeline import load_pipeline

    return load_pipeline(folder, dtype=dtype)


def one_thread_for_tiny_models(pipe: Any) -> None:
    """Threads that meet at every operation of a small network cost more than they bring, many times more on a busy
    machine; resuming takes the number that was recorded."""
    parameters = sum(p.numel() for module in denoisers_of(pipe) for p in module.parameters())
    if str(pipe.device) == "cpu" and parameters < _TINY:
        torch.set_num_threads(1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"model.device = {name!r}: there are {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"model.device = {name!r}: there is no such device here")
    return device


def _other_scheduler(scheduler: Any, name: str) -> Any:
    """The class ``name`` of the library that the scheduler comes from, with the scheduler's own settings."""
    library = importlib.import_module(type(scheduler).__module__.partition(".")[0])
    cls = getattr(library, name, None)
    fitting = {c.__name__ for c in scheduler.compatibles} | {type(scheduler).__name__}
    if cls is None or not hasattr(cls, "from_config"):
        raise UserError(f"model.scheduler = {name!r}: {library.__name__} has no such class")
    if name not in fitting and rule_for(scheduler).family != rule_for(cls.from_config(scheduler.config)).family:
        raise UserError(
            f"model.scheduler = {name!r}: it cannot take the place of {type(scheduler).__name__}, for which this "
            f"pipeline was made; expected one of {', '.join(sorted(fitting & set(registered_schedulers())))}"
        )
    return cls.from_config(scheduler.config)


def check_scheduler(pipe: Any, config: SteerConfig) -> None:
    """Refuse steps that cannot be steered, before anything runs.

    Raises:
        UserError: an unknown scheduler, or one that adds no noise.
    """
    scheduler, steering = pipe.scheduler, config.steering
    name = type(scheduler).__name__
    takes_eta = "eta" in inspect.signature(scheduler.step).parameters
    if config.call.eta is not None and not takes_eta:
        raise UserError(f"call.eta = {config.call.eta}: {name} takes no eta; leave it out")
    with named_errors("model.scheduler"):
        rule = rule_for(scheduler)
        moves_alone = not rule.stochastic(scheduler, _step_arguments(pipe, config, takes_eta))
        if steering.transition == "stochastic" or (steering.transition == "auto" and moves_alone):
            GaussianMove(rule, 1.0).refuse(scheduler)
            return
    alone = steering.particles * (steering.candidates or 1) == 1
    if steering.method == "best-of-n" or alone or not moves_alone:
        return
    more = "eta above 0 (--eta), " if takes_eta and "eta" in PipelineCalls.of(pipe).accepted else ""
    raise UserError(
        f"model.scheduler = {name!r}: it adds no noise in this setting, so copies of a particle would stay copies; "
        f"expected {more}steering.transition stochastic or auto (--transition stochastic), or a stochastic scheduler "
        "(--scheduler)"
    )


def _step_arguments(pipe: Any, config: SteerConfig, takes_eta: bool) -> dict[str, Any]:
    own = inspect.signature(type(pipe).__call__).parameters.get("eta")
    if not takes_eta or own is None:
        return {}
    return {"eta": own.default if config.call.eta is None else config.call.eta}


# --- its calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PipelineCalls:
    """How a pipeline wants to be called.

    Attributes:
        pipe: the pipeline.
        name: its class.
        accepted: arguments of its call.
        required: those without a default.
    """

    pipe: Any
    name: str
    accepted: frozenset[str]
    required: frozenset[str]

    @classmethod
    def of(cls, pipe: Any) -> PipelineCalls:
        """Read off its signature."""
        parameters = list(inspect.signature(type(pipe).__call__).parameters.values())[1:]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        needed = frozenset(p.name for p in named if p.default is p.empty)
        return cls(pipe, type(pipe).__name__, frozenset(p.name for p in named), needed)

    def arguments(self, config: SteerConfig, condition: Condition, rows: int) -> dict[str, Any]:
        """Keyword arguments for ``rows`` samples of a condition, the generator left out.

        Raises:
            UserError: the pipeline does not take one of them, or needs another.
        """
        call = config.call
        found = dict(call.arguments) | {
            "negative_prompt": call.negative_prompt,
            "num_inference_steps": call.steps,
            "guidance_scale": call.guidance_scale,
            "eta": call.eta,
        }
        if call.size is not None:
            found["height"], found["width"] = (int(part) for part in call.size.split("x"))
        found = {name: value for name, value in found.items() if value is not None}
        self._check_condition(condition)
        for name in sorted(found.keys() - self.accepted):
            raise UserError(f"call: {self.name} takes no {name}; it takes {', '.join(sorted(self.accepted))}")
        found |= self._samples(condition, found, rows)
        missing = sorted(self.required - found.keys())
        if missing:
            raise UserError(f"call.arguments: {self.name} needs {', '.join(missing)}, which is not given")
        if "generator" not in self.accepted:
            raise UserError(f"model.folder: {self.name} takes no generator, so that no seed decides its samples")
        return found | ({"output_type": "pil"} if "output_type" in self.accepted else {})

    def _check_condition(self, condition: Condition) -> None:
        for kind, argument in _CONDITIONS.items():
            if condition.kind == kind and argument not in self.accepted:
                raise UserError(f"call.{kind}s = {condition.value!r}: {self.name} takes no {kind}")
            if condition.kind == "none" and argument in self.accepted:
                raise UserError(f"call.{kind}s: {self.name} needs a {kind}; give it with --{kind}")

    def _samples(self, condition: Condition, found: dict[str, Any], rows: int) -> dict[str, Any]:
        """The condition, and how it is asked for ``rows`` times."""
        argument = _CONDITIONS.get(condition.kind)
        conditioned = {} if argument is None else {argument: condition.value}
        with named_errors("model.folder"):
            return batched_call(self.pipe, rows, 1, found | conditioned)

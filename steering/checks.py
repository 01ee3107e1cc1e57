"""What is refused, and what is said, before a run does any work: settings, controls, and the law to be steered."""

from collections.abc import Sequence
from typing import Any

from ..fkc.correctors import Target as Composed
from ..fkc.resampling import get_scheme
from .controls import Control, never_due
from .decode.families import blends_background
from .errors import DeterministicStep, SteeringError
from .moves import GaussianMove, Step
from .run import Run
from .schedulers import SchedulerRule
from .settings import Settings

__all__ = ["check_controls", "check_law", "check_settings", "refuse_strangers"]


def check_settings(settings: Settings) -> None:
    """Refuse numbers and names that mean nothing.

    Raises:
        ValueError: the field, its value and what was expected.
    """
    counts = {"particles": settings.particles, "populations": settings.populations, "chunk_size": settings.chunk_size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if not 0.0 <= settings.ess_threshold < 2.0:
        raise ValueError(
            f"ess_threshold: got {settings.ess_threshold}, expected a fraction of the particles: 0 never resamples, "
            "above 1 always does"
        )
    if settings.final not in ("weighted", "resampled", "best"):
        raise ValueError(f"final: got {settings.final!r}, expected 'weighted', 'resampled' or 'best'")
    if settings.transition not in ("native", "stochastic", "auto"):
        raise ValueError(f"transition: got {settings.transition!r}, expected 'native', 'stochastic' or 'auto'")
    if not 0.0 <= settings.eta <= 1.0:
        raise ValueError(f"kernel_eta: got {settings.eta}, expected a number between 0 and 1")
    if settings.transition == "native" and settings.eta != 1.0:
        raise ValueError(f'kernel_eta: got {settings.eta}, which only transition="stochastic" or "auto" uses')
    get_scheme(settings.resampler)


def check_controls(controls: Sequence[Control], settings: Settings, pipe: Any) -> None:
    """Refuse what is no control, and combinations that have no meaning.

    Raises:
        ValueError: something that is no control.
        SteeringError: see above.
    """
    refuse_strangers(controls)
    greedy = [control for control in controls if getattr(control, "greedy", False)]
    if greedy and len(controls) > 1:
        raise SteeringError("temperature 0 has no weights, so it cannot be composed with other controls")
    if settings.exact and (greedy or settings.final == "best"):
        raise SteeringError("exact=True refuses temperature 0 and final='best': their outputs are not weighted draws")
    candidates = max([control.candidates for control in controls] + [1])
    planned = any(getattr(control, "plans_moves", False) for control in controls)
    if planned and any(getattr(control, "weighs_guidance", False) for control in controls):
        raise SteeringError("guidance: Annealed and Product weigh both branches already; leave Guidance() out")
    if planned and blends_background(pipe):
        raise SteeringError(
            f"{type(pipe).__name__} blends a background into every row after each step, so that samples are not where "
            "the composition's moves brought them, and its weights would be wrong"
        )
    if candidates > 1 and blends_background(pipe):
        raise SteeringError(
            f"{type(pipe).__name__} blends a background into every row after each step, so that rows cannot be left "
            "out at the end; use one candidate"
        )


def refuse_strangers(controls: Sequence[Any]) -> None:
    """Raises ValueError for what is no control."""
    for control in controls:
        if isinstance(control, Composed):
            name = type(control).__name__
            raise ValueError(f"control: got the target feynkac.fkc.{name}, expected feynkac.steering.{name}")
        if isinstance(control, type):
            raise ValueError(f"control: got the class {control.__name__}, expected an object: {control.__name__}(...)")
        lacking = [name for name in ("begin", "weigh", "target") if not callable(getattr(control, name, None))]
        lacking += [name for name in ("name", "candidates") if not hasattr(control, name)]
        if lacking:
            raise ValueError(
                f"control: got {type(control).__name__}, expected FKSteering(...), SoftValueGuidance(...) or an object "
                f"with {', '.join(lacking)}"
            )


def check_law(
    step: Step,
    rule: SchedulerRule,
    move: GaussianMove | None,
    controls: Sequence[Control],
    settings: Settings,
    run: Run,
    *,
    rows: int,
    cached: bool,
) -> None:
    """Refuse what would not be exact, say what is not the plain law.

    Raises:
        SteeringError: under ``exact=True``, anything that changes the law; a shifted proposal whose density is not
            known.
        DeterministicStep: copies of a particle would stay copies.
    """
    if not controls:
        return
    for note, remedy in _changes(step, rule, move, cached):
        if settings.exact:
            raise SteeringError(f"{note}; exact=True refuses it{remedy}")
        run.note(note, aloud=True)
    _remark_on_generators(step, settings, run, rows)
    if move is None and any(getattr(control, "plans_moves", False) for control in controls):
        raise SteeringError('composition: its moves need transition="stochastic"')
    siblings = settings.particles * max(control.candidates for control in controls)
    copied = siblings > 1 and not all(never_due(control) for control in controls)
    noisy = rule.stochastic(step.scheduler, step.arguments) if move is None else move.eta > 0.0
    if copied and not noisy:
        raise DeterministicStep(f"{type(step.scheduler).__name__} {_without_noise(rule)}")
    if move is None and any(getattr(control, "gradient", None) is not None for control in controls):
        raise SteeringError('gradient: a shifted proposal needs transition="stochastic", whose density is known')


def _without_noise(rule: SchedulerRule) -> str:
    silent = "adds no noise in this setting, so copies of a particle would stay copies. Use "
    if rule.stages > 1 or not rule.posterior_mean:
        return (
            silent + "another scheduler, such as pipe.scheduler = EulerAncestralDiscreteScheduler.from_config("
            "pipe.scheduler.config): this one makes a move in several evaluations, which no other step can replace"
        )
    return (
        silent
        + 'transition="auto" or "stochastic" (a step that keeps the marginals, with kernel_eta > 0), a stochastic '
        "scheduler, or eta > 0"
    )


def _changes(step: Step, rule: SchedulerRule, move: GaussianMove | None, cached: bool) -> list[tuple[str, str]]:
    """What makes the law another than that of the model and the scheduler, each with its remedy."""
    name, found = type(step.scheduler).__name__, []
    if rule.clips(step.scheduler):
        found.append(
            (
                f"{name} clips its clean prediction: the law steered is that of the clipped sampler",
                ": set clip_sample and thresholding to False in its config",
            )
        )
    if rule.own_noise and move is None:
        found.append((f"{name} draws noise from inside: no seed reaches it, and a run cannot be repeated", ""))
    if move is None and getattr(step.scheduler, "config", {}).get("stochastic_sampling", False):
        found.append(
            (
                f"{name} with stochastic_sampling=True draws all noise anew at every step: the law steered is that "
                "sampler's own, not the model's; transition=\"stochastic\" keeps the marginals",
                "",
            )
        )
    if cached:
        found.append(
            ("a feature cache is on: its skips change the law, and some are decided by an average over all rows", "")
        )
    return found


def _remark_on_generators(step: Step, settings: Settings, run: Run, rows: int) -> None:
    generator = step.arguments.get("generator")
    several = rows > settings.particles and len(step.arguments["sample"]) > rows // 2
    if generator is not None and not isinstance(generator, list | tuple) and several and settings.populations != 1:
        run.note("one generator serves all rows: a prompt's noise depends on what is beside it; pass a list, one a row")

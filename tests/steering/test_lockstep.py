"""Single-sample calls that meet at the scheduler give the samples of the batched call, resampling included."""

import contextvars
import copy
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import diffusers as d

from feynkac.fkc import Streams
from feynkac.fkc.run_state import Checkpoint
from feynkac.fkc.testing import ZTest
from feynkac.steering import FKSteering, SoftValueGuidance, SteeringError, attach
from feynkac.steering.gradient import Gradient
from feynkac.steering.hook import listening, plain_class
from feynkac.steering.lockstep import run_lockstep
from feynkac.steering.lockstep.calls import arguments_of
from feynkac.steering.lockstep.rows import Joint
from feynkac.steering.lockstep.run import LockStep
from feynkac.steering.lockstep.threads import Strand
from feynkac.steering.testing import GaussianDenoiser, QuadraticReward, affine_law

from .lockstep_toys import Permuting, Toy
from .zoo import ROWS, Row, generators, media, row, setting

TOLERANCE = 2e-5
STEPS = 4
COMBINATIONS = [
    ("ddpm", None),
    ("sd", None),
    ("sd_eta1", None),
    ("sd", "unipc"),
    ("sd3", None),
    ("sd3", "unipc_flow"),
    ("flux", None),
    ("ltx", None),
    ("wan", None),
    ("wan", "unipc_flow"),
    ("cogvideox", None),
    ("cogvideox_dpm", None),
    ("animatediff", None),
    ("sd_img2img", None),
    ("dit", None),  # two rows a call: [cond, uncond] go through the scheduler
]
BY_NAME = {"ids": lambda value: value or "own"}


def reward(x: torch.Tensor) -> torch.Tensor:
    """A latent reward that tells all samples apart, of order one."""
    flat = x.detach().double().reshape(len(x), -1)
    return 3.0 * flat[:, ::3].mean(dim=1) / flat.std()


def pipeline(name: str, scheduler: str | None = None) -> tuple[Any, Row]:
    base = row(name)
    pipe = base.build()
    if scheduler is not None:
        pipe.scheduler = setting(scheduler).make()
    return pipe, base


def arguments(base: Row, rows: int, **more: Any) -> dict[str, Any]:
    """Of a call for ``rows`` samples, the generators left out."""
    kind = "np" if base.many_by == "batch_size" else "latent"
    call = base.call(rows, **({"steps": STEPS, "output_type": kind} | more))
    del call["generator"]
    return call


def latents(outputs: Any) -> torch.Tensor:
    """(rows, ...) of one batched output, or of the list of single ones."""
    if isinstance(outputs, list):
        return torch.cat([latents(output) for output in outputs])
    return torch.as_tensor(media(outputs))


def batched(pipe: Any, base: Row, rows: int, **more: Any) -> torch.Tensor:
    return latents(pipe(generator=generators(rows), **arguments(base, rows, **more)))


def stepped(pipe: Any, base: Row, rows: int, **more: Any) -> torch.Tensor:
    return latents(run_lockstep(pipe, rows=rows, generators=generators(rows), **arguments(base, 1, **more)))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")


def steer_both(pipe: Any, base: Row, control: Any, particles: int, runner: Any = stepped, **options: Any) -> Any:
    """Samples and runs, batched and in lock-step."""
    rows = particles * control.candidates
    native = base.stochastic and "transition" not in options
    options = {"ess_threshold": 1.1, "transition": "native" if native else "stochastic"} | options
    both = []
    for run_it in (batched, runner):
        with attach(pipe, control, particles=particles, seed=0, **options) as run:
            both.append((run_it(pipe, base, rows), run))
    return both


def resamplings(run: Any) -> list[Any]:
    return [None if a is None else a.tolist() for a in run.ancestors]


def moved(run: Any) -> bool:
    identity = list(range(run.log_weights.shape[1]))
    return any(a is not None and row != identity for a in resamplings(run) for row in a or [])


def assert_alike(both: Any) -> None:
    (x, one), (y, two) = both
    assert relative(y, x) < TOLERANCE
    assert resamplings(one) == resamplings(two)
    torch.testing.assert_close(two.log_weights, one.log_weights, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.log_evidence, one.log_evidence, atol=1e-4, rtol=1e-4)
    assert one.calls == two.calls


# --- against the batched call ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheduler"), COMBINATIONS, **BY_NAME)
def test_resampled_at_every_step_it_is_the_batched_run(name, scheduler):
    pipe, base = pipeline(name, scheduler)
    both = steer_both(pipe, base, FKSteering(reward, scale=9.0, on="latents"), 4)
    assert_alike(both)
    assert moved(both[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [*COMBINATIONS, ("sd", "kdpm2"), ("sd", "heun"), ("sd", "pndm_prk"), ("sd_img2img", "unipc"), ("lcm", None)],
    **BY_NAME,
)
def test_permuted_at_every_step_it_is_the_batched_run(name, scheduler):
    """With the solver's own step and history, which the stochastic transition does not use."""
    pipe, base = pipeline(name, scheduler)
    outputs = []
    for run_it in (batched, stepped):
        listener = Permuting()
        with listening(pipe.scheduler, listener):
            outputs.append(run_it(pipe, base, 3))
        assert listener.runs == 1
    assert relative(outputs[1], outputs[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unipc", "kdpm2", "pndm_prk"])
def test_the_history_is_in_the_real_scheduler(name):
    """Negative control: left where it was while the rows move, the samples are others."""
    pipe, base = pipeline("sd", name)
    with listening(pipe.scheduler, Permuting()):
        right = batched(pipe, base, 3)
    with listening(pipe.scheduler, Permuting(moves_history=False)):
        wrong = stepped(pipe, base, 3)
    assert relative(wrong, right) > 1e-3


class LosesResampling(LockStep):
    """Negative control: the members go on from their own rows, whatever was resampled."""

    def _step(self, meetings: Any) -> Any:
        bounds = [meeting.bound for meeting in meetings]
        real = meetings[0].seat.real
        alone = copy.copy(real)
        vars(alone).pop("_feynkac_attachment")
        alone.__class__ = plain_class(real)
        call = Joint.of(bounds[0].arguments["sample"], len(bounds), 1).arguments(bounds)
        before = [g.get_state() for g in call.arguments["generator"]]
        super()._step(meetings)
        for generator, state in zip(call.arguments["generator"], before, strict=True):
            generator.set_state(state)
        return Joint.of(bounds[0].arguments["sample"], len(bounds), 1).split(alone.step(*call.args[1:], **call.kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "sd_eta1"])
def test_a_runner_that_loses_the_resampled_rows_is_noticed(name):
    def forgetful(pipe: Any, base: Row, rows: int) -> torch.Tensor:
        call = arguments(base, 1)
        return latents(LosesResampling(pipe).run([call | {"generator": g} for g in generators(rows)]))

    pipe, base = pipeline(name)
    control = FKSteering(reward, scale=9.0, on="latents")
    (x, _), (y, _) = steer_both(pipe, base, control, 4, forgetful)
    assert relative(y, x) > 1e-2
    with pytest.raises(AssertionError):
        assert_alike(steer_both(pipe, base, control, 4, forgetful))


@pytest.mark.slow
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_unattached_it_is_one_call_after_the_other(case):
    pipe = case.build()
    call = arguments(case, 1)
    alone = latents([pipe(generator=g, **call) for g in generators(3)])
    assert relative(stepped(pipe, case, 3), alone) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "sd_eta1", "sd3"])
def test_of_several_candidates_one_goes_on(name):
    pipe, base = pipeline(name)
    control = SoftValueGuidance(reward, temperature=0.3, candidates=2, on="latents")
    both = steer_both(pipe, base, control, 3)
    assert_alike(both)
    assert len(both[1][0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("final", ["best", "resampled"])
@pytest.mark.parametrize("candidates", [1, 2])
def test_the_last_choice(final, candidates):
    pipe, base = pipeline("sd_eta1")
    control = (
        FKSteering(reward, scale=5.0, on="latents")
        if candidates == 1
        else SoftValueGuidance(reward, temperature=0.2, candidates=2, on="latents")
    )
    both = steer_both(pipe, base, control, 3, final=final)
    assert_alike(both)
    if final == "best":
        assert len({sample.sum().item() for sample in both[1][0]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("name", ["sd_eta1", "wan"])
def test_two_branches_of_guidance_are_not_two_particles(name, chunk_size):
    """A call for one sample runs two rows in the denoiser, as many as there are particles."""
    pipe, base = pipeline(name)
    control = FKSteering(reward, scale=9.0, on="latents")
    assert_alike(steer_both(pipe, base, control, 2, chunk_size=chunk_size))


def smooth(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), -1)[:, ::3].mean(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_proposals_follow_gradients(name):
    pipe, base = pipeline(name)
    control = FKSteering(smooth, scale=20.0, on="latents", gradient=Gradient())
    both = steer_both(pipe, base, control, 3)
    assert_alike(both)
    plain = steer_both(pipe, base, FKSteering(smooth, scale=20.0, on="latents"), 3)
    assert relative(both[1][0], plain[1][0]) > 1e-3  # they did something


@pytest.mark.slow
def test_several_prompts_keep_to_themselves():
    """Rows are P prompts x K particles: every row's call has its own prompt."""
    pipe, base = pipeline("sd_eta1")
    prompts = [base.arguments["prompt"], "a blue boat on the sea"]
    control = FKSteering(reward, scale=5.0, on="latents")
    call = arguments(base, 1)
    del call["prompt"]
    samples = []
    for many in (True, False):
        with attach(pipe, control, particles=3, populations=2, seed=0, ess_threshold=1.1) as run:
            if many:
                options = arguments(base, 3) | {
                    "prompt": prompts,
                    "negative_prompt": [base.arguments["negative_prompt"]] * 2,
                }
                samples.append(latents(pipe(generator=generators(6), **options)))
            else:
                calls = [{"prompt": prompt} for prompt in prompts for _ in range(3)]
                samples.append(latents(run_lockstep(pipe, rows=6, generators=generators(6), calls=calls, **call)))
        assert moved(run)
    assert relative(samples[1], samples[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_eta1", "ltx", "qwen"])  # the last two decode by the running call's sizes
def test_image_rewards_and_decoded_outputs(name):
    pipe, base = pipeline(name)

    def bright(images: Any) -> torch.Tensor:  # a list of images, or of lists of frames
        frames = [image if isinstance(image, list) else [image] for image in images]
        return torch.tensor([float(np.mean([np.asarray(f) for f in film])) for film in frames])

    both = steer_both(pipe, base, FKSteering(bright, scale=30.0), 3, chunk_size=1)
    assert_alike(both)
    assert moved(both[1][1])


# --- pipelines that cannot batch -------------------------------------------------------------------------------------


def ddim() -> Any:
    return d.DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading"
    )


def toy(scheduler: Any = None, **options: Any) -> Toy:
    pipe = Toy(GaussianDenoiser(mean=0.5, std=0.8), scheduler or ddim(), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=[False, True], ids=["no particle axis", "an axis made for the step"])
def steered_toy(request):
    """40 populations of 10 particles."""
    pipe = toy(leading=request.param)
    with attach(pipe, FKSteering(QuadraticReward(beta=1.0), scale=1.0, on="latents"), particles=10, seed=2) as run:
        outputs = run_lockstep(pipe, rows=400, seed=5)
    return torch.stack([output[0] for output in outputs]), run


@pytest.fixture(scope="module")
def chain():
    grid = ddim()
    grid.set_timesteps(20)
    return affine_law(grid, mean=0.5, std=0.8, eta=1.0)


@pytest.mark.slow
def test_a_pipeline_without_a_particle_axis_has_the_exact_law(steered_toy, chain):
    """Two independent pixels: twice the evidence of one."""
    samples, run = steered_toy
    truth = chain.tilted(QuadraticReward(beta=1.0), 1.0)
    assert samples.shape == (400, *Toy.shape)
    assert torch.equal(samples, run.samples())
    ratio = (run.log_evidence - 2 * truth.log_evidence).exp()
    assert ZTest.from_samples(ratio, 1.0).passed
    assert not ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed  # that of one pixel
    pixels = samples.double().reshape(40, 10, 2)
    means = (run.weights[:, :, None] * pixels).sum(dim=1)
    error = means.std(dim=0) / 40**0.5
    assert ((means.mean(dim=0) - truth.mean).abs() < 5 * error + 0.1).all()
    assert ((means.mean(dim=0) - chain.mean).abs() > 0.25).all()  # the untilted law is another


def test_a_pipeline_without_a_particle_axis_is_the_same_with_one():
    outputs = [
        torch.stack([o[0] for o in run_lockstep(toy(leading=leading), rows=3, seed=1)]) for leading in (False, True)
    ]
    assert torch.equal(outputs[0], outputs[1])
    (alone,) = run_lockstep(toy(), rows=1, seed=1)
    assert relative(alone[0], outputs[0][0]) < 1e-6


@pytest.mark.parametrize("attached", [False, True])
def test_a_second_stream_follows_the_first(attached):
    """The pipeline copies its scheduler inside the call; rows of both streams turn round together."""
    pipe = toy(d.DPMSolverMultistepScheduler(), sound=True)
    if not attached:
        alone = [pipe(generator=g) for g in generators(3)]
        for one, two in zip(alone, run_lockstep(pipe, rows=3, generators=generators(3)), strict=True):
            assert relative(two[0], one[0]) < 1e-6
            assert relative(two[1], one[1]) < 1e-6
        return
    plain = run_lockstep(pipe, rows=3, generators=generators(3))
    listener = Permuting()
    with listening(pipe.scheduler, listener):
        turned = run_lockstep(pipe, rows=3, generators=generators(3))
    assert (listener.runs, listener.steps) == (1, 40)
    for row_, output in enumerate(turned):  # 20 turns: member i ends with what member i - 20 would have had
        for stream in (0, 1):
            assert relative(output[stream], plain[(row_ - 20) % 3][stream]) < 1e-5


def test_a_counter_set_back_by_the_pipeline_reaches_the_real_scheduler():
    pipe = toy(d.EulerDiscreteScheduler(), peeks=True)
    alone = torch.stack([pipe(generator=g)[0] for g in generators(3)])
    together = torch.stack([o[0] for o in run_lockstep(pipe, rows=3, generators=generators(3))])
    assert relative(together, alone) < 1e-6
    assert pipe.scheduler.step_index == 20


# --- ends ------------------------------------------------------------------------------------------------------------


def strands() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lockstep")]


def attached_toy(pipe: Toy, control: Any = None) -> Any:
    control = control or FKSteering(QuadraticReward(beta=1.0), scale=1.0, on="latents")
    return attach(pipe, control, particles=4, seed=0)


def test_an_exception_in_one_call_ends_all():
    pipe = toy(fails_at=7)
    before = dict(vars(pipe))
    with pytest.raises(RuntimeError, match="out of order"), attached_toy(pipe):
        run_lockstep(pipe, rows=4, seed=0)
    assert not strands()
    assert vars(pipe) == before
    assert type(pipe.scheduler) is d.DDIMScheduler


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_is_attached_may_raise(error):
    class Failing(Permuting):
        def on_step(self, scheduler: Any, base_step: Any, bound: Any) -> Any:
            if self.steps == 3:
                raise error("no step today")
            return super().on_step(scheduler, base_step, bound)

    pipe = toy()
    with pytest.raises(error, match="no step today"), listening(pipe.scheduler, Failing()):
        run_lockstep(pipe, rows=4, seed=0)
    assert not strands()
    assert type(pipe.scheduler) is d.DDIMScheduler
    assert len(run_lockstep(pipe, rows=4, seed=0)) == 4


def test_a_reward_that_raises_ends_all():
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no reward today")

    pipe = toy()
    with (
        pytest.raises(RuntimeError, match="no reward today"),
        attached_toy(pipe, FKSteering(fails, scale=1.0, on="latents")),
    ):
        run_lockstep(pipe, rows=4, seed=0)
    assert not strands()
    assert type(pipe.scheduler) is d.DDIMScheduler


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads on this system")
def test_the_keyboard_ends_all():
    """The signal comes while the caller waits for a call that is running."""

    def interrupts(x: torch.Tensor) -> torch.Tensor:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return x.flatten(1).sum(dim=1)

    pipe = toy()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt), attached_toy(pipe, FKSteering(interrupts, scale=1.0, on="latents")):
            run_lockstep(pipe, rows=4, seed=0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not strands()
    assert type(pipe.scheduler) is d.DDIMScheduler


def test_two_runs_in_a_row_are_the_same_and_leave_no_trace():
    pipe = toy()
    before = dict(vars(pipe))
    kept = []
    for _ in range(2):
        with attached_toy(pipe) as run:
            outputs = run_lockstep(pipe, rows=8, seed=3)
        kept.append((torch.stack([o[0] for o in outputs]), run.log_weights))
    assert torch.equal(kept[0][0], kept[1][0])
    assert torch.equal(kept[0][1], kept[1][1])
    other = torch.stack([o[0] for o in run_lockstep(pipe, rows=8, seed=4)])
    assert not torch.equal(other, kept[0][0])
    assert len({x.item() for x in other[:, 0, 0, 0]}) == 8
    assert not strands()
    assert vars(pipe) == before
    assert not [name for name in vars(pipe.scheduler) if "feynkac" in name]


def test_rows_and_resampling_share_no_random_numbers():
    """The rows' generators differ from the streams that an attachment of the same seed uses."""
    streams = Streams.from_seed(3, 8)
    ours = [one["generator"].initial_seed() for one in arguments_of(toy(), 8, None, 3, None, {})]
    theirs = [g.initial_seed() for g in (*streams.noise, *streams.resampling)]
    assert len({seed % 2**32 for seed in (*ours, *theirs)}) == 24


def test_offloaded_models_are_released_once_at_the_end():
    pipe = toy()
    released: list[int] = []
    object.__setattr__(pipe, "maybe_free_model_hooks", lambda: released.append(len(strands())))
    run_lockstep(pipe, rows=3, seed=0)
    assert released == [0]


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_settings_hold_inside_a_strand(dtype):
    name = contextvars.ContextVar("name", default="unset")
    name.set("set")

    def found(strand: Strand) -> tuple[Any, ...]:
        return (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
            torch.get_default_device().type,
            name.get(),
        )

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype), torch.device("meta"):
        inside = Strand(found, "inside")
    plain = Strand(found, "plain")
    assert inside.resume().value == (False, dtype, "meta", "set")
    assert plain.resume().value == (True, False, "cpu", "set")
    with torch.inference_mode():
        strand = Strand(lambda _: torch.is_inference_mode_enabled(), "inference")
    assert strand.resume().value is True


def test_autocast_around_the_run_is_that_around_a_call():
    pipe, base = pipeline("sd_eta1")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone, together = (
            latents([pipe(generator=g, **arguments(base, 1)) for g in generators(2)]),
            stepped(pipe, base, 2),
        )
    assert relative(together, alone) < 1e-6
    assert relative(stepped(pipe, base, 2), alone) > 1e-4  # it did something


def test_a_strand_runs_only_in_its_turn():
    log = []

    def call(strand: Strand) -> str:
        for i in range(2):
            log.append(i)
            assert strand.pause(i) == f"go {i}"
        return "done"

    strand = Strand(call, "turns")
    assert strand.resume().at == 0
    assert log == [0]
    assert strand.resume("go 0").at == 1
    assert strand.resume("go 1").value == "done"
    strand.end()
    unstarted = Strand(call, "never")
    unstarted.end()
    assert log == [0, 1]


def test_an_ended_strand_unwinds_through_handlers():
    log = []

    def call(strand: Strand) -> None:
        try:
            strand.pause("here")
        except Exception:
            log.append("swallowed")
        finally:
            log.append("cleaned up")

    strand = Strand(call, "ended")
    strand.resume()
    strand.end()
    assert log == ["cleaned up"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 0, "seed": 0}, ValueError, "rows: got 0"),
        ({"rows": 2}, ValueError, "generators, seed"),
        ({"rows": 2, "seed": 0, "generators": generators(2)}, ValueError, "generators, seed"),
        ({"rows": 3, "generators": generators(2)}, ValueError, "got 2 for 3 rows"),
        ({"rows": 2, "generators": generators(1) * 2}, ValueError, "all different"),
        ({"rows": 2, "seed": 0, "calls": [{}]}, ValueError, "calls: got 1 for 2 rows"),
        ({"rows": 2, "seed": 0, "generator": torch.Generator()}, SteeringError, "one a row"),
        ({"rows": 2, "seed": 0, "num_images_per_prompt": 4}, SteeringError, "num_images_per_prompt: every call"),
        ({"rows": 2, "seed": 0, "batch_size": 2}, SteeringError, "batch_size: every call"),
        ({"rows": 2, "seed": 0, "prompt": ["a", "b"]}, SteeringError, "prompt: every call"),
        (
            {"rows": 2, "seed": 0, "calls": [{"num_inference_steps": 4}, {"num_inference_steps": 5}]},
            SteeringError,
            "num_inference_steps: the calls must agree",
        ),
    ],
)
def test_what_cannot_run_in_step_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        run_lockstep(toy(), **options)
    assert not strands()


def test_feature_caches_are_refused_by_name():
    pipe, base = pipeline("flux")
    pipe.transformer.enable_cache(d.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(SteeringError, match=r"transformer: its feature cache is on .*fbc"):
        stepped(pipe, base, 2)
    pipe.transformer.disable_cache()
    assert len(stepped(pipe, base, 2)) == 2


@pytest.mark.parametrize(
    ("gradient", "saved", "message"), [(True, False, "gradient: through='denoiser'"), (False, True, "checkpoint: ")]
)
def test_attachments_that_need_batched_calls_are_refused(gradient, saved, message, tmp_path):
    pipe, base = pipeline("sd")
    control = FKSteering(smooth, scale=1.0, on="latents", gradient=Gradient(through="denoiser") if gradient else None)
    options = {"checkpoint": Checkpoint(tmp_path, every=2)} if saved else {}
    with (
        pytest.raises(SteeringError, match=message),
        attach(pipe, control, particles=2, seed=0, transition="stochastic", **options),
    ):
        stepped(pipe, base, 2)
    assert not strands()


class Differing(Toy):
    """Pipelines that cannot meet: of other lengths, other shapes, or past their scheduler."""

    way = "length"

    def __call__(self, generator: torch.Generator, **options: Any) -> Any:
        first = generator.initial_seed() == 0
        if self.way == "shape":
            self.shape = (2, 1, 1) if first else (2, 2, 1)
        if self.way == "length" and first:
            self.scheduler.set_timesteps(20)
            return None
        if self.way == "elsewhere":
            self.scheduler = d.DDIMScheduler.from_config(self.scheduler.config)
        return super().__call__(generator)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("length", "they wait at step, the end"),
        ("shape", "different shapes"),
        ("elsewhere", "never stepped its scheduler"),
    ],
)
def test_calls_that_do_not_meet_are_refused(way, message):
    pipe = Differing(GaussianDenoiser(mean=0.5, std=0.8), ddim())
    pipe.way = way
    with pytest.raises(SteeringError, match=message):
        run_lockstep(pipe, rows=2, generators=generators(2))
    assert not strands()


def test_a_pipeline_without_generator_is_refused():
    class Global(Toy):
        def __call__(self) -> Any:
            return super().__call__(torch.Generator())

    with pytest.raises(SteeringError, match="takes no generator"):
        run_lockstep(Global(GaussianDenoiser(mean=0.5, std=0.8), ddim()), rows=2, seed=0)


@pytest.mark.parametrize(("rows", "members"), [(3, 4), (0, 4), (5, 4)])
def test_rows_that_cannot_be_dealt_out_are_refused(rows, members):
    with pytest.raises(SteeringError, match=f"returned {rows} rows, .*{members} members"):
        Joint(members, 1, False, 2).split((torch.zeros(rows, 2),))


def test_fewer_rows_go_to_the_members_of_the_same_population():
    """6 members are 2 populations x 3 candidates: members 0 and 3 go on; tiles lie side by side."""
    shares = Joint(6, 2, False, 2).split((torch.arange(4.0)[:, None], None))
    assert {member: share[0].flatten().tolist() for member, share in shares.items()} == {0: [0.0, 2.0], 3: [1.0, 3.0]}
    assert shares[0][1] is None

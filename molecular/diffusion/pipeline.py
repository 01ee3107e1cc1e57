"""A molecule as a diffusers pipeline: frames of one temperature, drawn under any scheduler."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .levels import PredictionType, vp_ratios
from .network import MoleculeDenoiser
from .topology import MoleculeTopology

try:
    from diffusers import DDPMScheduler, DiffusionPipeline
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError("feynkac.molecular.diffusion needs diffusers: pip install 'feynkac[diffusion]'") from error

__all__ = ["MoleculePipeline", "MoleculePipelineOutput", "molecule_scheduler"]

_POSITIONS = ("positions", "pt", "pil")  # the latter two are what generic code asks for; a molecule has one form
_TABLE_TOLERANCE = 0.02


@dataclass
class MoleculePipelineOutput(BaseOutput):  # type: ignore[misc]
    """What a call returns.

    Attributes:
        positions: (B, N, 3) nm; in the model's unit of length for ``output_type="latent"``.
        topology: of the molecule.
    """

    positions: Tensor
    topology: MoleculeTopology


def molecule_scheduler(denoiser: MoleculeDenoiser) -> DDPMScheduler:
    """The ancestral scheduler of the denoiser's own table; others are made from it by ``from_config``."""
    return DDPMScheduler(
        num_train_timesteps=denoiser.config.num_train_timesteps,
        trained_betas=denoiser.betas,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


class MoleculePipeline(DiffusionPipeline):  # type: ignore[misc]
    """Frames of one molecule from a :class:`MoleculeDenoiser`.

    The state of the loop (the latents) is the positions over ``unit``, (B, N, 3), without centre of mass at the end.

    Args:
        transformer: the denoiser.
        scheduler: of diffusers' DDPM, DDIM, Euler, ancestral Euler or DPM-Solver family with the denoiser's table, or a
            flow-matching Euler scheduler.

    Example:
        >>> pipe = MoleculePipeline.from_pretrained("data/alanine_dipeptide_diffusion")  # doctest: +SKIP
        >>> positions = pipe(64, generator=torch.Generator().manual_seed(0)).positions  # doctest: +SKIP
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: MoleculeDenoiser, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @property
    def topology(self) -> MoleculeTopology:
        """Of the molecule."""
        topology: MoleculeTopology = self.transformer.topology
        return topology

    @property
    def unit(self) -> float:
        """Length unit of the latents in nm."""
        return float(self.transformer.config.length_unit)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 100,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        positions: Tensor | None = None,
        strength: float = 1.0,
        output_type: str = "positions",
        return_dict: bool = True,
    ) -> MoleculePipelineOutput | tuple[Tensor]:
        """Draw ``batch_size`` frames.

        Args:
            batch_size: B.
            num_inference_steps: evaluations of the denoiser a frame; stiff bonds need about 100.
            generator: one, or one a frame.
            eta: noise of the DDIM step, 0 (none) to 1 (as in DDPM); ignored by schedulers that do not take it.
            latents: (B, N, 3) standard normal start, instead of a draw.
            positions: (B, N, 3) nm: frames to explore around: noise is added to them and taken away again; ``latents``
                is then that noise.
            strength: share of the steps that is made, the last ones, above 0 and at most 1; below 1 needs positions.
            output_type: ``"positions"``: nm; ``"latent"``: the model's unit.
            return_dict: False returns a tuple with the positions only.

        Raises:
            ValueError: a number, a shape or a scheduler that does not fit the model.
        """
        self._check(batch_size, generator, output_type)
        if not 0.0 < strength <= 1.0 or (strength < 1.0 and positions is None):
            raise ValueError(f"strength: got {strength}, expected above 0 and at most 1; below 1 only with positions")
        form = self._prediction_type()
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self._last_timesteps(strength)
        state = self._start(batch_size, generator, latents, positions, form, timesteps[:1])
        extra = self._step_arguments(generator, eta)
        for t in self.progress_bar(timesteps):
            scaled = self.scheduler.scale_model_input(state, t) if form != "flow" else state
            prediction = self.transformer(scaled, t, prediction_type=form).sample
            state = self.scheduler.step(prediction, t, state, **extra).prev_sample
        result = state if output_type == "latent" else state * self.unit
        self.maybe_free_model_hooks()
        return MoleculePipelineOutput(result, self.topology) if return_dict else (result,)

    def save_pretrained(self, save_directory: str | Path, *, half: bool = False, **options: Any) -> None:
        """As of diffusers; ``half`` stores the weights (not the statistics) in half precision.

        A loaded pipeline has single precision either way.
        """
        if not half:
            super().save_pretrained(save_directory, **options)
            return
        parameters = dict(self.transformer.named_parameters())
        full = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for parameter in parameters.values():
                parameter.data = parameter.data.half()
            super().save_pretrained(save_directory, **options)
        finally:
            for name, parameter in parameters.items():
                parameter.data = full[name]

    def _last_timesteps(self, strength: float) -> Tensor:
        timesteps: Tensor = self.scheduler.timesteps
        left_out = len(timesteps) - max(1, round(strength * len(timesteps)))
        if left_out and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(left_out)
        return timesteps[left_out:]

    def _start(
        self,
        rows: int,
        generator: Any,
        latents: Tensor | None,
        positions: Tensor | None,
        form: PredictionType,
        first: Tensor,
    ) -> Tensor:
        shape = (rows, self.transformer.n_atoms, 3)
        for name, given in (("latents", latents), ("positions", positions)):
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name}: got shape {tuple(given.shape)}, expected {shape}")
        device, dtype = self._execution_device, self.transformer.dtype
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype) if latents is None else latents
        noise = noise.to(device, dtype)
        if positions is None:
            start: Tensor = noise * (1.0 if form == "flow" else self.scheduler.init_noise_sigma)
            return start
        clean = positions.to(device, dtype) / self.unit
        clean = clean - clean.mean(1, keepdim=True)
        if hasattr(self.scheduler, "add_noise"):
            noised: Tensor = self.scheduler.add_noise(clean, noise, first.expand(rows))
        else:
            noised = self.scheduler.scale_noise(clean, first.expand(rows), noise)
        return noised

    def _prediction_type(self) -> PredictionType:
        """What the scheduler takes, once it is known that its table is the denoiser's."""
        config = self.scheduler.config
        kept = getattr(self.scheduler, "alphas_cumprod", None)
        if kept is None:
            if "FlowMatch" not in type(self.scheduler).__name__:
                raise ValueError(
                    f"scheduler: {type(self.scheduler).__name__} has neither a table of betas nor straight lines"
                )
            if config.num_train_timesteps != self.transformer.config.num_train_timesteps:
                raise ValueError(f"scheduler: num_train_timesteps is {config.num_train_timesteps}, not the denoiser's")
            return "flow"
        mine = vp_ratios(self.transformer.betas)
        theirs = ((1.0 - kept.double()) / kept.double()).sqrt().cpu()
        if len(mine) != len(theirs) or bool(((theirs / mine).log().abs() > _TABLE_TOLERANCE).any()):
            raise ValueError(
                "scheduler: its table of betas is not the denoiser's: make it by from_config(pipe.scheduler.config), "
                "or from molecule_scheduler(pipe.transformer).config"
            )
        for clip in ("clip_sample", "thresholding"):
            if config.get(clip):
                raise ValueError(f"scheduler: {clip} is on, which cuts molecules; set it to False")
        kind = config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"scheduler: prediction_type is {kind!r}, expected epsilon, v_prediction or sample")
        form: PredictionType = kind
        return form

    def _step_arguments(self, generator: Any, eta: float) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {key: value for key, value in (("generator", generator), ("eta", eta)) if key in accepted}

    def _check(self, rows: int, generator: Any, output_type: str) -> None:
        if rows < 1:
            raise ValueError(f"batch_size: got {rows}, expected at least 1")
        if isinstance(generator, list) and len(generator) != rows:
            raise ValueError(f"generator: got a list of {len(generator)}, expected one a frame, {rows}")
        if output_type not in (*_POSITIONS, "latent"):
            raise ValueError(f"output_type: got {output_type!r}, expected 'positions' or 'latent'")

"""From the config of an annealed molecule to its model, energy and controls, and their draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...fkc.genealogy import distinct_roots
from ...fkc.streams import generator_for
from ...molecular.anneal import BondEnergy, noise_ratios
from ...molecular.cvs import CollectiveVariable
from ...molecular.energies import BatchedForceField
from ...molecular.pipeline import AnalysisRequest
from ...molecular.systems import MolecularSystem
from ...molecular.units import kT
from ...steering import Annealed, MeanFree, Run, attach, effective_std
from ..build import build_request, build_system, build_variables, try_variables
from ..errors import named_errors
from ..paths import resolve
from ..reference import read_reference
from ..steer.build import one_thread_for_tiny_models
from .config import MoleculeConfig

__all__ = ["Molecule", "input_files"]

_MODEL, _LATENTS = 2**30 + 2, 2**30 + 3
"""Streams that no population has: of the model's own draws, and from here on of the noise each population begins at."""

_CALIBRATED_ON = 1000
"""Of the model's draws at most: the squared errors are means over 3 N - 3 coordinates of each."""


def input_files(config: MoleculeConfig) -> dict[str, Path]:
    """Files whose contents a resumed run must find unchanged."""
    files = {"pipeline": resolve(config.pipeline, Path()), "system.pdb": resolve(config.system.pdb, Path())}
    if config.reference is not None:
        files["reference"] = resolve(config.reference, Path())
    return files | {name: Path(name) for name in config.system.force_field if Path(name).is_file()}


@dataclass(frozen=True, eq=False)
class Molecule:
    """What a config stands for, built and checked.

    Attributes:
        config: settled.
        system: the molecule.
        pipe: a ``MoleculePipeline``.
        energy: of the force field.
        bonds: energy of the bonds alone.
        variables: collective variables.
        request: what to compute.
        reference: see :func:`~feynkac.cli.reference.read_reference`.
    """

    config: MoleculeConfig
    system: MolecularSystem
    pipe: Any
    energy: BatchedForceField
    bonds: BondEnergy
    variables: list[CollectiveVariable]
    request: AnalysisRequest
    reference: dict[str, Any]

    @classmethod
    def build(cls, config: MoleculeConfig) -> Molecule:
        """Load the model and check that it is of this molecule.

        Raises:
            UserError: something cannot be used; the message names it.
        """
        reference = read_reference(config.reference, config.system.temperature)
        system = build_system(config.system)
        variables = build_variables(config.analysis, system.topology)
        try_variables(variables, system.positions.double(), where="analysis.variables")
        request = build_request(config.analysis, variables, config.sampling.seed)
        energy = BatchedForceField.from_openmm(
            system.system, topology=system.topology, temperature=config.system.temperature, dtype=torch.float64
        )
        pipe = _load(config, system)
        return cls(config, system, pipe, energy, BondEnergy(system.system), variables, request, reference)

    # --- draws -------------------------------------------------------------------------------------------------------

    def draw_model(self) -> dict[str, Tensor]:
        """``positions`` (n, N, 3) nm of the model at its own temperature."""
        settings, chunk = self.config.model, self.config.sampling.chunk_size or self.config.model.draws
        generator = generator_for(self.config.sampling.seed, _MODEL)
        counts = [min(chunk, settings.draws - start) for start in range(0, settings.draws, chunk)]
        parts = [
            self.pipe(count, num_inference_steps=settings.steps, generator=generator).positions for count in counts
        ]
        return {"positions": torch.cat(parts)}

    def spread(self, positions: Tensor) -> Callable[[float], float]:
        """Effective deviation of the model's data at each noise, from its own draws (n, N, 3) nm."""
        clean = positions[:_CALIBRATED_ON] / self.pipe.unit
        clean = clean - clean.mean(1, keepdim=True)
        from ...molecular.diffusion.levels import vp_ratios  # needs diffusers

        denoiser = self.pipe.transformer
        levels = vp_ratios(denoiser.betas)

        def denoised(y: Tensor, ratio: float) -> Tensor:
            found: Tensor = denoiser.denoised(y, torch.full((len(y),), ratio, dtype=y.dtype))
            return found

        ratios = noise_ratios(float(levels[0]), float(levels[-1]))
        return effective_std(denoised, clean, ratios, space=self.space, seed=self.config.sampling.seed)

    @property
    def space(self) -> MeanFree:
        """The model knows nothing of the centre of mass."""
        return MeanFree(self.system.n_atoms)

    def draw_cold(
        self, population: int, spread: Callable[[float], float], began: Callable[[Run], None], *, weighted: bool
    ) -> dict[str, Tensor]:
        """One population at the temperature of the system.

        Args:
            population: its number.
            spread: see :meth:`spread`.
            began: told the run that is filled from now on.
            weighted: False never resamples, so that the draws are those of the moves alone.

        Returns:
            ``positions`` (K, N, 3) nm; ``log_weights`` (K,) without the last correction and ``log_weights_energy``
            (K,) with it, the evidence included in both; ``roots`` (K,); ``ess``, ``distinct_roots``, ``log_evidence``
            and ``resampled`` (moves,) on the way.

        Raises:
            PopulationCollapsed: no sample has a weight.
        """
        s = self.config.sampling
        thermal = kT(self.config.system.temperature)
        control = Annealed(
            self.config.exponent,
            std=spread,
            space=self.space,
            control="score",
            log_density=lambda z: -self.energy(z.double() * self.pipe.unit) / thermal,
        )
        noise = torch.randn(
            (s.particles, self.system.n_atoms, 3), generator=generator_for(s.seed, _LATENTS + population)
        )
        with attach(
            self.pipe,
            control,
            particles=s.particles,
            populations=1,
            ess_threshold=s.ess_threshold if weighted else 0.0,
            resampler=s.resampler,
            seed=s.seed,
            chunk_size=s.chunk_size,
            transition="stochastic",
            first_population=population,
        ) as run:
            began(run)
            self.pipe(s.particles, num_inference_steps=s.steps, latents=noise, output_type="latent")
        return {"positions": run.samples() * self.pipe.unit, **_kept(run)}


def _kept(run: Run) -> dict[str, Tensor]:
    final, last = run.population, run.records[-1]
    assert final is not None
    carried = last.population.log_base[0] + last.population.log_weights[0]
    if last.ancestors is not None:  # resampled at the last move: equal weights, and the evidence so far
        carried = last.log_evidence[0].expand_as(carried)
    return {
        "log_weights": carried.clone(),
        "log_weights_energy": final.log_base[0] + final.log_weights[0],
        "roots": final.roots[0],
        "ess": run.ess_trace[:, 0],
        "distinct_roots": torch.stack([distinct_roots(record.population)[0] for record in run.records]),
        "log_evidence": run.log_evidence_trace[:, 0],
        "resampled": torch.tensor([record.ancestors is not None for record in run.records]),
    }


def _load(config: MoleculeConfig, system: MolecularSystem) -> Any:
    folder = resolve(config.pipeline, Path())
    with named_errors(f"pipeline = {config.pipeline!r}"):
        if not (folder / "model_index.json").is_file():
            raise ValueError("not the folder of a pipeline, it has no model_index.json")
        _check_card(config, folder / "card.json")
        from ...molecular.diffusion import MoleculePipeline  # needs diffusers

        pipe = MoleculePipeline.from_pretrained(str(folder), local_files_only=True)
        pipe.topology.check(system.topology)
    one_thread_for_tiny_models(pipe)
    return pipe


def _check_card(config: MoleculeConfig, card: Path) -> None:
    """Refuse a temperature other than the one on the model's card, if it has one."""
    stated = json.loads(card.read_text(encoding="utf-8")).get("temperature_K") if card.is_file() else None
    if stated is not None and stated != config.model_temperature:
        raise ValueError(f"its card says {stated:g} K, not model_temperature = {config.model_temperature:g} K")

"""The command `feynkac`: its options, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .errors import explained

__all__ = ["app", "main"]

app = typer.Typer(
    name="feynkac",
    help="Samples with correct weights, free energies with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the job, or data:configs/NAME.yaml.")
]
ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="CONFIG", help="YAML file of the job, or data:configs/NAME.yaml."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder to make; default: runs/NAME-001 and so on."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value, e.g. sampling.seed=2; repeatable."),
]


def _console() -> Console:
    return Console()


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show log messages of the libraries.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)


@app.command()
@explained
def run(config: Config, output: Output = None, overrides: Overrides = None) -> None:
    """Run a job: free energies from draws or from biased walkers, a model at another temperature, laws annealed and
    multiplied, a pipeline repelled from its own samples."""
    from .commands.run import run as command

    command(_console(), config, output, overrides or [])


class _ConfigOrKind(TyperGroup):
    """`train CONFIG` beside `train KIND --config CONFIG`: what names no kind is left to the config's ``job:``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the hidden command ``config`` first where no kind is named."""
        if args and args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = ["config", *args]
        return super().parse_args(ctx, args)


training = typer.Typer(
    cls=_ConfigOrKind,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train what CONFIG describes by its job: a proposal (train) or a diffusion pipeline (train_diffusion) of a "
    "molecule, or a value network for steering (train_value).",
    subcommand_metavar="CONFIG | KIND --config CONFIG",
)
app.add_typer(training, name="train")


@training.command("config", hidden=True)
@explained
def train(config: Config, output: Output = None, overrides: Overrides = None) -> None:
    """Train what the config's job says."""
    from .commands.train import train as command

    command(_console(), config, output, overrides or [])


@training.command("flow")
@explained
def train_flow(config: ConfigOption, output: Output = None, overrides: Overrides = None) -> None:
    """Train a proposal: run dynamics, fit a flow to the frames, write a checkpoint."""
    from .commands.train import train_flow as command

    command(_console(), config, output, overrides or [])


@training.command("value")
@explained
def train_value(config: ConfigOption, output: Output = None, overrides: Overrides = None) -> None:
    """Train a value network: roll a pipeline out, regress the soft value of a reward on its states."""
    from .commands.train import train_value as command

    command(_console(), config, output, overrides or [])


@app.command()
@explained
def steer(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file; options override it, or stand in its place.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Folder that save_pretrained wrote.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text; repeatable, each its own population.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Class, or none, instead of a prompt; repeatable.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="Reward by name or as package.module:attribute; repeatable. See also: feynkac plugins.",
        ),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(help="Lambda of each reward, in their order (default: 1).")
    ] = None,
    method: Annotated[str | None, typer.Option(help="fk (default), soft-value or best-of-n.")] = None,
    particles: Annotated[int | None, typer.Option(help="Samples of a population, K (default: 8).")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Children of a particle's step, for soft-value (default: 4).")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Of soft-value: target exp(scale reward / temperature) (default: 1); 0: the best child."),
    ] = None,
    potential: Annotated[str | None, typer.Option(help="Of fk: difference (default), max or sum.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps (default: the pipeline's).")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="The pipeline's.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of DDIM's step, 0 to 1.")] = None,
    transition: Annotated[
        str | None, typer.Option(help="native (default); stochastic for schedulers that add no noise; auto.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="CLASS", help="Scheduler in the place of its own.")] = None,
    resampler: Annotated[str | None, typer.Option(help="multinomial, stratified, systematic, residual or ssp.")] = None,
    ess_threshold: Annotated[
        float | None, typer.Option(help="Resample below this fraction of K (default: 0.5).")
    ] = None,
    final: Annotated[str | None, typer.Option(help="weighted (default), resampled or best.")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed (default: 0).")] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Independent populations of each prompt (default: 1).")
    ] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Samples in memory at a time.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:NUMBER or mps.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Height and width in pixels.")] = None,
    output: Output = None,
    overrides: Overrides = None,
) -> None:
    """Steer a diffusers pipeline to rewards: weighted samples, log-evidence, a folder with report and data."""
    from .commands.steer import steer as command
    from .paths import config_path
    from .steer.options import steer_config

    single = {
        "--model": model,
        "--scheduler": scheduler,
        "--dtype": dtype,
        "--device": device,
        "--negative-prompt": negative_prompt,
        "--steps": steps,
        "--guidance-scale": guidance_scale,
        "--eta": eta,
        "--size": size,
        "--method": method,
        "--particles": particles,
        "--candidates": candidates,
        "--temperature": temperature,
        "--potential": potential,
        "--transition": transition,
        "--resampler": resampler,
        "--ess-threshold": ess_threshold,
        "--final": final,
        "--chunk-size": chunk_size,
        "--seed": seed,
        "--seeds": seeds,
    }
    described = steer_config(
        None if config is None else config_path(config),
        overrides or [],
        single=single,
        prompts=prompt or [],
        labels=label or [],
        rewards=reward or [],
        scales=scale or [],
    )
    command(_console(), described, output)


@app.command()
@explained
def resume(run_dir: RunDir) -> None:
    """Go on with a run that was stopped or killed."""
    from .commands.resume import resume as command

    command(_console(), run_dir)


@app.command()
@explained
def report(run_dir: RunDir) -> None:
    """Draw pictures and report of a finished run again."""
    from .commands.report import report as command

    command(_console(), run_dir)


@app.command()
@explained
def fes(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="HILLS, COLVAR (several: walkers), KERNELS or STATE of OPES, fes.dat or GRID, a folder of OpenMM's "
            "bias_*.npy, or the folder of a run; recognised by content.",
        ),
    ],
    kt: Annotated[float | None, typer.Option("--kt", help="Thermal energy in kJ/mol: 2.494 at 300 K.")] = None,
    temperature: Annotated[float | None, typer.Option(help="In K, instead of --kt.")] = None,
    bins: Annotated[
        str | None, typer.Option("--bin", metavar="N,...", help="Bins of each variable; an open grid has a point more.")
    ] = None,
    lower: Annotated[
        str | None, typer.Option("--min", metavar="X,...", help="Lower ends of the grid: numbers, -pi, 90deg.")
    ] = None,
    upper: Annotated[str | None, typer.Option("--max", metavar="X,...", help="Upper ends of the grid.")] = None,
    spacing: Annotated[str | None, typer.Option(metavar="X,...", help="Spacing of the grid, instead of --bin.")] = None,
    mintozero: Annotated[bool, typer.Option("--mintozero", help="Shift the lowest value to zero.")] = False,
    negbias: Annotated[bool, typer.Option("--negbias", help="Minus the bias instead of the free energy.")] = False,
    idw: Annotated[
        list[str] | None, typer.Option(metavar="VAR,...", help="Variables to keep; the others are integrated out.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="N", help="A file each N hills: fes_0.dat and so on, and their drift.")
    ] = None,
    nohistory: Annotated[
        bool, typer.Option("--nohistory", help="With --stride: each file from its own hills.")
    ] = False,
    cv: Annotated[list[str] | None, typer.Option(metavar="VAR", help="Variables of a COLVAR; one or two.")] = None,
    bias: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Bias columns; default: all that end in .bias; none for no bias."),
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of weights instead of a bias.")] = None,
    rct: Annotated[bool, typer.Option("--rct", help="Weights of a growing bias: V - c(t), from .rbias.")] = False,
    skip: Annotated[
        str | None, typer.Option(metavar="X", help="Leave out the start: 0.2, 20% or 500ps of each walker.")
    ] = None,
    walkers: Annotated[int | None, typer.Option(metavar="N", help="Rows are frames of N walkers in turn.")] = None,
    blocks: Annotated[
        int | None, typer.Option(metavar="N", help="Blocks of time for errors; default: by autocorrelation.")
    ] = None,
    kde: Annotated[
        str | None, typer.Option(metavar="H,...", help="Kernel estimate of these widths instead of a histogram.")
    ] = None,
    deltaf: Annotated[
        str | None,
        typer.Option(metavar="REGION", help="Free energy of a region, LOW..HIGH or VAR:LOW:HIGH, several with commas."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REGION", help="Region to compare with; default: the rest.")
    ] = None,
    bias_factor: Annotated[float | None, typer.Option(help="Of a GRID or of OpenMM's files.")] = None,
    periodic: Annotated[bool, typer.Option("--periodic", help="OpenMM's variables are periodic.")] = False,
    units: Annotated[str, typer.Option(help="To show: kJ/mol, kcal/mol or kT; files are in kJ/mol.")] = "kJ/mol",
    outfile: Annotated[
        str | None, typer.Option("--outfile", "-o", metavar="FILE", help="Table to write (default: fes.dat).")
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw pictures beside the table.")] = True,
) -> None:
    """Free energies from HILLS, COLVAR and their like: sums of hills, reweighting with errors, differences."""
    from .commands.fes import fes as command
    from .fes.options import parse_options

    options = parse_options(
        kt=kt,
        temperature=temperature,
        bin=bins,
        min=lower,
        max=upper,
        spacing=spacing,
        mintozero=mintozero,
        negbias=negbias,
        idw=idw or [],
        stride=stride,
        nohistory=nohistory,
        cv=cv or [],
        bias=bias or [],
        weights=weights,
        rct=rct,
        skip=skip,
        walkers=walkers,
        blocks=blocks,
        kde=kde,
        deltaf=deltaf,
        against=against,
        bias_factor=bias_factor,
        periodic=periodic,
        units=units,
        outfile=outfile,
        plots=plots,
    )
    command(_console(), inputs, options)


@app.command()
@explained
def doctor(
    measure: Annotated[bool, typer.Option(help="Time the energies too (some seconds).")] = True,
) -> None:
    """Show what is installed, which devices there are, and how fast energies are here."""
    from .commands.doctor import doctor as command

    command(_console(), measure=measure)


@app.command()
@explained
def plugins() -> None:
    """List the installed plugins."""
    from .commands.plugins import plugins as command

    command(_console())


def main() -> None:
    """Entry point of the console script."""
    app()

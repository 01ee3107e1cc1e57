"""Corrected configs: the shipped ones are valid, every mistake is named, what cannot be sampled is refused early."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("diffusers")

import itertools

from feynkac.cli.commands.run import run
from feynkac.cli.corrected.build import build_model, build_target, level_sigmas, settle, uses_rates
from feynkac.cli.corrected.config import CorrectedConfig
from feynkac.cli.corrected.experts import build_experts, mixture_law
from feynkac.cli.corrected.exponent import Exponent
from feynkac.cli.corrected.job import CorrectedJob
from feynkac.cli.corrected.truth import final_powers, truth_of
from feynkac.cli.errors import UserError
from feynkac.cli.paths import resolve
from feynkac.cli.validation import load_config
from feynkac.fkc import Annealed, Expert, sample_corrected
from feynkac.fkc.testing.experts import gaussian_product
from feynkac.steering.pixel_pipeline import load_pipeline

GOOD = """\
job: corrected
name: test
experts:
  left: {mixture: {means: [[-0.5, 0.0], [0.4, 0.3]], std: 0.2}}
  right: {mixture: {means: [[0.1, 0.2]], std: 0.3, weights: [2.0]}}
targets:
  cold: {form: annealed, experts: [left], exponent: 2}
  both: {form: product, experts: [left, right]}
  led: {form: guidance, experts: [left, right], weight: 1.5}
  rising: {form: powers, experts: [left, right], exponents: [0 .. 2, 1]}
sampling: {particles: 20, steps: 5, seed: 1}
compare: false
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        CorrectedJob.build(load_config(path, CorrectedConfig, overrides), {})
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["corrected_gmm", "corrected_digits"])
def test_the_shipped_configs_are_valid(name):
    config = load_config(resolve(f"data:configs/{name}.yaml", Path()), CorrectedConfig)
    assert config.compare


def test_a_config_becomes_targets(config_file):
    config = load_config(config_file, CorrectedConfig)
    experts, moments = build_experts(config, {})
    assert moments == {}
    config = settle(config, experts)
    powers = {name: build_target(section, experts).powers(0.25) for name, section in config.targets.items()}
    assert powers == {"cold": (2.0,), "both": (1.0, 1.0), "led": (-0.5, 1.5), "rising": (0.5, 1.0)}
    assert {name: section.noise for name, section in config.targets.items()} == {
        "cold": 2.0, "both": 2.0, "led": 1.0, "rising": 2.0,
    }  # fmt: skip
    assert final_powers(config.targets["rising"]) == {"left": 2.0, "right": 1.0}
    sigmas = level_sigmas(build_model(config, "cold", "weighted", experts))
    assert (sigmas[0], sigmas[-1], len(sigmas)) == pytest.approx((10.0, 0.01, 6))
    assert [a / b for a, b in itertools.pairwise(sigmas)] == pytest.approx([1000.0**0.2] * 5)


def test_levels_can_be_bent_and_churned(config_file):
    overrides = ["levels.rho=7", "levels.sigma_max=4", "levels.sigma_min=0.1", "sampling.churn=0.5"]
    config = load_config(config_file, CorrectedConfig, overrides)
    experts, _ = build_experts(config, {})
    sigmas = level_sigmas(build_model(settle(config, experts), "cold", "weighted", experts))
    assert (sigmas[0], sigmas[-1], len(sigmas)) == pytest.approx((4.0, 0.1, 10))
    assert sum(b > a for a, b in itertools.pairwise(sigmas)) == 4
    falling = sigmas[::2] if sigmas[1] > sigmas[0] else [sigmas[0], *sigmas[1::2]]
    roots = [sigma ** (1 / 7) for sigma in falling]
    assert [a - b for a, b in itertools.pairwise(roots)] == pytest.approx([(roots[0] - roots[-1]) / 5] * 5)


def test_a_settled_config_reads_back_the_same(config_file, tmp_path):
    config = load_config(config_file, CorrectedConfig)
    config = settle(config, build_experts(config, {})[0])
    data = config.model_dump(mode="json", exclude_none=True) | {"provenance": {"versions": {}}}
    assert data["targets"]["rising"]["exponents"] == ["0.0 .. 2.0", 1.0]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    assert load_config(tmp_path / "again.yaml", CorrectedConfig) == config


def test_an_exponent_moves_in_a_straight_line():
    line = Exponent(0.5, 2.0)
    assert [line(u) for u in (0.0, 0.5, 1.0)] == [0.5, 1.25, 2.0]
    assert (str(line), str(Exponent(3.0, 3.0))) == ("0.5 .. 2", "3")


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("exponent: 2", "exponnt: 2", 7, ["targets.cold.exponnt", "unknown key", "'exponent'"]),
        ("exponent: 2", "exponent: two", 7, ["targets.cold.exponent = 'two'", "1 .. 2"]),
        ("exponent: 2", "exponent: 1 .. .inf", 7, ["targets.cold.exponent", "expected a number"]),
        (", exponent: 2", "", 7, ["targets.cold", "form annealed needs exponent"]),
        ("weight: 1.5", "exponent: 1.5", 9, ["form guidance takes no exponent"]),
        ("weight: 1.5", "weight: 1.5, noise: -1", 9, ["targets.led.noise = -1", "greater than or equal to 0"]),
        ("[left], exponent", "[left, right], exponent", 7, ["form annealed takes 1 experts, got 2"]),
        ("[left, right], weight", "[left], weight", 9, ["form guidance takes 2 experts, got 1"]),
        ("[0 .. 2, 1]", "[0 .. 2]", 10, ["exponents: got 1 for 2 experts"]),
        ("form: product", "form: prodct", 8, ["targets.both.form = 'prodct'", "did you mean 'product'"]),
        ("[left, right], w", "[left, rihgt], w", 6, ["led.experts: 'rihgt' is none", "left, right", "mean 'right'"]),
        ("std: 0.2}", "std: -0.2}", 4, ["experts.left.mixture.std = -0.2", "greater than 0"]),
        ("std: 0.2}", "stdd: 0.2}", 4, ["experts.left.mixture.stdd: unknown key", "did you mean 'std'"]),
        (", std: 0.2", "", 4, ["experts.left.mixture", "case: gmm40"]),
        ("weights: [2.0]", "weights: [2.0, 1.0]", 5, ["weights: got 2 for 1 means"]),
        ("std: 0.3,", "std: 0.3, case: gmm40,", 5, ["means is set by case gmm40"]),
        ("std: 0.2}", "std: 0.2, path: {kind: vp, sigma_max: 3.0}}", 4, ["mixture.path", "for kinds ve and edm"]),
        ("[0.4, 0.3]]", "[0.4]]", 4, ["points of one dimension"]),
        ("{mixture: {means: [[0.1, 0.2]], std: 0.3, weights: [2.0]}}", "{mean: 0.0, std: 1.0}", 5, ["exactly one of"]),
        ("left: {mixture", "left: {std: 1.0, mixture", 4, ["needs mean and std, or neither"]),
        ("particles: 20", "particles: 1", 11, ["sampling.particles = 1"]),
        ("steps: 5, ", "", 11, ["sampling.steps", "missing"]),
        ("seed: 1}", "seed: 1, gauge: plian}", 11, ["did you mean 'plain'"]),
        ("seed: 1}", "seed: 1, resampler: best}", 11, ["sampling.resampler = 'best'", "systematic"]),
        ("compare: false", "levels: {sigma_max: 1.0, sigma_min: 2.0}", 12, ["sigma_min must be below sigma_max"]),
        ("compare: false", "classifier: nowhere", 12, ["classifier = 'nowhere'", "there is no"]),
        ("compare: false", "comparison: false", 12, ["comparison: unknown key", "did you mean 'compare'"]),
    ],
)
def test_mistakes_are_named(config_file, old, new, line, parts):
    assert old in GOOD
    config_file.write_text(GOOD.replace(old, new))
    (problem,) = refused(config_file)
    assert problem.startswith(f"{config_file}, line {line}: ")
    for part in parts:
        assert part in problem


def test_all_mistakes_are_told_at_once(config_file):
    config_file.write_text(GOOD.replace("std: 0.2", "std: 0").replace("seed: 1", "seed: -1"))
    assert [", line 4: " in refused(config_file)[0], ", line 11: " in refused(config_file)[1]] == [True, True]


def test_comparing_nothing_with_nothing_is_refused(config_file):
    config_file.write_text(GOOD.replace("compare: false", "compare: true"))
    assert "set compare: false" in refused(config_file, "sampling.weights=none")[0]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["sampling.gauge=plain", "targets.cold.noise=0.4"],
            ["targets.cold.noise = 0.4", "expected more than 0.", "force"],
        ),
        (
            ["targets.led.weight=30", "targets.led.experts=[right, left]"],
            ["targets.led: cannot be normalised at noise", "let them move"],
        ),
        (["levels.sigma_max=11.0"], ["levels.sigma_max = 11", "expert left knows noise from 0.01 to 10"]),
        (["levels.sigma_min=20.0"], ["sigma_min = 20 is not below sigma_max = 10"]),
        (["targets.cold.noise=0.0", "sampling.weights=kernel"], ["targets.cold: noise: got 0", "weights='rate'"]),
        (
            ["sampling.gauge=fitted", "sampling.weights=kernel"],
            ["targets.cold: weights: got 'kernel'"],
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_early(config_file, overrides, parts):
    (problem,) = refused(config_file, *overrides)
    for part in parts:
        assert part in problem


def test_force_takes_too_little_noise(config_file):
    overrides = ["sampling.gauge=plain", "targets.cold.noise=0.4", "sampling.force=true"]
    CorrectedJob.build(load_config(config_file, CorrectedConfig, overrides), {})


def test_experts_of_different_shapes_do_not_multiply(config_file):
    config_file.write_text(GOOD.replace("[[0.1, 0.2]]", "[[0.1]]"))
    assert refused(config_file) == ["targets.both.experts: samples differ in shape: left (2,), right (1,)"]


RIGHT = "{mixture: {means: [[0.1, 0.2]], std: 0.3, weights: [2.0]}}"
DIGITS = "{pipeline: {folder: data:digits_diffusion, class_label: 10}}"


@pytest.mark.parametrize(
    ("pipeline", "parts"),
    [
        ("class_label: 10", ["experts.right.pipeline: class_labels: got 10", "[0, 10) or None"]),
        ("call: {class_labels: [1, 2]}", ["experts.right.pipeline", "several prompts"]),
        ("call: {prompt: nine}", ["experts.right.pipeline.call", "takes no prompt", "class_labels"]),
        ("class_label: 1, call: {class_labels: 2}", ["experts.right.pipeline", "not both"]),
    ],
)
def test_calls_that_a_pipeline_does_not_take_are_refused(config_file, pipeline, parts):
    config_file.write_text(GOOD.replace(RIGHT, DIGITS.replace("class_label: 10", pipeline)))
    (problem,) = refused(config_file)
    for part in parts:
        assert part in problem


def test_a_folder_without_a_pipeline_is_refused(config_file, tmp_path):
    config_file.write_text(GOOD.replace(RIGHT, DIGITS))
    (tmp_path / "empty").mkdir()
    config_file.write_text(config_file.read_text().replace("data:digits_diffusion", "empty"))
    assert "experts.right.pipeline.folder" in refused(config_file)[0]
    assert "model_index.json" in refused(config_file)[0]


def pipelines(path: Path, *sections: str) -> list[Expert]:
    """Experts of the shipped digits, their moments given."""
    texts = [
        f"e{i}: {{pipeline: {{folder: data:digits_diffusion{s}}}, mean: -0.4, std: 0.6}}"
        for i, s in enumerate(sections)
    ]
    targets = "targets: {cold: {form: annealed, experts: [e0], exponent: 2}}"
    path.write_text("\n  ".join(["job: corrected\nname: test\nexperts:", *texts]) + f"\n{targets}\n{SAMPLING}")
    experts, moments = build_experts(load_config(path, CorrectedConfig), {})
    assert moments == {}
    return list(experts.values())


SAMPLING = "sampling: {particles: 3, steps: 5, seed: 1}\n"
NO_CLASS = 10


def test_an_expert_says_what_its_pipelines_denoiser_says(config_file):
    """At a training level, against the formula of v-prediction by hand; the classes differ, and none is a class too."""
    four, any_class = pipelines(config_file, ", class_label: 4", "")
    pipe = load_pipeline(resolve("data:digits_diffusion", Path()))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, 1, 8, 8), generator=generator, dtype=torch.float64)
    for step in (50, 700):
        share = float(pipe.scheduler.alphas_cumprod[step].double())
        alpha, sigma = share**0.5, (1.0 - share) ** 0.5
        clean = {}
        for label in (4, NO_CLASS):
            with torch.no_grad():
                v = pipe.unet(x.float(), torch.tensor(step), class_labels=torch.full((5,), label)).sample.double()
            clean[label] = alpha * x - sigma * v
        h = (sigma / alpha) ** 2
        torch.testing.assert_close(four.denoised(x / alpha, h), clean[4], atol=1e-6, rtol=0)
        torch.testing.assert_close(any_class.denoised(x / alpha, h), clean[NO_CLASS], atol=1e-6, rtol=0)
        assert (clean[4] - clean[NO_CLASS]).abs().max() > 1e-3
        assert (four.denoised(x / alpha, 1.1 * h) - clean[4]).abs().max() > 1e-3


def test_a_call_is_as_good_as_a_class(config_file):
    """The pipeline's own guidance can be part of an expert."""
    four, called, led, any_class = pipelines(
        config_file,
        ", class_label: 4",
        ", call: {class_labels: 4}",
        ", call: {class_labels: 4, guidance_scale: 3}",
        "",
    )
    y = torch.linspace(-1.0, 1.0, 2 * 64, dtype=torch.float64).reshape(2, 1, 8, 8)
    said, none = four.denoised(y, 0.4), any_class.denoised(y, 0.4)
    assert torch.equal(called.denoised(y, 0.4), said)
    torch.testing.assert_close(led.denoised(y, 0.4), none + 3.0 * (said - none), atol=1e-5, rtol=0)
    assert (led.denoised(y, 0.4) - said).abs().max() > 1e-3


def test_divergences_go_through_a_pipeline(config_file):
    """What least-squares control differentiates, against differences along the random signs."""
    (four,) = pipelines(config_file, ", class_label: 4")
    four = replace(four, divergence=1)
    generator = torch.Generator().manual_seed(1)
    y = torch.randn((3, 1, 8, 8), generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (1, 3, 1, 8, 8), generator=generator, dtype=torch.float64) * 2.0 - 1.0
    h, step = 0.5, 1e-2
    _, found = four.score_and_divergence(y, h, lambda n: signs)
    above, below = (four.score(y + side * step * signs[0], h) for side in (1, -1))
    expected = (signs[0] * (above - below)).flatten(1).sum(dim=1) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert not four.score(y, h).requires_grad  # the parameters ask for gradients, the particles do not


@pytest.mark.slow
def test_least_squares_runs_through_a_pipeline(config_file):
    (four,) = pipelines(config_file, ", class_label: 4")
    options = {"particles": 3, "seed": 0, "levels": (20.0, 5.0, 2.0, 1.0, 0.5, 0.2), "control": "least_squares"}
    samples = sample_corrected(Annealed(four, 1.3), **options)
    assert samples.x.isfinite().all()
    assert samples.log_weights.isfinite().all()


@pytest.mark.slow
def test_molecules_are_experts_too(config_file):
    config_file.write_text(
        GOOD.replace(RIGHT, "{pipeline: {folder: data:alanine_dipeptide_diffusion}, mean: 0.0, std: 1.0}")
        .replace("  both: {form: product, experts: [left, right]}\n", "")
        .replace("  led: {form: guidance, experts: [left, right], weight: 1.5}\n", "")
        .replace("  rising: {form: powers, experts: [left, right], exponents: [0 .. 2, 1]}\n", "")
    )
    expert = build_experts(load_config(config_file, CorrectedConfig), {})[0]["right"]
    assert expert.shape == (22, 3)
    y = torch.randn((2, 22, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = expert.denoised(y, 0.5)
    assert clean.mean(dim=1).abs().max() < 1e-5 < 0.1 < clean.std()  # molecules without centre of mass


def test_nothing_is_made_for_a_bad_config(config_file, tmp_path):
    config_file.write_text(GOOD.replace("exponent: 2", "exponent: x"))
    with pytest.raises(UserError):
        run(None, config_file, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


# --- exact answers --------------------------------------------------------------------------------------------------


def settled(path: Path, *overrides: str) -> CorrectedConfig:
    config = load_config(path, CorrectedConfig, overrides)
    return settle(config, build_experts(config, {})[0])


def test_the_exact_answer_is_that_of_the_last_noise_level(config_file):
    config_file.write_text(GOOD.replace("[[-0.5, 0.0], [0.4, 0.3]]", "[[-0.5, -0.5]]"))
    config = settled(config_file, "levels.sigma_min=0.3")
    exact = gaussian_product((2.0, -0.5, 0.2**2 + 0.3**2), dimension=2)
    truth = truth_of(config, "cold")
    assert truth.log_integral == pytest.approx(exact.log_evidence, abs=1e-9)
    assert truth.square == pytest.approx(2 * (exact.variance + exact.mean**2), abs=1e-9)
    led = truth_of(config, "led")  # negative powers: by quadrature
    inverse = -0.5 / 0.13 + 1.5 / 0.18
    means = [(-0.5 * -0.5 / 0.13 + 1.5 * m / 0.18) / inverse for m in (0.1, 0.2)]
    assert led.mean.tolist() == pytest.approx(means, abs=1e-8)
    assert led.how == "by quadrature"


def test_the_masses_of_modes_are_exact(config_file):
    text = GOOD.replace("[[-0.5, 0.0], [0.4, 0.3]], std: 0.2", "[[-1.0], [1.5]], std: 0.3, weights: [1.0, 2.0]")
    config_file.write_text(text.replace("[[0.1, 0.2]]", "[[0.0]]"))
    truth = truth_of(settled(config_file), "cold")
    assert truth.modes.tolist() == [[-1.0], [1.5]]
    assert truth.masses.tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_no_exact_answer_is_made_up(config_file):
    fractional = settled(config_file, "targets.cold.exponent=1.5")
    assert truth_of(fractional, "cold").how == "by quadrature"
    config_file.write_text(
        GOOD.replace("[[-0.5, 0.0], [0.4, 0.3]]", "[[0.0, 0.0, 0.0]]").replace("0.2]]", "0.2, 0.0]]")
    )
    assert truth_of(settled(config_file, "targets.cold.exponent=1.5"), "cold") is None
    three = truth_of(settled(config_file), "cold")
    assert three.masses is None
    assert three.square == pytest.approx(3 * (0.2**2 + 0.01**2) / 2)


def test_the_forty_gaussians_are_the_published_ones():
    config = load_config(resolve("data:configs/corrected_gmm.yaml", Path()), CorrectedConfig)
    law = mixture_law(config.experts["forty"].mixture)
    torch.manual_seed(0)
    torch.testing.assert_close(law.means * 50.0, ((torch.rand(40, 2) - 0.5) * 80.0).double())
    assert law.std * 50.0 == pytest.approx(math.log1p(math.exp(2.0)))


def test_the_model_without_weights_has_none(config_file):
    config = settled(config_file)
    experts, _ = build_experts(config, {})
    assert build_model(config, "cold", "weighted", experts).weights == "kernel"
    assert build_model(config, "cold", "unweighted", experts).weights == "none"


def test_weights_that_are_rates_are_known(config_file):
    config = settled(config_file)
    assert not any(uses_rates(config, name) for name in config.targets)
    blind = settled(config_file, "experts.right.mixture.known_density=false")
    assert [name for name in blind.targets if uses_rates(blind, name)] == ["both", "led", "rising"]
    for overrides in ([], ["weights=rate"], ["weights=kernel"], ["gauge=fitted"], ["control=least_squares"]):
        config = settled(config_file, *(f"sampling.{text}" for text in overrides))
        experts, _ = build_experts(config, {})
        assert uses_rates(config, "both") == (build_model(config, "both", "weighted", experts).weights == "rate")

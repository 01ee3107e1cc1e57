"""Correctors of masked diffusion against Ising chains, whose laws, normalisers and denoisers are exact, and against
path laws by enumeration; and the laws without weights, which are others."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    AnnealedProduct,
    Checkpoint,
    CheckpointError,
    GeometricAverage,
    PopulationCollapsed,
    Product,
    Target,
    WeightError,
)
from feynkac.fkc.masked import MaskedExpert, sample_corrected_masked
from feynkac.fkc.masked.experts import log_product
from feynkac.fkc.masked.reveal import Reveal
from feynkac.fkc.testing import ZTest
from feynkac.fkc.testing.chains import IsingChain, MaskedPathLaw, chain_product

MASK = 2


def sampled(target, **options):
    return sample_corrected_masked(target, **({"particles": 64, "populations": 100, "seed": 3} | options))


def evidence(samples, log_z):
    """Unbiased: the mean of the populations' estimates over the truth is one."""
    return ZTest.from_samples((samples.log_evidence - log_z).exp(), 1.0)


def observed(samples, function, log_z, expected):
    """z-test of a mean under the target: unnormalised sums of weights are unbiased for evidence times mean."""
    share = (samples.log_evidence - log_z).exp()
    values = samples.mean(function)
    mean = float((share * values).sum() / share.sum())
    spread = share * (values - mean)
    return ZTest(mean, float(spread.std()) / math.sqrt(len(spread)) / float(share.mean()), float(expected))


def spin(site):
    return lambda x: 2.0 * x[..., site].double() - 1.0


def pair(first, second):
    return lambda x: spin(first)(x) * spin(second)(x)


def constant(logits):
    """An expert of independent positions, (L, V) or (V,) logits."""
    table = torch.tensor(logits, dtype=torch.float64)
    return MaskedExpert(lambda tokens: table.expand(*tokens.shape, table.shape[-1]), table.shape[-1])


# --- the truth itself ---


def test_a_chain_is_what_enumeration_says():
    chain = IsingChain(torch.tensor([0.7, -0.3, 0.4]).double(), torch.tensor([0.2, 0.0, -0.5, 0.1]).double())
    law = MaskedPathLaw([chain.expert()], [1.0], 4, 2, steps=4)
    x = law.sequences
    p = chain.energy(x).softmax(0)
    assert torch.allclose(chain.log_prob(x).exp(), p)
    assert torch.allclose(law.masses(), p)  # one position a step: the sampler's law is the chain
    assert torch.allclose(chain.magnetisation(), p @ (2.0 * x.double() - 1))
    assert chain.correlations(1)[3] == pytest.approx(float(p @ pair(1, 3)(x)))
    assert not torch.allclose(replace(law, steps=2).masses(), p, atol=1e-3)


def test_an_open_chain_without_field_has_tanh_correlations():
    assert torch.allclose(
        IsingChain.uniform(8, 0.6).correlations(), math.tanh(0.6) ** torch.arange(8).double(), atol=1e-12
    )


def test_a_product_of_chains_adds_couplings():
    a, b = IsingChain.uniform(4, 0.5, 0.2), IsingChain.uniform(4, 0.3, -0.4)
    product, log_z = chain_product([a, b], [1.5, -0.5], field=0.3)
    x = MaskedPathLaw([], [], 4, 2, 1).sequences
    masses = 1.5 * a.log_prob(x) - 0.5 * b.log_prob(x) + 0.3 * (2.0 * x.double() - 1).sum(1)
    assert torch.allclose(masses, product.log_prob(x) + log_z)


# --- small exact cases ---


@pytest.mark.parametrize("weights", ["kernel", "adapted"])
def test_a_single_two_state_site_has_no_variance(weights):
    """sum_v p(v)^2 = 0.68 for p = (0.8, 0.2); every particle weighs that."""
    target = Annealed(constant([math.log(0.8), math.log(0.2)]), 2.0)
    samples = sampled(target, length=1, weights=weights, populations=400)
    assert torch.allclose(samples.log_evidence, torch.tensor(math.log(0.68)).double())
    assert float(samples.ess.min()) == pytest.approx(64)
    assert ZTest.from_samples(samples.mean(lambda x: x[..., 0]), 0.04 / 0.68).passed
    assert not ZTest.from_samples(samples.mean(lambda x: x[..., 0]), 0.2).passed


@pytest.mark.parametrize(
    ("weights", "reveal", "steps"),
    [
        (weights, reveal, steps)
        for weights in ("kernel", "adapted")
        for reveal in ("even", "independent", (2, 0, 1))
        for steps in (1, 2, 3, 7)
        if not (weights == "adapted" and reveal == "even" and steps < 3)  # several positions at a time: refused
    ],
)
def test_independent_positions_are_exact_at_any_number_of_steps(weights, reveal, steps):
    """Of different laws, so that the constant per position matters. Kernel weights have no variance."""
    table = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -3.0]]).double()
    log_z = float((2.0 * table.log_softmax(1)).logsumexp(1).sum())
    samples = sampled(
        Annealed(constant(table.tolist()), 2.0), length=3, weights=weights, reveal=reveal, steps=steps, populations=20
    )
    assert torch.allclose(samples.log_evidence, torch.tensor(log_z).double())
    assert not (samples.x == MASK).any()


def test_two_sites():
    chain = IsingChain.uniform(2, 0.6, 0.3)
    truth, log_z = chain_product([chain], [2.0])
    samples = sampled(Annealed(chain.expert(), 2.0), populations=400)
    assert evidence(samples, log_z).passed
    assert observed(samples, pair(0, 1), log_z, truth.correlations()[1]).passed
    assert not observed(samples, pair(0, 1), log_z, chain.correlations()[1]).passed


# --- chains ---

CHAINS = {
    "annealed": (Annealed(IsingChain.uniform(8, 0.5, 0.1).expert(), 2.0), [IsingChain.uniform(8, 0.5, 0.1)], [2.0]),
    "no field": (Annealed(IsingChain.uniform(8, 0.4).expert(), 2.0), [IsingChain.uniform(8, 0.4)], [2.0]),
    "hotter": (Annealed(IsingChain.uniform(8, 0.8, 0.1).expert(), 0.5), [IsingChain.uniform(8, 0.8, 0.1)], [0.5]),
}
A, B = IsingChain.uniform(8, 0.5, 0.2), IsingChain.uniform(8, 0.3, -0.1)
CHAINS |= {
    "product": (Product(A.expert(), B.expert()), [A, B], [1.0, 1.0]),
    "annealed product": (AnnealedProduct([A.expert(), B.expert()], 1.5), [A, B], [1.5, 1.5]),
    "guided 2": (GeometricAverage(B.expert(), A.expert(), 2.0), [B, A], [-1.0, 2.0]),
    "guided 1.5": (GeometricAverage(B.expert(), A.expert(), 1.5), [B, A], [-0.5, 1.5]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("how", [{}, {"weights": "adapted"}, {"reveal": (3, 0, 7, 1, 6, 5, 2, 4)}], ids=str)
def test_a_chain_is_met(name, how):
    """Evidence, correlation and magnetisation; couplings and fields combine with the exponents."""
    target, chains, powers = CHAINS[name]
    truth, log_z = chain_product(chains, powers)
    samples = sampled(target, populations=200, **how)
    assert evidence(samples, log_z).passed, str(evidence(samples, log_z))
    for function, expected in [
        (pair(0, 1), truth.correlations()[1]),
        (pair(0, 3), truth.correlations()[3]),
        (spin(4), truth.magnetisation()[4]),
    ]:
        test = observed(samples, function, log_z, expected)
        assert test.passed, str(test)
        assert abs(test.estimate - test.expected) < 0.02


@pytest.mark.slow
def test_tanh_correlations_at_twice_the_inverse_temperature_in_one_population():
    """<s_0 s_r> = tanh(2 * 0.4)^r within 0.02 and its own error bars; without weights another law."""
    target = CHAINS["no field"][0]
    plain = {}
    for weights in ("kernel", "none"):
        samples = sampled(target, particles=20_000, populations=1, weights=weights)
        for r in (1, 2, 4):
            error = abs(float(samples.mean(pair(0, r))) - math.tanh(0.8) ** r)
            plain[weights, r] = (error, error / float(samples.std_error(pair(0, r))))
    for r in (1, 2, 4):
        assert plain["kernel", r][0] < 0.02
        assert plain["kernel", r][1] < 5
        assert plain["none", r][0] > 0.03
        assert plain["none", r][1] > 5


@pytest.mark.parametrize("name", ["annealed", "product"])
def test_without_weights_the_law_is_another(name):
    target, chains, powers = CHAINS[name]
    truth, _ = chain_product(chains, powers)
    samples = sampled(target, weights="none")
    assert not ZTest.from_samples(samples.mean(pair(0, 3)), float(truth.correlations()[3])).passed
    assert torch.equal(samples.log_evidence, torch.zeros(100).double())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"reveal": "independent", "steps": 6}], ids=["even", "independent"])
def test_a_tilted_choice_needs_its_ratio(monkeypatch, options):
    """Positions chosen in proportion to Z_l and weighed as if chosen without regard to it are caught."""
    experts, powers = (inconsistent(1), inconsistent(2)), (1.5, -0.5)
    law = MaskedPathLaw(experts, powers, 3, 3, options.get("steps", 3), options.get("reveal", "even"))
    log_z = float(law.masses().sum().log())
    options = options | {"weights": "adapted", "populations": 200}
    assert evidence(sampled(Target(experts, powers), **options), log_z).passed
    choose = Reveal.choose

    def forgetful(self, *args):
        chosen, ratio = choose(self, *args)
        return chosen, torch.zeros_like(ratio)

    monkeypatch.setattr(Reveal, "choose", forgetful)
    assert not evidence(sampled(Target(experts, powers), **options), log_z).passed


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["kernel", "adapted"])
def test_the_evidence_of_small_populations_is_unbiased(weights):
    """K = 4, 2000 populations, resampled at every step; a normaliser forgotten in one step of eight would show."""
    target, chains, powers = CHAINS["annealed"]
    _, log_z = chain_product(chains, powers)
    samples = sampled(target, particles=4, populations=2000, weights=weights, ess_threshold=1.1)
    test = evidence(samples, log_z)
    assert test.passed, str(test)
    assert test.std_error < 0.02
    assert not evidence(samples, log_z + 0.15).passed
    assert float(samples.log_evidence.mean()) < log_z - 0.01  # its logarithm is biased, as it must be


@pytest.mark.slow
def test_kernel_weights_vary_less_than_adapted_ones():
    for name in ("annealed", "hotter", "product", "guided 2"):
        spread = [
            float(sampled(CHAINS[name][0], weights=w, ess_threshold=0.0).log_weights.var())
            for w in ("kernel", "adapted")
        ]
        assert spread[0] < 0.9 * spread[1], name


# --- rewards and moving exponents ---


def field(tokens):
    """0.3 for every spin up, -0.3 for every spin down, nothing for a mask."""
    return 0.3 * ((tokens == 1).double() - (tokens == 0).double()).sum(1)


@pytest.mark.parametrize("scale", [1.0, lambda u: u, lambda u: float(u == 1.0)], ids=["fixed", "ramp", "at the end"])
def test_a_reward_is_a_field(scale):
    chain = IsingChain.uniform(6, 0.4, 0.1)
    truth, log_z = chain_product([chain], [1.5], field=0.3)
    samples = sampled(Annealed(chain.expert(), 1.5).tilted(field, scale), populations=200)
    assert evidence(samples, log_z).passed
    assert observed(samples, spin(2), log_z, truth.magnetisation()[2]).passed
    assert not observed(samples, spin(2), log_z, chain_product([chain], [1.5])[0].magnetisation()[2]).passed


@pytest.mark.parametrize("weights", ["kernel", "adapted"])
def test_exponents_may_move(weights):
    """From one to two along the path: the law at the end counts."""
    chain = IsingChain.uniform(6, 0.5, 0.2)
    truth, log_z = chain_product([chain], [2.0])
    samples = sampled(Annealed(chain.expert(), lambda u: 1.0 + u), populations=200, weights=weights)
    assert evidence(samples, log_z).passed
    assert observed(samples, pair(0, 2), log_z, truth.correlations()[2]).passed


# --- several positions in one step, and experts that are not consistent ---


def inconsistent(seed):
    """A denoiser from a random table: the order of the positions matters."""
    table = torch.randn(4**3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    powers = torch.tensor([16, 4, 1])
    return MaskedExpert(lambda tokens: table[(tokens * powers).sum(1)], 3, length=3)


@pytest.mark.parametrize("reveal", ["even", "independent", (1, 2, 0)])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_path_law_is_met(reveal, steps):
    """q_i is the law given the pattern's path: enumerated, it has the evidence and the law that particles find."""
    experts, powers = (inconsistent(1), inconsistent(2)), (1.5, -0.5)
    law = MaskedPathLaw(experts, powers, 3, 3, steps, reveal)
    masses = law.masses()
    target = Target(experts, powers)
    samples = sampled(target, steps=steps, reveal=reveal, populations=150)
    log_z = float(masses.sum().log())
    assert evidence(samples, log_z).passed
    index = torch.tensor([9, 3, 1])

    def is_at(x):
        return torch.nn.functional.one_hot((x * index).sum(-1), 27).double()

    share = (samples.log_evidence - log_z).exp()[:, None]
    for i in masses.argsort(descending=True)[:5].tolist():
        test = ZTest.from_samples((share * samples.mean(is_at))[:, i], float(masses[i] / masses.sum()))
        assert test.passed, f"{i}: {test}"
    if steps > 1:
        other = MaskedPathLaw(experts, powers, 3, 3, 1, reveal).masses().sum().log()
        assert not evidence(samples, float(other)).passed


def test_moves_alone_have_the_law_of_normalised_products():
    experts, powers = (inconsistent(1), inconsistent(2)), (1.5, -0.5)
    law = MaskedPathLaw(experts, powers, 3, 3, 3, corrected=False)
    masses = law.masses()
    assert float(masses.sum()) == pytest.approx(1.0)
    samples = sampled(Target(experts, powers), weights="none", populations=150)
    expected = float(masses @ (law.sequences[:, 0] == 1).double())
    assert ZTest.from_samples(samples.mean(lambda x: (x[..., 0] == 1).double()), expected).passed


@pytest.mark.parametrize("reveal", ["even", "independent"])
def test_the_error_of_revealing_together_falls_with_the_steps(reveal):
    """Of the path law's log-evidence, exactly: to zero at T = L, or like 1/T where steps reveal at random."""
    chain = IsingChain.uniform(4, 0.6, 0.2)
    _, log_z = chain_product([chain], [2.0])
    steps = (1, 2, 4) if reveal == "even" else (4, 8, 16, 32)
    errors = [
        abs(float(MaskedPathLaw([chain.expert()], [2.0], 4, 2, t, reveal).masses().sum().log()) - log_z) for t in steps
    ]
    if reveal == "even":
        assert errors[0] > errors[1] > 0.05
        assert errors[2] < 1e-12
    else:
        ratios = [a / b for a, b in itertools.pairwise(errors)]
        assert all(1.6 < ratio < 2.2 for ratio in ratios), ratios


@pytest.mark.slow
def test_both_weights_meet_the_same_path_law_and_errors_fall_with_particles():
    chain = IsingChain.uniform(4, 0.7, 0.2)
    log_z = float(MaskedPathLaw([chain.expert()], [2.0], 4, 2, 6, "independent").masses().sum().log())
    target = Annealed(chain.expert(), 2.0)
    spread = {}
    for weights in ("kernel", "adapted"):
        for particles in (32, 512):
            options = {"steps": 6, "reveal": "independent", "particles": particles, "populations": 300}
            samples = sampled(target, weights=weights, **options)
            assert evidence(samples, log_z).passed
            spread[weights, particles] = float(samples.log_evidence.std())
        assert 3.0 < spread[weights, 32] / spread[weights, 512] < 5.5  # the square root of 16


# --- prompts ---


def test_a_prompt_conditions():
    """Each population its own: the laws are conditional, and so is the evidence."""
    chain = IsingChain.uniform(5, 0.6, 0.2)
    prompts = torch.full((2, 5), MASK)
    prompts[0, 2], prompts[1, 0], prompts[1, 4] = 0, 1, 0
    samples = sampled(Annealed(chain.expert(), 2.0), tokens=prompts, particles=30_000, populations=2)
    everything = MaskedPathLaw([], [], 5, 2, 1).sequences
    for p in range(2):
        fits = ((prompts[p] == MASK) | (everything == prompts[p])).all(1)
        logs = chain.log_prob(everything[fits])
        log_z = float((2.0 * (logs - logs.logsumexp(0))).logsumexp(0))
        assert ZTest(float(samples.log_evidence[p]), float(samples.log_evidence_std_error[p]), log_z).passed
        expected = float((2.0 * logs).softmax(0) @ spin(1)(everything[fits]))
        assert ZTest(float(samples.mean(spin(1))[p]), float(samples.std_error(spin(1))[p]), expected).passed
        assert ((prompts[p] == MASK) | (samples.x[p] == prompts[p])).all()


# --- zeros ---


def test_what_one_factor_forbids_stays_forbidden():
    first, second = constant([0.0, 0.0, -torch.inf]), constant([-torch.inf, 0.0, 0.0])
    samples = sampled(Product(first, second), length=2, populations=3)
    assert (samples.x == 1).all()
    assert torch.allclose(samples.log_evidence, torch.tensor(2 * math.log(0.25)).double())


def test_disjoint_experts_collapse():
    first, second = constant([0.0, -torch.inf]), constant([-torch.inf, 0.0])
    with pytest.raises(PopulationCollapsed, match="populations 0, 1"):
        sampled(Product(first, second), length=2, populations=2)
    kept = sampled(Product(first, second), length=2, populations=2, on_collapse="keep")
    assert bool((kept.log_evidence == -torch.inf).all())


def test_one_dead_population_leaves_the_others():
    """A reward forbids what the first prompt asks for."""

    def never_ends_up(tokens):
        return torch.where(tokens[:, 0] == 1, -torch.inf, 0.0)

    target = Annealed(IsingChain.uniform(3, 0.5).expert(), 2.0).tilted(never_ends_up)
    prompts = torch.tensor([[1, MASK, MASK], [0, MASK, MASK]])
    samples = sampled(target, tokens=prompts, populations=2, on_collapse="keep")
    assert samples.log_evidence[0] == -torch.inf
    assert samples.log_evidence[1] > -10


def test_division_by_zero_names_the_expert():
    target = Target((constant([0.0, 0.0]), constant([0.0, -torch.inf])), (2.0, -1.0))
    with pytest.raises(WeightError, match=r"experts\[1\].*exponent -1"):
        sampled(target, length=2)


def test_zero_over_zero_is_zero():
    logs = [torch.tensor([-torch.inf, 0.0, -torch.inf]), torch.tensor([-torch.inf, -1.0, 0.0])]
    assert log_product(logs, (2.0, -1.0)).tolist() == [-math.inf, 1.0, -math.inf]
    assert log_product([torch.tensor([-torch.inf])], (0.0,)).tolist() == [0.0]


# --- masks inside the vocabulary, time ---


def test_a_mask_inside_the_vocabulary_is_never_drawn():
    """Neither its logit nor an exponent of zero gives it a chance."""
    table = torch.tensor([0.0, 50.0, 1.0]).double()
    expert = MaskedExpert(lambda tokens: table.expand(*tokens.shape, 3), mask_id=1)
    for exponent, log_z in ((1.0, 0.0), (0.0, 3 * math.log(2.0))):
        samples = sampled(Annealed(expert, exponent), length=3, populations=2)
        assert not (samples.x == 1).any()
        assert torch.allclose(samples.log_evidence, torch.tensor(log_z).double())


def test_a_timed_expert_is_told_the_share_of_masks():
    seen = []

    def predict(tokens, time):
        seen.append(float(time[0]))
        assert time.shape == (len(tokens),)
        return torch.zeros(*tokens.shape, 2)

    sampled(Annealed(MaskedExpert(predict, 2, timed=True), 1.0), length=4, populations=1)
    assert seen == [1.0, 1.0, 0.75, 0.5, 0.25]  # the start, and four moves


# --- randomness ---


@pytest.mark.parametrize("weights", ["kernel", "adapted"])
def test_seeds_chunks_and_populations(weights):
    target = CHAINS["annealed"][0]
    options = {"particles": 32, "populations": 3, "weights": weights, "ess_threshold": 1.1}
    samples = sampled(target, **options)
    again, chunked = sampled(target, **options), sampled(target, **options, chunk_size=7)
    alone, other = sampled(target, **options | {"populations": 1}), sampled(target, **options, seed=4)
    for same in (again, chunked):
        assert torch.equal(samples.x, same.x)
        assert torch.equal(samples.log_weights, same.log_weights)
    assert torch.equal(samples.x[:1], alone.x)
    assert torch.equal(samples.log_evidence[:1], alone.log_evidence)
    assert not torch.equal(samples.x, other.x)


class Stopped(Exception):
    pass


def test_resumed_runs_have_the_same_bits(tmp_path):
    chain = IsingChain.uniform(6, 0.5, 0.1)
    calls = []

    def stopping(tokens):
        calls.append(0)
        if len(calls) == 5:
            raise Stopped
        return chain.logits(tokens)

    options = {"particles": 16, "populations": 2, "ess_threshold": 1.1, "length": 6}
    whole = sampled(Annealed(chain.expert(), 2.0), **options)
    checkpoint = Checkpoint(tmp_path, every=1)
    with pytest.raises(Stopped):
        sampled(Annealed(MaskedExpert(stopping, MASK), 2.0), **options, checkpoint=checkpoint)
    resumed = sampled(Annealed(chain.expert(), 2.0), **options, checkpoint=checkpoint, resume=True)
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.log_weights, resumed.log_weights)
    assert torch.equal(whole.log_evidence, resumed.log_evidence)
    with pytest.raises(CheckpointError):
        sampled(Annealed(chain.expert(), 2.0), **options, checkpoint=checkpoint)


def test_what_comes_back():
    samples = sampled(CHAINS["annealed"][0], populations=2, particles=16, steps=4)
    assert samples.x.shape == (2, 16, 8)
    assert samples.x.dtype == torch.int64
    assert samples.levels == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert samples.resampled(5).shape == (2, 5, 8)
    assert samples.seed == 3


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": None}, "length"),
        ({"length": 0}, "length"),
        ({"steps": 0}, "steps: got 0"),
        ({"weights": "rate"}, "weights: got 'rate'"),
        ({"weights": "adapted", "steps": 2}, "steps: got 2, expected at least 3"),
        ({"reveal": "random"}, "reveal: got 'random'"),
        ({"reveal": (0, 1)}, r"reveal: got \[0, 1\]"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"tokens": torch.full((2, 4), MASK)}, r"tokens: got shape \(2, 4\)"),
        ({"tokens": torch.full((3,), 2.0)}, "tokens: expected token ids"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(Annealed(constant([0.0, 1.0]), 2.0), **({"length": 3, "populations": 3} | options))


def test_experts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"mask ids \[2, 3\]"):
        sampled(Product(constant([0.0, 1.0]), constant([0.0, 1.0, 2.0])), length=2)
    with pytest.raises(TypeError, match=r"experts\[0\]: got function"):
        sampled(Annealed(lambda tokens: tokens, 2.0), length=2)
    narrow = MaskedExpert(lambda tokens: torch.zeros(*tokens.shape, 1), 2)
    with pytest.raises(ValueError, match=r"vocabularies of \[2, 1\]"):
        sampled(Product(constant([0.0, 1.0]), narrow), length=2)
    with pytest.raises(ValueError, match="predict: gave shape"):
        sampled(Annealed(MaskedExpert(lambda tokens: torch.zeros(len(tokens), 2), 2), 2.0), length=2)
    with pytest.raises(ValueError, match="not a number"):
        sampled(Annealed(constant([math.nan, 1.0]), 2.0), length=2)
    with pytest.raises(ValueError, match="mask_id: got -1"):
        MaskedExpert(lambda tokens: tokens, -1)

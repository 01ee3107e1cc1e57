"""Masked diffusion: the scheduler's step, the small denoiser, and the pipeline's law against enumeration."""

import math

import pytest
import torch

from feynkac.steering.testing import EnumeratedMaskedModel

diffusers = pytest.importorskip("diffusers")
from feynkac.steering.discrete import (  # noqa: E402
    MaskedDenoiser,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    clean_tokens,
    draw_tokens,
    token_log_probs,
)
from feynkac.steering.testing import EnumeratedDenoiser  # noqa: E402

MODEL = EnumeratedMaskedModel()
MASK = 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pipeline(model=None):
    pipe = MaskedDiffusionPipeline(model or EnumeratedDenoiser(), MaskedDiffusionScheduler(MASK))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chi_square(tokens, law):
    """Pearson's statistic over the sequences of positive probability, and its degrees of freedom."""
    counts = torch.bincount(MODEL.sequence_index(tokens), minlength=len(law)).double()
    expected = len(tokens) * law
    possible = law > 0
    assert not bool(counts[~possible].any())
    statistic = ((counts - expected).square() / expected)[possible].sum()
    return float(statistic), int(possible.sum()) - 1


def fits(tokens, law):
    """Within five standard deviations of a chi-square."""
    statistic, freedom = chi_square(tokens, law)
    return statistic <= freedom + 5 * math.sqrt(2 * freedom)


# --- the law ---


def test_the_pipeline_samples_the_enumerated_law():
    tokens = pipeline()(batch_size=40_000, num_inference_steps=6, generator=generator(1)).tokens
    assert fits(tokens, MODEL.sampler_law)
    assert not fits(tokens, MODEL.data_law)  # a total variation of 0.024 away: the test can tell


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_law_at_other_numbers_of_steps(steps):
    law = EnumeratedMaskedModel(num_steps=steps).sampler_law
    tokens = pipeline()(batch_size=20_000, num_inference_steps=steps, generator=generator(steps)).tokens
    assert fits(tokens, law)
    assert not fits(tokens, EnumeratedMaskedModel(num_steps=5 if steps < 5 else 2).sampler_law)


@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_single_step_has_the_enumerated_transition(index):
    """From a half-revealed state, over all 64 states."""
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=6)
    state = torch.tensor([[MASK, 1, MASK]]).expand(20_000, -1)
    logits = EnumeratedDenoiser()(state).logits
    after = scheduler.step(logits, scheduler.timesteps[index], state, generator=generator(index)).prev_sample
    law = MODEL.transitions[index][MODEL.state_index(state[:1])][0]
    counts = torch.bincount(MODEL.state_index(after), minlength=64).double()
    possible = law > 0
    assert not bool(counts[~possible].any())
    statistic = float(((counts - 20_000 * law).square() / (20_000 * law))[possible].sum())
    freedom = int(possible.sum()) - 1
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom)


def test_infilling_samples_the_conditional():
    """With one masked position left the sampler is exact: p(x2 | x1, x3)."""
    start = torch.tensor([[2, MASK, 0]])
    tokens = pipeline()(batch_size=20_000, tokens=start, num_inference_steps=4, generator=generator(5)).tokens
    law = MODEL.data_law.clone()
    law[(MODEL.sequences[:, 0] != 2) | (MODEL.sequences[:, 2] != 0)] = 0.0
    assert fits(tokens, law / law.sum())


def test_clean_samples_are_drawn_from_the_marginals():
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=6)
    state = torch.tensor([[MASK, 1, MASK]]).expand(500, -1)
    copies = scheduler.clean_samples(EnumeratedDenoiser()(state).logits, state, 40, generator(2))
    assert copies.shape == (500, 40, 3)
    marginal = MODEL.marginals[MODEL.state_index(state[:1])][0]
    law = torch.einsum("i,j,k->ijk", *marginal).flatten()
    assert fits(copies.reshape(-1, 3), law / law.sum())


# --- randomness ---


def test_the_same_seed_gives_the_same_tokens():
    first, again, other = (
        pipeline()(batch_size=64, num_inference_steps=6, generator=generator(seed)).tokens for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_row_with_its_own_generator_is_the_same_alone_and_in_a_batch():
    together = pipeline()(batch_size=4, num_inference_steps=6, generator=[generator(i) for i in range(4)]).tokens
    for i in range(4):
        alone = pipeline()(batch_size=1, num_inference_steps=6, generator=[generator(i)]).tokens
        assert torch.equal(alone[0], together[i])


def test_a_stream_does_not_depend_on_the_states():
    """Two numbers a position and step, masked or not: neighbours cannot shift each other's noise."""
    scheduler, g = MaskedDiffusionScheduler(MASK, num_inference_steps=2), generator()
    logits = torch.zeros(1, 3, 3)
    scheduler.step(logits, 1.0, torch.tensor([[0, 1, 2]]), generator=g)
    masked = generator()
    scheduler.step(logits, 1.0, torch.tensor([[3, 3, 3]]), generator=masked)
    assert torch.equal(g.get_state(), masked.get_state())


def test_the_global_generator_is_left_alone_when_one_is_given():
    before = torch.get_rng_state()
    pipeline()(batch_size=2, num_inference_steps=3, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


# --- the step ---


def test_the_last_step_leaves_no_mask_and_revealed_tokens_stay():
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=6)
    state = torch.tensor([[0, MASK, 2]] * 50)
    for t in scheduler.timesteps:
        logits = torch.zeros(50, 3, 3)
        state = scheduler.step(logits, t, state, generator=generator(int(100 * t))).prev_sample
        assert bool((state[:, 0] == 0).all())
        assert bool((state[:, 2] == 2).all())
    assert not bool((state == MASK).any())


def test_arguments_are_not_changed_and_both_output_forms_agree():
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=2)
    state, logits = torch.full((3, 4), MASK), torch.randn(3, 4, 5, generator=generator())
    kept = state.clone(), logits.clone()
    out = scheduler.step(logits, 0.5, state, generator=generator())
    pair = scheduler.step(logits, 0.5, state, generator=generator(), return_dict=False)
    assert torch.equal(out.prev_sample, pair[0])
    assert torch.equal(out.pred_original_sample, pair[1])
    assert torch.equal(state, kept[0])
    assert torch.equal(logits, kept[1])


def test_the_mask_token_is_never_predicted():
    """MASK = 3 has a logit here, by far the largest."""
    logits = torch.zeros(200, 4, 5)
    logits[..., MASK] = 50.0
    state = torch.full((200, 4), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=1)
    out = scheduler.step(logits, 1.0, state, generator=generator())
    assert sorted(out.prev_sample.unique().tolist()) == [0, 1, 2, 4]
    assert not bool((out.pred_original_sample == MASK).any())
    assert float(token_log_probs(logits[0, 0], MASK)[MASK]) == -math.inf


def test_the_likeliest_fill_takes_the_lowest_token_on_a_tie():
    logits = torch.tensor([[[0.0, 1.0, 1.0 + 1e-14], [2.0, 2.0, 2.0], [0.0, 0.0, 1.0]]]).double()
    assert clean_tokens(logits, torch.tensor([[MASK, MASK, 1]]), MASK).tolist() == [[1, 0, 1]]


def test_draws_at_the_ends_of_the_unit_interval():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 2)
    assert draw_tokens(logits, torch.tensor([0.0, 1.0 - 2**-53]).double(), MASK).tolist() == [1, 2]


def test_reveal_probabilities_are_those_of_the_linear_schedule():
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=7)
    times = [*scheduler.timesteps.tolist(), 0.0]
    for k in range(7):
        assert scheduler.reveal_probability(k) == pytest.approx((times[k] - times[k + 1]) / times[k])
        assert scheduler.index_for_timestep(times[k]) == k
    assert len(scheduler) == 7


def test_noise_masks_the_stated_share():
    tokens = torch.zeros(200, 100, dtype=torch.int64)
    masked = MaskedDiffusionScheduler(MASK).add_noise(tokens, 0.3, generator()) == MASK
    assert abs(float(masked.double().mean()) - 0.3) < 5 * math.sqrt(0.21 / 20_000)


# --- models and saving ---


def small():
    return MaskedDenoiser(vocab_size=3, max_length=5, width=16, layers=1, heads=2)


def test_any_callable_is_a_model_and_one_that_asks_is_told_the_time():
    seen = []

    def model(tokens, timestep):
        seen.append(float(timestep))
        return torch.zeros(*tokens.shape, 3)

    out = pipeline(model)(batch_size=2, length=4, num_inference_steps=4, generator=generator())
    assert out.tokens.shape == (2, 4)
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_a_plain_module_is_a_model():
    class Plain(torch.nn.Module):
        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 3)

    assert pipeline(Plain())(length=4, num_inference_steps=2, generator=generator()).tokens.shape == (1, 4)


def test_the_transformer_may_be_saved_and_loaded(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    again = MaskedDenoiser.from_pretrained(tmp_path)
    tokens = torch.tensor([[0, 3, 2, 3, 1]])
    assert again.config.mask_token_id == 3
    assert torch.equal(again(tokens).logits, model(tokens, return_dict=False)[0])


def test_the_whole_pipeline_may_be_saved_and_loaded(tmp_path):
    pipe = pipeline(small())
    pipe.save_pretrained(tmp_path)
    again = MaskedDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.model) is MaskedDenoiser
    assert again.scheduler.config.mask_token_id == MASK
    call = {"batch_size": 3, "num_inference_steps": 4}
    assert torch.equal(pipe(**call, generator=generator()).tokens, again(**call, generator=generator()).tokens)


def test_text_goes_through_the_tokenizer():
    class Letters:
        def batch_decode(self, rows):
            return ["".join("abc"[i] for i in row) for row in rows.tolist()]

    pipe = pipeline()
    pipe.tokenizer = Letters()
    out = pipe(batch_size=2, num_inference_steps=2, generator=generator(), output_type="text")
    assert out.texts == ["".join("abc"[i] for i in row) for row in out.tokens.tolist()]


def test_the_denoiser_can_learn_the_data():
    """Cross-entropy on masked positions: after a little training the pipeline's law is close to the data's."""
    torch_model, scheduler = _train(MaskedDenoiser(vocab_size=3, max_length=3, width=32, layers=1, heads=2), steps=300)
    pipe = MaskedDiffusionPipeline(torch_model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe(batch_size=5000, num_inference_steps=12, generator=generator(4)).tokens
    law = torch.bincount(MODEL.sequence_index(tokens), minlength=27).double() / 5000
    distance = float(0.5 * (law - MODEL.data_law).abs().sum())
    uniform = float(0.5 * (MODEL.data_law - 1 / 27).abs().sum())
    assert distance < 0.5 * uniform


def _train(model, steps):
    scheduler, g = MaskedDiffusionScheduler(MASK), generator(9)
    for parameter in model.parameters():  # initial values from our own generator
        if parameter.ndim > 1:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        clean = MODEL.sequences[torch.multinomial(MODEL.data_law, 128, replacement=True, generator=g)]
        noisy = scheduler.add_noise(clean, 0.1 + 0.9 * float(torch.rand(1, generator=g)), g)
        masked = noisy == MASK
        loss = torch.nn.functional.cross_entropy(model(noisy).logits[masked], clean[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), scheduler


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedDiffusionScheduler(-1), "mask_token_id: got -1"),
        (lambda: MaskedDiffusionScheduler(3, num_inference_steps=0), "num_inference_steps: got 0"),
        (lambda: MaskedDiffusionScheduler(3, 4).index_for_timestep(0.6), "timestep: got 0.6"),
        (lambda: MaskedDiffusionScheduler(3).add_noise(torch.zeros(1, 1).long(), 1.5), "t: got 1.5"),
        (lambda: MaskedDenoiser(3, 4, width=10, heads=4), "width: got 10"),
        (lambda: small()(torch.zeros(1, 9).long()), "tokens: got 9 positions"),
        (lambda: pipeline()(output_type="text"), "output_type: got 'text'"),
        (lambda: pipeline(lambda x: x)(), "length: not given"),
        (lambda: pipeline()(tokens=torch.zeros(2, 3).long(), batch_size=3), "tokens: got 2 rows"),
        (lambda: pipeline()(tokens=torch.zeros(2, 3).long(), length=4), "tokens: got shape"),
        (lambda: pipeline()(batch_size=2, generator=[generator()]), "generator: got a list of 1 for 2 rows"),
        (
            lambda: pipeline(lambda x: torch.full((*x.shape, 3), math.nan))(length=2, num_inference_steps=1),
            "not a number",
        ),
        (lambda: pipeline(lambda x: torch.zeros(1, 3))(length=2), "model_output and sample: got shapes"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

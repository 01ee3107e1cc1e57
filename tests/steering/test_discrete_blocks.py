"""Steering diffusers' LLaDA2 pipeline against an enumerated sampler: two blocks of two positions, two tokens."""

import itertools
import math

import pytest
import torch

from feynkac.fkc.testing import ZTest
from feynkac.steering import FKSteering, SoftValueGuidance
from feynkac.steering.errors import SteeringError
from feynkac.steering.testing import EnumeratedMaskedModel, total_variation

diffusers = pytest.importorskip("diffusers")
LLaDA2Pipeline = pytest.importorskip("diffusers", minversion="0.38").LLaDA2Pipeline
from feynkac.steering.discrete import steer_blocks  # noqa: E402

L, BLOCK, MASK = 4, 2, 2


def energy(x):
    a, b, c, d = x.double().unbind(dim=1)
    return 0.9 * (a == b) - 0.7 * (b == c) + 0.5 * (c == d) + 0.4 * a - 0.3 * b + 0.2 * c - 0.6 * d


MODEL = EnumeratedMaskedModel(log_weight=energy, length=L, vocab_size=2)


def reward(tokens):
    """Ones, and one more if the ends differ; on the way of what there is."""
    return (tokens == 1).sum(dim=1).double() + (tokens[:, 0] != tokens[:, -1]).double()


class Exact(diffusers.ModelMixin):
    """Logits of the enumerated model for any number of leading positions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", MODEL.marginals.log())

    def forward(self, tokens, attention_mask=None, position_ids=None):
        padded = torch.nn.functional.pad(tokens, (0, L - tokens.shape[1]), value=MASK)
        logits = self.table[MODEL.state_index(padded)][:, : tokens.shape[1]]
        return type("Output", (), {"logits": logits})


def refine(law, block):
    """One step of the pipeline: of the tokens drawn for a block, the one of highest probability is committed."""
    after = torch.zeros_like(law)
    for index in law.nonzero().flatten().tolist():
        state = MODEL.states[index]
        places = [i for i in range(block * BLOCK, (block + 1) * BLOCK) if state[i] == MASK]
        for tokens in itertools.product(range(2), repeat=len(places)):
            shares = [float(MODEL.marginals[index, i, token]) for i, token in zip(places, tokens, strict=True)]
            best = max(range(len(places)), key=lambda j: shares[j])
            then = state.clone()
            then[places[best]] = tokens[best]
            after[MODEL.state_index(then[None])] += law[index] * math.prod(shares)
    return after


def exact_law():
    law = MODEL.start
    for block in range(L // BLOCK):
        for _ in range(BLOCK):
            law = refine(law, block)
    return law[MODEL.clean_states]


LAW = exact_law()
TILT = {scale: float((LAW * (scale * reward(MODEL.sequences)).exp()).sum()) for scale in (0.4, 1.0, 2.0)}


def generate(*controls, particles, populations=1, seed=0, **call):
    pipe = LLaDA2Pipeline(Exact(), diffusers.BlockRefinementScheduler(block_length=BLOCK))
    pipe.set_progress_bar_config(disable=True)
    options = {"block_length": BLOCK, "num_inference_steps": BLOCK, "temperature": 1.0, "threshold": 2.0}
    return steer_blocks(
        pipe, *controls, input_ids=torch.zeros(populations, 0, dtype=torch.int64), particles=particles, seed=seed,
        gen_length=L, mask_token_id=MASK, generator=torch.Generator().manual_seed(seed), **{**options, **call},
    )  # fmt: skip


def laws(sequences, run):
    index = MODEL.sequence_index(sequences).reshape(run.weights.shape)
    return torch.zeros(len(index), 2**L, dtype=torch.float64).scatter_add(1, index, run.weights)


def test_the_plain_pipeline_has_the_enumerated_law():
    assert float(LAW.sum()) == pytest.approx(1.0)
    sequences, run = generate(particles=20_000)
    counts = 20_000 * laws(sequences, run)[0]
    statistic = float(((counts - 20_000 * LAW).square() / (20_000 * LAW)).sum())
    assert statistic < 15 + 5 * math.sqrt(30)
    assert float(((counts - 20_000 * MODEL.data_law).square() / (20_000 * MODEL.data_law)).sum()) > 200


@pytest.mark.parametrize(("potential", "scale"), [("difference", 1.0), ("max", 0.4)])  # max has heavy tails at 1
def test_evidence_and_law_of_the_steered_pipeline(potential, scale):
    control = FKSteering(reward, scale, potential=potential, on="tokens")
    sequences, run = generate(control, particles=200, populations=100, ess_threshold=1.1)
    evidence = run.log_evidence.exp()
    test = ZTest.from_samples(evidence, TILT[scale])
    assert test.passed, str(test)
    target = LAW * (scale * reward(MODEL.sequences)).exp() / TILT[scale]
    pooled = (evidence[:, None] * laws(sequences, run)).sum(dim=0) / evidence.sum()
    assert total_variation(pooled, target) < 0.02
    assert total_variation(LAW, target) > 0.05
    assert any(ancestors is not None for ancestors in run.ancestors)


def test_small_populations_are_unbiased():
    _, run = generate(FKSteering(reward, 2.0, on="tokens"), particles=4, populations=3000, ess_threshold=0.9)
    test = ZTest.from_samples(run.log_evidence.exp(), TILT[2.0])
    assert test.passed, str(test)


@pytest.mark.slow
def test_rows_without_their_context_would_be_noticed(monkeypatch):
    """Negative control: only the block at work is exchanged, as a hook in the scheduler would have to do it."""
    from feynkac.steering.discrete import blocks

    whole = blocks._BlockController.on_step_end

    def block_only(self, pipe, step, timestep, tensors):
        out = whole(self, pipe, step, timestep, tensors)
        if out:
            kept = tensors["block_x"].clone()
            kept[:, -BLOCK:] = out["block_x"][:, -BLOCK:]
            out = {"block_x": kept}
        return out

    monkeypatch.setattr(blocks._BlockController, "on_step_end", block_only)
    _, run = generate(FKSteering(reward, 2.0, on="tokens"), particles=16, populations=2000, ess_threshold=0.9)
    assert not ZTest.from_samples(run.log_evidence.exp(), TILT[2.0]).passed


@pytest.mark.parametrize(
    ("controls", "call", "message"),
    [
        ((), {"temperature": 0.0}, "temperature: got 0.0"),
        ((), {"sampling_method": "greedy"}, "no greedy"),
        ((), {"eos_early_stop": True}, "eos_early_stop: set by"),
        ((SoftValueGuidance(reward, 1.0, 2, on="tokens"),), {}, "candidates"),
    ],
)
def test_what_would_couple_rows_is_refused(controls, call, message):
    with pytest.raises(SteeringError, match=message):
        generate(*controls, particles=2, **call)

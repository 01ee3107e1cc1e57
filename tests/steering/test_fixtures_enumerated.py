"""The enumerated masked-diffusion model: every number of its tables."""

import math

import pytest
import torch

from feynkac.steering.testing import (
    EnumeratedMaskedModel,
    best_of_n_law,
    entropy,
    greedy_value_law,
    kl_divergence,
    soft_value_pair_law,
    total_variation,
    twos_and_ends,
)

MODEL = EnumeratedMaskedModel()
REWARD = twos_and_ends(MODEL.sequences)
SAMPLER_LAW_TEXT = """
000 .0663485488 001 .0575429712 002 .0702158550 010 .0285713154 011 .0483850521 012 .0421869250 020 .0284212642
021 .0343873240 022 .0586640924 100 .0297183376 101 .0261073901 102 .0315843143 110 .0348187471 111 .0596702511
112 .0518211114 120 .0208922200 121 .0257047689 122 .0434893346 200 .0220366914 201 .0191861292 202 .0236258069
210 .0155692974 211 .0265971902 212 .0233841239 220 .0257836699 221 .0314478105 222 .0538394574
"""
SAMPLER_LAW = SAMPLER_LAW_TEXT.split()
TILTS = {  # Z, log Z, E*r, P*(022), KL
    0.5: (2.5435801513, 0.9335725970, 2.08803422, 0.10336384, 0.110445),
    1.0: (7.8927541348, 2.0659451405, 2.41947700, 0.14928880, 0.353532),
    2.0: (108.6895460965, 4.6884956174, 2.77284283, 0.21774665, 0.857190),
}


def test_law_of_the_sampler():
    names = ["".join(map(str, row)) for row in MODEL.sequences.tolist()]
    assert names == SAMPLER_LAW[::2]
    assert MODEL.sampler_law.tolist() == pytest.approx([float(p) for p in SAMPLER_LAW[1::2]], abs=6e-11)
    assert total_variation(MODEL.sampler_law, MODEL.data_law) == pytest.approx(0.023586, abs=6e-7)
    assert float(MODEL.sampler_law @ REWARD) == pytest.approx(1.62723821, abs=6e-9)


def test_transition_matrices_are_stochastic_and_absorbing():
    for matrix in MODEL.transitions:
        assert matrix.sum(dim=1).numpy() == pytest.approx(1.0, abs=1e-14)
        assert torch.equal(matrix[MODEL.clean_states][:, MODEL.clean_states], torch.eye(27).double())
    after = MODEL.transitions[-1].sum(dim=0) > 0
    assert after.nonzero()[:, 0].tolist() == MODEL.clean_states.tolist()  # the last step leaves no mask


def test_one_position_a_step_would_sample_the_data_law():
    """With a single position the independence of the revealed tokens costs nothing."""
    single = EnumeratedMaskedModel(log_weight=lambda x: 0.7 * x[:, 0].double(), length=1)
    assert single.sampler_law.numpy() == pytest.approx(single.data_law.numpy(), abs=1e-15)


@pytest.mark.parametrize("scale", TILTS)
def test_tilts(scale):
    tilt = MODEL.tilted(twos_and_ends, scale)
    z, log_z, reward, share, kl = TILTS[scale]
    assert (tilt.evidence, tilt.log_evidence) == pytest.approx((z, log_z), abs=6e-11 * max(1.0, z))
    index = int(MODEL.sequence_index(torch.tensor([[0, 2, 2]])))
    assert (tilt.reward, float(tilt.law[index])) == pytest.approx((reward, share), abs=6e-9)
    assert tilt.kl == pytest.approx(kl, abs=6e-7)
    assert kl_divergence(tilt.law, MODEL.sampler_law) == pytest.approx(tilt.kl, abs=1e-12)


@pytest.mark.parametrize("scale", TILTS)
def test_exact_values_lead_to_the_tilted_law(scale):
    """h_0 = Z, and the chain twisted by h samples the target exactly."""
    values = MODEL.values(twos_and_ends, scale)
    assert float(values[0, -1]) == pytest.approx(TILTS[scale][0], rel=1e-10)
    law = MODEL.start
    for k, matrix in enumerate(MODEL.transitions):
        ratio = torch.where(values[k][:, None] > 0, values[k + 1] / values[k][:, None], 0.0)
        law = law @ (matrix * ratio)
    assert law[MODEL.clean_states].numpy() == pytest.approx(MODEL.tilted(twos_and_ends, scale).law.numpy(), abs=1e-14)


@pytest.mark.parametrize(
    ("n", "reward", "kl"),
    [
        (2, 2.18407362, 0.174819),
        (4, 2.58877221, 0.569340),
        (8, 2.85244345, 1.038618),
        (20, 2.99173926, 1.492758),
    ],
)
def test_best_of_n(n, reward, kl):
    law = best_of_n_law(MODEL.sampler_law, REWARD, n)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-13)
    assert float(law @ REWARD) == pytest.approx(reward, abs=6e-9)
    assert kl_divergence(law, MODEL.sampler_law) == pytest.approx(kl, abs=6e-7)


@pytest.mark.parametrize(
    ("candidates", "reward", "best", "nats"),
    [
        (1, 1.62723821, 0.213224, 3.2124),
        (2, 2.46502251, 0.588004, 2.7450),
        (5, 2.93592970, 0.937318, 1.7807),
        (20, 2.99864656, 0.998647, 1.4968),
        (100, 2.99999998, 1.000000, 1.4843),
    ],
)
def test_greedy_value_guidance(candidates, reward, best, nats):
    law = greedy_value_law(MODEL, twos_and_ends, candidates)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(law @ REWARD) == pytest.approx(reward, abs=2e-8)
    assert float(law[REWARD == 3].sum()) == pytest.approx(best, abs=6e-7)
    assert entropy(law) == pytest.approx(nats, abs=6e-5)


@pytest.mark.parametrize(
    ("scale", "reward", "distance", "base"), [(1, 2.04325573, 0.189002, 0.329391), (2, 2.26621511, 0.330279, 0.578212)]
)
def test_soft_value_guidance_with_two_children(scale, reward, distance, base):
    law, target = soft_value_pair_law(MODEL, twos_and_ends, scale), MODEL.tilted(twos_and_ends, scale).law
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-13)
    assert float(law @ REWARD) == pytest.approx(reward, abs=6e-9)
    assert total_variation(law, target) == pytest.approx(distance, abs=6e-7)
    assert total_variation(MODEL.sampler_law, target) == pytest.approx(base, abs=6e-7)


def test_best_of_one_changes_nothing_and_bad_counts_are_refused():
    assert best_of_n_law(MODEL.sampler_law, REWARD, 1).numpy() == pytest.approx(MODEL.sampler_law.numpy(), abs=1e-16)
    with pytest.raises(ValueError, match="n: got 0"):
        best_of_n_law(MODEL.sampler_law, REWARD, 0)


def test_entropy_and_divergence_at_zero():
    law = torch.tensor([1.0, 0.0]).double()
    assert entropy(law) == 0.0
    assert kl_divergence(law, torch.tensor([0.5, 0.5]).double()) == pytest.approx(math.log(2))

"""Seeds: children of one seed never share a CPU stream, and generators restart where they were."""

import pytest
import torch

from feynkac.fkc import Stream, Streams, generator_for, normal, split_seed, uniform


def test_children_of_one_seed_differ_in_the_32_bits_that_the_cpu_generator_reads():
    for seed in (0, 1, 2**63 + 5, -3):
        children = [split_seed(seed, p, s) for p in range(20_000) for s in (0, 1)]
        assert len({c & 0xFFFFFFFF for c in children}) == len(children)
        assert all(0 <= c < 2**63 for c in children)


def test_the_premise_the_cpu_generator_ignores_the_high_bits():
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + (7 << 32))
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


def test_neighbouring_seeds_and_indices_give_unrelated_numbers():
    draws = torch.stack(
        [torch.randn(2000, generator=generator_for(s, p, t)) for s in (0, 1) for p in (0, 1) for t in Stream]
    )
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / 2000**0.5


def test_out_of_range():
    with pytest.raises(ValueError, match="index"):
        split_seed(0, -1)
    with pytest.raises(ValueError, match="stream"):
        split_seed(0, 0, 2)


def test_a_population_draws_from_its_own_generator():
    streams = Streams.from_seed(3, 4)
    together = normal(streams.noise, (5, 2))
    alone = normal(Streams.from_seed(3, 1, first=2).noise, (5, 2))
    assert torch.equal(together[2], alone[0])
    assert uniform(streams.resampling, (3,), dtype=torch.float32).dtype == torch.float32


def test_state_round_trip():
    streams = Streams.from_seed(9, 2)
    normal(streams.noise, (7,))
    restored = Streams.from_state_dict(streams.state_dict())
    assert torch.equal(normal(streams.noise, (7,)), normal(restored.noise, (7,)))
    assert torch.equal(uniform(streams.resampling, (7,)), uniform(restored.resampling, (7,)))

"""Two modes through 20 DDIM(eta=1) steps: the sampler's law by quadrature."""

import pytest
import torch

from feynkac.steering.schedulers import rule_for
from feynkac.steering.testing import kernel_law, kernel_quadrature, mixture_posterior_mean

diffusers = pytest.importorskip("diffusers")
TABLE = {0.5: (0.940148, 0.811703, 0.253426), 1.0: (1.368621, 0.948852, 0.849339)}  # mean, P(x > 0), log Z


def levels():
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(20)
    return rule_for(scheduler).levels(scheduler)


def law(n_points):
    modes = mixture_posterior_mean((0.5, 0.5), (-1.5, 1.5), (0.3, 0.3))
    return kernel_quadrature(levels(), modes, eta=1.0, n_points=n_points)


def identity(x):
    return x


@pytest.mark.parametrize("n_points", [2001, pytest.param(8001, marks=pytest.mark.slow)])
def test_numbers_of_the_table(n_points):
    found = law(n_points)
    assert float(found.probabilities.sum()) == pytest.approx(1.0, abs=1e-9)
    assert found.mean(torch.square) == pytest.approx(2.194742, abs=6e-7)
    for scale, (mean, share, log_z) in TABLE.items():
        tilted, found_log_z = found.tilted(identity, scale)
        assert (tilted.mean(identity), found_log_z) == pytest.approx((mean, log_z), abs=6e-7)
        # a step function converges with the spacing only
        assert tilted.mean(lambda x: (x > 0).double()) == pytest.approx(share, abs=6e-7 * (8001 / n_points) ** 2)


def test_a_single_mode_agrees_with_the_closed_form():
    quadrature = kernel_quadrature(levels(), mixture_posterior_mean((1.0,), (0.5,), (0.8,)), eta=1.0, n_points=2001)
    chain = kernel_law(levels(), mean=0.5, std=0.8, eta=1.0)
    assert quadrature.mean(identity) == pytest.approx(chain.mean, abs=1e-9)
    assert quadrature.mean(lambda x: (x - chain.mean).square()) == pytest.approx(chain.variance, abs=1e-9)


def test_too_coarse_a_grid_is_refused():
    with pytest.raises(ValueError, match="n_points"):
        law(501)

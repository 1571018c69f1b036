"""Schedules are those of diffusers, and other samplers and parameterizations are refused."""

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.diffusers_models import T

from lightning_ddpm.diffusion import (
    Ancestral,
    Cosine,
    Epsilon,
    FixedSmall,
    Linear,
    PosteriorMean,
    Quadratic,
    Sigmoid,
)
from lightning_ddpm.interop.diffusers.scheduler import check_outputs, choose_variance, make_scheduler_config
from lightning_ddpm.utils.errors import UserError


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (Linear(1000), {"beta_schedule": "linear"}),
        (Quadratic(1000), {"beta_schedule": "scaled_linear"}),
        (Cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
        (Sigmoid(1000), {"beta_schedule": "sigmoid"}),
    ],
    ids=str,
)
def test_schedules_are_those_of_diffusers(schedule, settings):
    theirs = DDPMScheduler(**settings)
    torch.testing.assert_close(schedule.beta[1:], theirs.betas.double(), rtol=2e-4, atol=1e-8)
    torch.testing.assert_close(schedule.alpha_bar[1:], theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-9)


class OwnSampler(Ancestral):
    pass


class OwnVariance(FixedSmall):
    pass


@pytest.mark.parametrize(
    ("parameterization", "variance", "message"),
    [
        (PosteriorMean(), FixedSmall(), "has the parameterizations Epsilon, X0, Velocity only, .* has PosteriorMean"),
        (Epsilon(), OwnVariance(), "has the variances FixedSmall, FixedLarge, LearnedRange only, .* has OwnVariance"),
    ],
)
def test_parameterizations_and_variances_that_diffusers_lacks_are_refused(parameterization, variance, message):
    with pytest.raises(UserError, match=message):
        make_scheduler_config(Cosine(T), parameterization, variance)


def test_samplers_that_diffusers_lacks_are_refused():
    message = "has Ancestral sampling only, and the checkpoint's sampler is OwnSampler.*give --variance fixed_small"
    with pytest.raises(UserError, match=message):
        choose_variance(OwnSampler(FixedSmall()), 1)


def test_output_channels_that_do_not_match_the_variance_are_refused():
    message = (
        "2 times the images' channels and the variance is fixed_small; diffusers expects 2 times with learned_range"
    )
    with pytest.raises(UserError, match=message):
        check_outputs("fixed_small", 2)

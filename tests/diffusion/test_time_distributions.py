"""Distributions of the training time: their density, on continuous paths and on noise schedules, and bad arguments."""

import math

import pytest
import torch
from torch import Tensor

from lightning_ddpm.diffusion import (
    Cosine,
    GaussianPath,
    LogitNormal,
    LogNormal,
    RectifiedFlow,
    TimestepSampler,
    UniformLambda,
    UniformTimesteps,
    VarianceExploding,
)
from lightning_ddpm.utils.errors import UserError

N = 20_000


def sample(timesteps: TimestepSampler, path: GaussianPath) -> Tensor:
    timesteps.setup(path)
    t, weights = timesteps.sample(N, torch.Generator().manual_seed(0))
    assert (weights == 1).all()
    assert weights.shape == t.shape == (N,)
    assert t.dtype == (torch.long if isinstance(path, Cosine) else torch.float32)
    assert 1 <= t.min() <= t.max() <= path.T
    assert not timesteps.state_dict()
    return t


def check_quantiles(values: Tensor, expected: torch.distributions.Distribution, error: float = 0.0) -> None:
    """Check that the values have the distribution, by the Kolmogorov-Smirnov statistic and an error beside it."""
    ordered = values.double().sort().values
    empirical = torch.arange(1, N + 1) / N
    assert (expected.cdf(ordered) - empirical).abs().max() < 1.95 / math.sqrt(N) + error


def test_lognormal_is_edms_distribution_of_the_noise_level() -> None:
    for path, error in ((VarianceExploding(), 0.0), (RectifiedFlow(), 0.0), (Cosine(), 0.01)):
        t = sample(LogNormal(), path)
        check_quantiles((path.noise_at(t) / path.signal_at(t)).log(), torch.distributions.Normal(-1.2, 1.2), error)


def test_logitnormal_is_stable_diffusion_3s_distribution_of_the_time() -> None:
    for path, error in ((RectifiedFlow(), 0.0), (Cosine(), 0.01)):
        t = sample(LogitNormal(0.5, 0.8), path).double() / path.T
        check_quantiles(t.clamp(max=1 - 1e-6).logit(), torch.distributions.Normal(0.5, 0.8), error)


def test_uniform_lambda_and_uniform_time() -> None:
    path = VarianceExploding()
    t = sample(UniformLambda(), path)
    log_sigma = (path.noise_at(t) / path.signal_at(t)).log()
    check_quantiles(log_sigma, torch.distributions.Uniform(math.log(0.002) - 1e-4, math.log(80) + 1e-4))
    check_quantiles(sample(UniformTimesteps(), path), torch.distributions.Uniform(1.0, 1000.0))


@pytest.mark.parametrize("timesteps", [LogNormal(), LogitNormal(0.5, 0.8), UniformLambda(), UniformTimesteps()])
@pytest.mark.parametrize("path", [VarianceExploding(), Cosine()], ids=repr)
def test_the_times_of_validation_are_strata_of_those_of_training(
    timesteps: TimestepSampler, path: GaussianPath
) -> None:
    trained = sample(timesteps, path).double().sort().values
    for n in (1, 64):
        strata = timesteps.stratify(path, n, torch.Generator().manual_seed(1))
        assert strata.shape == (n,)
        assert 1 <= strata.min() <= strata.max() <= path.T
    edges = trained[torch.arange(1, 64) * N // 64]
    strata, tolerance = strata.double(), 0.02 * path.T
    assert (strata[:-1] <= edges + tolerance).all(), "one in each part of equal probability"
    assert (strata[1:] >= edges - tolerance).all()


@pytest.mark.parametrize("kind", [LogNormal, LogitNormal])
def test_invalid_arguments_are_refused(kind: type[LogNormal | LogitNormal]) -> None:
    for mean, std in ((0.0, 0.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(UserError, match=f"{kind.__name__} needs a finite mean and 0 < std"):
            kind(mean, std)

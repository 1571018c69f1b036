"""Gaussian paths: their coefficients by hand, what they share with each other, and what is refused on which."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.known_data import ONE, TWO, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    EDM,
    VLB,
    X0,
    ContinuousPath,
    Cosine,
    Denoiser,
    EDMHeun,
    Epsilon,
    EulerMaruyama,
    FixedSmall,
    FlowVelocity,
    GaussianPath,
    Hybrid,
    Linear,
    LossAwareTimesteps,
    Parameterization,
    PosteriorMean,
    RectifiedFlow,
    UniformLambda,
    VarianceExploding,
    Velocity,
    elbo,
    q_sample,
)
from lightning_ddpm.diffusion.process import to_path_scale
from lightning_ddpm.diffusion.samplers.ode import exact_divergence, flow_log_likelihood
from lightning_ddpm.utils.errors import UserError

FLOW, EXPLODING = RectifiedFlow(), VarianceExploding()
CONTINUOUS = [EXPLODING, FLOW, VarianceExploding(0.01, 20, rho=3, steps=50)]
PARAMETERIZATIONS = [FlowVelocity(), Velocity(), X0(), PosteriorMean(), Epsilon(), EDM(0.7)]
every_continuous_path = pytest.mark.parametrize("path", CONTINUOUS, ids=repr)


def test_the_coefficients_are_those_of_the_papers() -> None:
    x_0, eps = randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([1.0, 333.25, 1000.0], dtype=torch.float64)
    u = t.view(-1, 1, 1, 1) / 1000
    on_the_line = to_path_scale(FLOW, q_sample(FLOW, x_0, t, eps), t)
    torch.testing.assert_close(on_the_line, (1 - u) * x_0 + u * eps, rtol=0, atol=1e-12)
    first, last = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = (last + (1000 - t.view(-1, 1, 1, 1)) / 999 * (first - last)) ** 7  # Karras et al., eq. 5 with i = T - t
    noisy = to_path_scale(EXPLODING, q_sample(EXPLODING, x_0, t, eps), t)
    torch.testing.assert_close(noisy, x_0 + sigma * eps, rtol=1e-12, atol=1e-12)
    assert to_path_scale(Cosine(), x_0, t) is x_0


@every_continuous_path
def test_a_continuous_path_runs_from_the_data_to_noise_and_time_inverts_it(path: ContinuousPath) -> None:
    t = torch.linspace(0, path.T, 401, dtype=torch.float64)
    angle = path.angle_at(t)
    assert (angle.diff() > 0).all()
    torch.testing.assert_close(path.time_at(angle), t, rtol=0, atol=1e-9)
    assert (path.signal_at(0), path.noise_at(0), path.scale_at(0)) == (1, 0, 1)
    for whole in (0, 1, path.T):
        for at in (path.signal_at, path.noise_at, path.alpha_bar_at, path.scale_at):
            assert at(whole) == at(torch.tensor([whole]))[0] == at(torch.tensor([float(whole)]))[0]
    torch.testing.assert_close(path.signal_at(t) ** 2 + path.noise_at(t) ** 2, torch.ones_like(t))
    product = torch.stack([1 - path.beta_at(each) for each in range(1, 11)]).prod()
    torch.testing.assert_close(product, path.alpha_bar_at(10))


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
@pytest.mark.parametrize("path", [*CONTINUOUS, Linear(1000)], ids=repr)
def test_every_parameterization_on_every_path_gives_the_same_x_0_and_eps(
    path: GaussianPath, parameterization: Parameterization
) -> None:
    refused = (Epsilon, EDM) if path is FLOW else EDM if isinstance(path, Linear) else ()
    if isinstance(parameterization, refused):
        with pytest.raises(UserError, match=rf"{type(parameterization).__name__} .*(Velocity|X0)"):
            Denoiser(lambda x, t: x, path, None, parameterization)
        return
    denoise = TWO.denoiser_for(path, parameterization)
    x, last = randn(8, 1, 1, 2, dtype=torch.float64), path.T
    for t in (1, 2, last // 2, torch.tensor([last / 3] * 8, dtype=torch.float64), last - 1, last):
        x_0, eps = denoise(x, t)
        time = t if isinstance(t, Tensor) else torch.tensor([t] * 8)
        torch.testing.assert_close(x_0, TWO.x_0(path, x, time), rtol=0, atol=1e-10)
        torch.testing.assert_close(eps, TWO.eps(path, x, time), rtol=0, atol=1e-10)


def test_paths_of_the_same_marginals_give_the_same_samples_at_matched_times() -> None:
    chain, sampler = Cosine(1000), DDIM(None)
    x = randn(16, 1, 1, 2, dtype=torch.float64)
    angles = FLOW.angle_at(torch.linspace(960, 1, 25, dtype=torch.float64))
    ends = []
    for path, parameterization in ((FLOW, FlowVelocity()), (chain, Epsilon()), (EXPLODING, EDM(0.5))):
        denoise, x_t = TWO.denoiser_for(path, parameterization), x
        times = path.time_at(angles)
        for t, s in pairwise(times):
            x_t = sampler.step(denoise, x_t, t, s, torch.randn_like)  # type: ignore[arg-type]
        ends.append(x_t)
    assert (ends[0] - x).abs().max() > 0.5
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-10)


def test_the_likelihood_by_the_flow_is_the_density_of_the_data_on_every_path() -> None:
    x = torch.tensor([[0.3, -0.2], [0.6, -0.1], [-0.3, -0.5]], dtype=torch.float64).reshape(3, 1, 1, 2)
    # x is taken to be x_1, whose noise blurs the density, and x_T to be pure noise, which it is not at sigma_max = 80
    for path in (FLOW, VarianceExploding(1e-3, 1e4)):
        found = flow_log_likelihood(ONE.denoiser_for(path, FlowVelocity()), x, exact_divergence, tolerance=1e-6)
        torch.testing.assert_close(found, ONE.log_density(x), rtol=0, atol=2e-4)


@pytest.mark.parametrize("path", [FLOW, EXPLODING, Cosine(1000)], ids=repr)
def test_the_likelihood_does_not_depend_on_what_an_exact_network_predicts(path: GaussianPath) -> None:
    x, found = torch.tensor([[0.3, -0.2], [0.6, -0.1]], dtype=torch.float64).reshape(2, 1, 1, 2), {}
    for parameterization in PARAMETERIZATIONS:
        try:
            denoise = TWO.denoiser_for(path, parameterization)
        except UserError:
            continue
        found[str(parameterization)] = flow_log_likelihood(denoise, x, exact_divergence, tolerance=1e-3)
    assert len(found) == (4 if path is FLOW else 6 if path is EXPLODING else 5)
    for value in found.values():
        torch.testing.assert_close(value, found["FlowVelocity"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [FLOW, EXPLODING], ids=repr)
def test_what_belongs_to_a_discrete_chain_is_refused_by_name(path: ContinuousPath) -> None:
    x_0, t = torch.zeros(2, 1, 2, 2), torch.tensor([1, 2])
    denoise = Denoiser(lambda x, t: torch.cat([x, x], 1), path, None, Velocity())
    refused = rf"discrete steps, and {type(path).__name__} is continuous; take a NoiseSchedule"
    for objective in (VLB(FixedSmall()), Hybrid()):
        with pytest.raises(UserError, match=refused):
            objective.losses(denoise, x_0, t, x_0)
    with pytest.raises(UserError, match=refused):
        elbo(denoise, FixedSmall(), x_0)
    with pytest.raises(UserError, match="LossAwareTimesteps.*" + refused):
        LossAwareTimesteps().setup(path)


def test_what_needs_signal_at_the_end_is_refused_on_a_flow() -> None:
    denoise, x_T = TWO.denoiser_for(FLOW, FlowVelocity()), randn(2, 1, 1, 2, dtype=torch.float64)
    with pytest.raises(UserError, match=r"infinite where RectifiedFlow ends .*Heun, DPMSolverPP or DDIM"):
        EDMHeun().sample(denoise, x_T)
    with pytest.raises(UserError, match="reverse SDE cannot start"):
        EulerMaruyama(10).sample(denoise, x_T)
    with pytest.raises(UserError, match="finite lambda at T, and RectifiedFlow ends without signal"):
        UniformLambda().setup(FLOW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 80.0), "0 < sigma_min < sigma_max"), ((2.0, 1.0), "got 2.0, 1.0 and 7"), ((0.1, math.inf), "all finite")],
)
def test_invalid_noise_levels_are_refused(arguments: tuple[float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VarianceExploding(*arguments)
    with pytest.raises(UserError, match="RectifiedFlow divides time into 2 to 1,000,000 steps, got steps=1"):
        RectifiedFlow(1)

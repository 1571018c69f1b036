"""Training objectives: their weights against the papers', and finite gradients at both ends of every schedule."""

import itertools
import math
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model, tiny_network
from torch import Tensor

from lightning_ddpm import diffusion
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    P2,
    VLB,
    X0,
    AlphaBarFunction,
    Ancestral,
    Cosine,
    Denoiser,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    FlowVelocity,
    FlowWeight,
    Hybrid,
    LearnedRange,
    Linear,
    LossAwareTimesteps,
    MinSNR,
    NoiseSchedule,
    Objective,
    Parameterization,
    PosteriorMean,
    Quadratic,
    RectifiedFlow,
    Sigmoid,
    Simple,
    SimpleWeighted,
    SNRWeight,
    TruncatedSNR,
    UniformTimesteps,
    Velocity,
    ZeroTerminalSNR,
    elbo_term,
    q_sample,
)
from lightning_ddpm.diffusion import losses as losses_module
from lightning_ddpm.diffusion.losses import simple_loss
from lightning_ddpm.diffusion.process import snr
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError

PARAMETERIZATIONS = [Epsilon(), X0(), Velocity(), PosteriorMean()]
WEIGHTS = [MinSNR(), P2(), TruncatedSNR()]
OBJECTIVES = [
    Simple(),
    *map(SimpleWeighted, WEIGHTS),
    VLB(FixedLarge()),
    VLB(FixedSmall()),
    VLB(LearnedRange()),
    Hybrid(),
]
CUSTOM = [ExplicitBetas([0.3, 1e-6, 0.9]), ExplicitBetas([1e-6, 1e-4]), AlphaBarFunction(lambda time: 1 - time)]
ZERO_TERMINAL_SNR = [ZeroTerminalSNR(each) for each in (Linear(1000), Cosine(1000), Cosine(2), *CUSTOM)]
every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)


def make_batch(b: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x_0, eps = torch.randn(2, b, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return (x_0 / 3).clamp(-1, 1), eps


def predict(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return an arbitrary (x^_0, eps^) that gives x_t."""
    signal, noise = (table[t].view(-1, 1, 1, 1).to(x_t.dtype) for table in (LINEAR.signal, LINEAR.noise))
    x_0 = torch.tanh(x_t.roll(1, -1))
    return x_0, (x_t - signal * x_0) / noise


LINEAR = Linear(50, 1e-3, 0.2)


def build_denoiser(parameterization: Parameterization) -> Denoiser:
    """Return a denoiser with the predictions of :func:`predict` for any parameterization of the network."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return parameterization.target(LINEAR, *predict(x_t, t), t)

    return Denoiser(network, LINEAR, None, parameterization)


def squared_errors(x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of x^_0 and eps^."""
    x_0_hat, eps_hat = predict(q_sample(LINEAR, x_0, t, eps), t)
    return (x_0_hat - x_0).square().flatten(1).mean(1), (eps_hat - eps).square().flatten(1).mean(1)


# ---- L_simple --------------------------------------------------------------------------------------------------------


def test_simple_loss_is_the_mean_square_over_the_pixels_of_each_image() -> None:
    eps, eps_hat = torch.randn(2, 5, 3, 4, 4).unbind(0)
    expected = [((eps_hat[i] - eps[i]) ** 2).sum().item() / (3 * 4 * 4) for i in range(5)]
    assert simple_loss(eps, eps_hat).tolist() == pytest.approx(expected, rel=1e-6)


def test_simple_loss_by_hand() -> None:
    eps = torch.tensor([[[[0.0, 0.0]]], [[[1.0, -1.0]]]])
    eps_hat = torch.tensor([[[[3.0, 1.0]]], [[[1.0, -1.0]]]])
    assert simple_loss(eps, eps_hat).tolist() == [5.0, 0.0]


def test_simple_loss_of_an_image_without_values_is_0() -> None:
    mask = torch.tensor([[True, False], [False, False]]).reshape(2, 1, 1, 2)
    output = torch.full((2, 1, 1, 2), 2.0, requires_grad=True)
    loss = simple_loss(torch.zeros(2, 1, 1, 2), output, mask)
    loss.sum().backward()
    assert loss.tolist() == [4, 0]
    assert output.grad is not None
    assert output.grad.flatten().tolist() == [4, 0, 0, 0]


def test_the_gradient_of_simple_loss_is_the_error() -> None:
    eps, eps_hat = torch.randn(2, 2, 1, 3, 3).unbind(0)
    eps_hat = eps_hat.clone().requires_grad_()
    simple_loss(eps, eps_hat).sum().backward()
    torch.testing.assert_close(eps_hat.grad, 2 * (eps_hat.detach() - eps) / 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_simple_loss_is_float32_in_any_precision_of_the_network(dtype: torch.dtype) -> None:
    eps = torch.full((1, 1, 64, 64), 300.0)
    loss = simple_loss(eps, torch.zeros(1, 1, 64, 64, dtype=dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000  # more than float16 holds


def test_the_expected_noise_minimises_simple_loss_at_the_variance_of_eps() -> None:
    # x_0 ~ N(0, 1) => x_t ~ N(0, 1) and E[eps | x_t] = noise_t x_t, which leaves signal_t^2 of eps' variance
    schedule, t, n = Linear(100), 60, 200_000
    x_0, eps = torch.randn(2, n, 1, 1, 1, generator=torch.Generator().manual_seed(0)).unbind(0)
    x_t = q_sample(schedule, x_0, t, eps)
    loss = {factor: simple_loss(eps, factor * schedule.noise[t].float() * x_t).mean() for factor in (0.9, 1.0, 1.1)}
    assert loss[1.0].item() == pytest.approx(schedule.alpha_bar[t].item(), rel=4 * (2 / n) ** 0.5)
    assert loss[1.0] < min(loss[0.9], loss[1.1])


# ---- weights ---------------------------------------------------------------------------------------------------------


@every_parameterization
def test_simple_is_the_squared_error_of_the_output(parameterization: Parameterization) -> None:
    t = torch.arange(1, 51)
    x_0, eps = make_batch(50)
    x_t = q_sample(LINEAR, x_0, t, eps)
    target, output = parameterization.target(LINEAR, x_0, eps, t), parameterization.target(LINEAR, *predict(x_t, t), t)
    losses = Simple().losses(build_denoiser(parameterization), x_0, t, eps)
    torch.testing.assert_close(losses, simple_loss(target, output))
    x_0_error = squared_errors(x_0, t, eps)[0] * parameterization.x_0_factor(LINEAR, t)
    torch.testing.assert_close(losses, x_0_error.float(), rtol=1e-5, atol=0)


@every_parameterization
def test_weighted_losses_are_the_papers_for_every_parameterization(parameterization: Parameterization) -> None:
    t = torch.arange(1, 51)
    x_0, eps = make_batch(50)
    x_0_error, eps_error = squared_errors(x_0, t, eps)
    expected = {
        # Hang et al., eq. 8: min(SNR, 5) on x_0; Choi et al., eq. 8: 1 / (1 + SNR) on eps; Salimans & Ho, section 4
        "min": torch.minimum(snr(LINEAR, t), torch.tensor(5.0)) * x_0_error,
        "p2": eps_error / (1 + snr(LINEAR, t)),
        "max": torch.maximum(x_0_error, eps_error),
    }
    for weight, losses in zip(WEIGHTS, expected.values(), strict=True):
        ours = SimpleWeighted(weight).losses(build_denoiser(parameterization), x_0, t, eps)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, losses.float(), rtol=1e-5, atol=0)


@every_parameterization
def test_the_vlb_has_ho_et_als_weight_and_constant(parameterization: Parameterization) -> None:
    t = torch.arange(2, 51)
    x_0, eps = make_batch(49)
    beta, alpha_bar, alpha_bar_previous = LINEAR.beta[t], LINEAR.alpha_bar[t], LINEAR.alpha_bar[t - 1]
    small = beta * (1 - alpha_bar_previous) / (1 - alpha_bar)
    for variance, sigma2 in ((FixedLarge(), beta), (FixedSmall(), small)):
        weight = beta**2 / (2 * sigma2 * (1 - beta) * (1 - alpha_bar))  # Ho et al., eq. 12
        constant = 0.5 * ((sigma2 / small).log() - 1 + small / sigma2)
        expected = 50 / math.log(2) * (weight * squared_errors(x_0, t, eps)[1] + constant)
        ours = VLB(variance).losses(build_denoiser(parameterization), x_0, t, eps)
        torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-7)


def test_at_t_1_the_vlb_is_the_decoder() -> None:
    t = torch.ones(3, dtype=torch.long)
    x_0, eps = make_batch(3)
    expected = elbo_term(LINEAR, FixedSmall(), x_0, 1, build_denoiser(Epsilon())(q_sample(LINEAR, x_0, t, eps), 1))
    torch.testing.assert_close(VLB(FixedSmall()).losses(build_denoiser(Epsilon()), x_0, t, eps), 50 * expected.float())


def test_hybrid_adds_a_thousandth_of_the_vlb_which_trains_only_the_variance() -> None:
    t = torch.tensor([1, 2, 30, 50])
    x_0, eps = make_batch(4)
    mean, v = (torch.randn(4, 2, 4, 4, dtype=torch.float64).requires_grad_() for _ in range(2))

    def gradients(objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        denoise = Denoiser(lambda x_t, t: torch.cat([mean, v], dim=1), LINEAR, clip=None)
        losses = objective.losses(denoise, x_0, t, eps)
        return losses.detach(), *torch.autograd.grad(losses.sum(), (mean, v), materialize_grads=True)

    simple, vlb, hybrid = map(gradients, (Simple(), VLB(LearnedRange()), Hybrid()))
    torch.testing.assert_close(hybrid[0], simple[0] + 0.001 * vlb[0])
    assert torch.equal(hybrid[1], simple[1])
    assert (simple[2] == 0).all()
    torch.testing.assert_close(hybrid[2], 0.001 * vlb[2], rtol=1e-5, atol=1e-12)
    assert (hybrid[2] != 0).any()


def test_a_learned_variance_converges_to_its_optimum() -> None:
    # If the mean is off by d, the optimal log variance is log(beta~ + d^2), which gradient descent on nu finds.
    t = torch.full((1,), 30)
    x_0, eps = make_batch(1)
    v = torch.zeros(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    denoise = Denoiser(lambda x_t, t: torch.cat([0.9 * eps, v], dim=1), LINEAR, clip=None)
    optimizer = torch.optim.LBFGS([v], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = VLB(LearnedRange()).losses(denoise, x_0, t, eps).double().sum()
        total.backward()
        return total

    optimizer.step(loss)
    x_t = q_sample(LINEAR, x_0, t, eps)
    denoised = denoise(x_t, 30)
    small = FixedSmall().variance(LINEAR, 29, 30)
    x_0_error = LINEAR.signal[29] * LINEAR.beta[30] / (1 - LINEAR.alpha_bar[30])
    optimum = (small + (x_0_error * (denoised.x_0 - x_0)) ** 2).log()
    torch.testing.assert_close(LearnedRange().log_variance(LINEAR, 30, denoised), optimum, rtol=0, atol=1e-2)


def test_the_example_in_the_docstring_is_the_mean_absolute_error() -> None:
    assert losses_module.__doc__ is not None
    example = losses_module.__doc__.split("::\n\n")[1].split("\n\nIn a config")[0]
    namespace = {**vars(diffusion), "Tensor": Tensor}
    exec(textwrap.dedent(example), namespace)
    t = torch.arange(1, 51)
    x_0, eps = make_batch(50)
    _, eps_hat = predict(q_sample(LINEAR, x_0, t, eps), t)
    expected = (eps_hat - eps).abs().flatten(1).mean(1).float()
    torch.testing.assert_close(namespace["L1"]().losses(build_denoiser(Velocity()), x_0, t, eps), expected)


ZERO_WEIGHTS = [MinSNR(), MinSNR(0.1), P2(), P2(0.5, 2.0), TruncatedSNR()]


@pytest.mark.parametrize("weight", ZERO_WEIGHTS, ids=repr)
@pytest.mark.parametrize("schedule", [ZeroTerminalSNR(Linear(10)), ExplicitBetas([0.5, 1 - 1e-16])], ids=["0", "1e-16"])
def test_the_step_that_sampling_starts_from_is_trained(weight: SNRWeight, schedule: NoiseSchedule) -> None:
    """Hang et al.'s code sets the weight of the output's error to 1 where the SNR is 0."""
    t = torch.arange(1, schedule.T + 1)
    for parameterization in (Velocity(), X0()):
        denoise = Denoiser(lambda x_t, t: x_t, schedule, None, parameterization)
        weights = SimpleWeighted(weight).output_weight(denoise, t)
        assert (weights > 0).all()
        if schedule.alpha_bar_T == 0:
            assert weights[-1] == 1
        expected = weight.x_0_weight(snr(schedule, t[:-1])) / parameterization.x_0_factor(schedule, t[:-1])
        torch.testing.assert_close(weights[:-1], expected.float())


@pytest.mark.parametrize(
    ("weight", "arguments"), [(MinSNR, (0.0,)), (MinSNR, (-1.0,)), (P2, (0.0,)), (P2, (1.0, -1.0)), (P2, (math.nan,))]
)
def test_weights_that_train_nothing_or_are_infinite_are_refused(weight: type[SNRWeight], arguments: tuple) -> None:
    with pytest.raises(UserError, match="finite, got"):
        weight(*arguments)


# ---- finite gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_finite_at_both_ends_of_every_schedule(objective: Objective, half: torch.dtype | None) -> None:
    schedules = [Linear(1000), Quadratic(1000), Sigmoid(1000), Cosine(1000), Cosine(4), *CUSTOM, *ZERO_TERMINAL_SNR]
    x_0, eps = make_batch(2, torch.float32)
    for parameterization, schedule in itertools.product(PARAMETERIZATIONS, schedules):
        if isinstance(parameterization, Epsilon) and schedule in ZERO_TERMINAL_SNR:
            continue
        network = torch.nn.Conv2d(2, 4, 3, padding=1)
        outputs = torch.arange(4) if "Learned" in repr(objective) or objective.__class__ is Hybrid else torch.arange(2)

        def network_in_half(x_t: Tensor, t: Tensor, network=network, outputs=outputs) -> Tensor:
            with torch.autocast("cpu", half, enabled=half is not None):
                return network(x_t)[:, outputs]

        t = torch.tensor([1, schedule.T])
        losses = objective.losses(Denoiser(network_in_half, schedule, None, parameterization), x_0, t, eps)
        assert losses.shape == (2,)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all(), (parameterization, schedule)
        # float16 ends at 65504 and the weights of the VLB reach 1e7: GradScaler would lower its scale
        (losses.sum() * (2.0**-16 if half is torch.float16 else 1)).backward()
        assert all(each.grad.isfinite().all() for each in network.parameters()), (parameterization, schedule)


# ---- in the model ----------------------------------------------------------------------------------------------------


def test_the_default_objective_is_ho_et_als_and_has_no_state() -> None:
    model = tiny_model().eval()
    assert (repr(model.parameterization), repr(model.objective), type(model.timesteps)) == (
        "Epsilon",
        "Simple()",
        UniformTimesteps,
    )
    assert all(name.startswith("network.") for name in model.state_dict())
    x_0, eps = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    t = torch.tensor([1, 5, 10, 20])
    expected = simple_loss(eps, model.network(q_sample(model.schedule, x_0, t, eps), t))
    assert torch.equal(model.loss(x_0, t, eps), expected)


def hybrid_model() -> torch.nn.Module:
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), attention=(), blocks=1, groups=4, outputs=2)
    return tiny_model(
        network=network,
        schedule=Cosine(4),
        sampler=Ancestral(LearnedRange()),
        parameterization=Velocity(),
        objective=Hybrid(),
        timesteps=LossAwareTimesteps(history=2),
    )


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch")
def test_a_hybrid_model_trains_and_its_loss_history_is_resumed(tmp_path: Path) -> None:
    model, data = hybrid_model(), ImageDataModule(Digits(), batch_size=16)
    trainer = quiet_trainer(tmp_path, max_steps=3)
    trainer.fit(model, datamodule=data)
    assert model.timesteps.counts.sum() == 48
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = hybrid_model()
    quiet_trainer(tmp_path, max_steps=4).fit(resumed, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.timesteps.counts.sum() == 64
    assert resumed.generate(SampleRequest(2), 0, 2).shape == (2, 1, 8, 8)


def test_building_a_model_checks_the_parameterization_against_the_schedule() -> None:
    with pytest.raises(UserError, match="zero terminal SNR"):
        tiny_model(network=tiny_network(), schedule=ZERO_TERMINAL_SNR[0])


def test_the_flow_weight_makes_x_0s_error_that_of_the_velocity_up_to_its_limit() -> None:
    path, limit = RectifiedFlow(), 0.05
    x_0, eps, output = torch.randn(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([10.0, 50.0, 51.0, 500.0, 1000.0], dtype=torch.float64)

    def predict_velocity(x_t: Tensor, t: Tensor) -> Tensor:
        """Return eps - x_0 = (x_t - x_0) / (t/T) for the same prediction of x_0."""
        return (x_t - output) / (t[:, None, None, None] / 1000)

    weighted = SimpleWeighted(FlowWeight(limit))
    found = weighted.losses(Denoiser(lambda x_t, t: output, path, None, X0()), x_0, t, eps)
    expected = Simple().losses(Denoiser(predict_velocity, path, None, FlowVelocity()), x_0, t, eps)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0], expected[0] * (0.01 / limit) ** 2, rtol=1e-5, atol=0)


def test_a_flow_weight_without_a_limit_is_refused() -> None:
    with pytest.raises(UserError, match=r"limit must lie in \(0, 1\], got 0; Li & He use 0.05"):
        FlowWeight(0)

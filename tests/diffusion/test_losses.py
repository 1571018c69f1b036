"""Objectives and how t is drawn: weights against the papers', gradients at both ends, state that is kept."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model, tiny_network
from torch import Tensor

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
    Hybrid,
    LearnedRange,
    Linear,
    LossAwareTimesteps,
    MinSNR,
    Objective,
    Parameterization,
    PosteriorMean,
    Quadratic,
    Sigmoid,
    Simple,
    SimpleWeighted,
    TruncatedSNR,
    UniformTimesteps,
    Velocity,
    ZeroTerminalSNR,
    elbo_term,
    q_sample,
    simple_loss,
    snr,
)
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError

PREDICTIONS = [Epsilon(), X0(), Velocity(), PosteriorMean()]
WEIGHTS = [MinSNR(), P2(), TruncatedSNR()]
OBJECTIVES = [
    Simple(),
    *map(SimpleWeighted, WEIGHTS),
    VLB(FixedLarge()),
    VLB(FixedSmall()),
    VLB(LearnedRange()),
    Hybrid(),
]
USERS = [ExplicitBetas([0.3, 1e-6, 0.9]), ExplicitBetas([1e-6, 1e-4]), AlphaBarFunction(lambda time: 1 - time)]
ZERO = [ZeroTerminalSNR(each) for each in (Linear(1000), Cosine(1000), Cosine(2), *USERS)]
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)


def draw(b: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x_0, eps = torch.randn(2, b, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return (x_0 / 3).clamp(-1, 1), eps


def guess(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Some (x^_0, eps^) for x_t."""
    signal, noise = (table[t].view(-1, 1, 1, 1).to(x_t.dtype) for table in (LINEAR.signal, LINEAR.noise))
    x_0 = torch.tanh(x_t.roll(1, -1))
    return x_0, (x_t - signal * x_0) / noise


LINEAR = Linear(50, 1e-3, 0.2)


def reader(prediction: Parameterization) -> Denoiser:
    """The same guess from a network of any prediction."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return prediction.target(LINEAR, *guess(x_t, t), t)

    return Denoiser(network, LINEAR, None, prediction)


def errors(x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors of x^_0 and eps^."""
    x_0_hat, eps_hat = guess(q_sample(LINEAR, x_0, t, eps), t)
    return (x_0_hat - x_0).square().flatten(1).mean(1), (eps_hat - eps).square().flatten(1).mean(1)


# ---- the weights -------------------------------------------------------------------------------------------------


@every_prediction
def test_simple_is_the_error_of_the_prediction(prediction: Parameterization) -> None:
    t = torch.arange(1, 51)
    x_0, eps = draw(50)
    x_t = q_sample(LINEAR, x_0, t, eps)
    target, output = prediction.target(LINEAR, x_0, eps, t), prediction.target(LINEAR, *guess(x_t, t), t)
    losses = Simple().losses(reader(prediction), x_0, t, eps)
    torch.testing.assert_close(losses, simple_loss(target, output))
    of_x_0 = errors(x_0, t, eps)[0] * prediction.x_0_factor(LINEAR, t)
    torch.testing.assert_close(losses, of_x_0.float(), rtol=1e-5, atol=0)


@every_prediction
def test_weighted_losses_are_the_papers_whatever_the_network_predicts(prediction: Parameterization) -> None:
    t = torch.arange(1, 51)
    x_0, eps = draw(50)
    of_x_0, of_eps = errors(x_0, t, eps)
    expected = {
        # Hang et al., eq. 8: min(SNR, 5) on x_0; Choi et al., eq. 8: 1 / (1 + SNR) on eps; Salimans & Ho, section 4
        "min": torch.minimum(snr(LINEAR, t), torch.tensor(5.0)) * of_x_0,
        "p2": of_eps / (1 + snr(LINEAR, t)),
        "max": torch.maximum(of_x_0, of_eps),
    }
    for weight, losses in zip(WEIGHTS, expected.values(), strict=True):
        ours = SimpleWeighted(weight).losses(reader(prediction), x_0, t, eps)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, losses.float(), rtol=1e-5, atol=0)


@every_prediction
def test_the_vlb_has_ho_et_als_weight_and_the_constant(prediction: Parameterization) -> None:
    t = torch.arange(2, 51)
    x_0, eps = draw(49)
    beta, alpha_bar, before = LINEAR.beta[t], LINEAR.alpha_bar[t], LINEAR.alpha_bar[t - 1]
    small = beta * (1 - before) / (1 - alpha_bar)
    for variance, sigma2 in ((FixedLarge(), beta), (FixedSmall(), small)):
        weight = beta**2 / (2 * sigma2 * (1 - beta) * (1 - alpha_bar))  # Ho et al., eq. 12
        constant = 0.5 * ((sigma2 / small).log() - 1 + small / sigma2)
        expected = 50 / math.log(2) * (weight * errors(x_0, t, eps)[1] + constant)
        ours = VLB(variance).losses(reader(prediction), x_0, t, eps)
        torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-7)


def test_at_t_1_the_vlb_is_the_decoder() -> None:
    t = torch.ones(3, dtype=torch.long)
    x_0, eps = draw(3)
    expected = elbo_term(LINEAR, FixedSmall(), x_0, 1, reader(Epsilon())(q_sample(LINEAR, x_0, t, eps), 1))
    torch.testing.assert_close(VLB(FixedSmall()).losses(reader(Epsilon()), x_0, t, eps), 50 * expected.float())


def test_hybrid_is_simple_and_a_thousandth_of_the_bound_which_trains_the_variance_alone() -> None:
    t = torch.tensor([1, 2, 30, 50])
    x_0, eps = draw(4)
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


def test_a_learned_variance_comes_to_the_best_between_its_ends() -> None:
    # With the true mean off by d, the best log variance is log(beta~ + d^2): gradient descent on nu finds it.
    t = torch.full((1,), 30)
    x_0, eps = draw(1)
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
    of_x_0 = LINEAR.signal[29] * LINEAR.beta[30] / (1 - LINEAR.alpha_bar[30])
    best = (small + (of_x_0 * (denoised.x_0 - x_0)) ** 2).log()
    torch.testing.assert_close(LearnedRange().log_variance(LINEAR, 30, denoised), best, rtol=0, atol=1e-2)


# ---- finite, at both ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_finite_at_both_ends_of_every_schedule(objective: Objective, half: torch.dtype | None) -> None:
    schedules = [Linear(1000), Quadratic(1000), Sigmoid(1000), Cosine(1000), Cosine(4), *USERS, *ZERO]
    x_0, eps = draw(2, torch.float32)
    for prediction, schedule in itertools.product(PREDICTIONS, schedules):
        if isinstance(prediction, Epsilon) and schedule in ZERO:
            continue
        network = torch.nn.Conv2d(2, 4, 3, padding=1)
        outputs = torch.arange(4) if "Learned" in repr(objective) or objective.__class__ is Hybrid else torch.arange(2)

        def run(x_t: Tensor, t: Tensor, network=network, outputs=outputs) -> Tensor:
            with torch.autocast("cpu", half, enabled=half is not None):
                return network(x_t)[:, outputs]

        t = torch.tensor([1, schedule.T])
        losses = objective.losses(Denoiser(run, schedule, None, prediction), x_0, t, eps)
        assert losses.shape == (2,)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all(), (prediction, schedule)
        # float16 ends at 65504, and weights of the bound reach 1e7: GradScaler would back off
        (losses.sum() * (2.0**-16 if half is torch.float16 else 1)).backward()
        assert all(each.grad.isfinite().all() for each in network.parameters()), (prediction, schedule)


# ---- how t is drawn ----------------------------------------------------------------------------------------------


def one_rank(values: Tensor) -> Tensor:
    return values


def test_uniform_draws_every_t_with_weight_1() -> None:
    times = UniformTimesteps()
    times.setup(7)
    t, weights = times.sample(7000, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=8)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 4 * 1000**0.5
    assert (weights == 1).all()
    assert not times.state_dict()


def filled(T: int = 5) -> LossAwareTimesteps:
    times = LossAwareTimesteps(history=2)
    times.setup(T)
    t = torch.arange(1, T + 1).repeat(2)
    times.update(t, t.float(), one_rank)
    return times


def test_loss_aware_is_uniform_until_its_history_is_full_and_then_by_the_root_mean_square() -> None:
    times = LossAwareTimesteps(history=2, uniform_share=0.1)
    times.setup(3)
    for t, loss in [(1, 3.0), (1, 4.0), (2, 0.0), (2, 5.0), (3, 1.0)]:
        times.update(torch.tensor([t]), torch.tensor([loss]), one_rank)
        assert times.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    times.update(torch.tensor([3]), torch.tensor([1.0]), one_rank)
    rms = torch.tensor([(25 / 2) ** 0.5, (25 / 2) ** 0.5, 1.0])
    torch.testing.assert_close(times.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3)
    times.update(torch.tensor([3]), torch.tensor([9.0]), one_rank)  # the oldest goes
    assert sorted(times.losses[2].tolist()) == [1.0, 9.0]


def test_its_weights_undo_its_choice() -> None:
    times = filled()
    t, weights = times.sample(200_000, torch.Generator().manual_seed(0))
    frequency = torch.bincount(t, minlength=6)[1:] / len(t)
    torch.testing.assert_close(frequency, times.probabilities(), rtol=0, atol=4 * 0.5 / 200_000**0.5)
    losses = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    estimates = weights * losses[t]
    assert estimates.mean().item() == pytest.approx(3, abs=4 * estimates.std().item() / 200_000**0.5)


def test_it_makes_the_estimate_less_noisy() -> None:
    times = filled()
    t, weights = times.sample(10_000, torch.Generator().manual_seed(0))
    uniform = torch.randint(1, 6, (10_000,), generator=torch.Generator().manual_seed(0))
    assert (weights * t).var() < 0.01 * uniform.float().var()  # losses in proportion to t, as its history says


def test_one_batch_may_have_a_t_several_times() -> None:
    times = LossAwareTimesteps(history=3)
    times.setup(2)
    times.update(torch.tensor([1, 2, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]), one_rank)
    assert times.losses.tolist() == [[1, 3, 4], [2, 0, 0]]
    assert times.counts.tolist() == [3, 1]


def test_ranks_hear_of_each_others_losses() -> None:
    ranks = [(torch.tensor([1, 2]), torch.tensor([1.0, 2.0])), (torch.tensor([2, 3]), torch.tensor([5.0, 6.0]))]
    heard = []
    for t, losses in ranks:
        times = LossAwareTimesteps(history=2)
        times.setup(3)
        everybody = {torch.long: torch.stack([r[0] for r in ranks]), torch.float32: torch.stack([r[1] for r in ranks])}
        times.update(t, losses, lambda mine, everybody=everybody: everybody[mine.dtype])
        heard.append(times.state_dict())
    assert all(torch.equal(heard[0][name], heard[1][name]) for name in heard[0])
    assert heard[0]["counts"].tolist() == [1, 2, 1]


def test_bad_settings_of_loss_aware_are_errors() -> None:
    for arguments in ({"history": 0}, {"uniform_share": 0.0}, {"uniform_share": 1.5}):
        with pytest.raises(UserError, match="LossAware needs a history"):
            LossAwareTimesteps(**arguments)


# ---- in the model ------------------------------------------------------------------------------------------------


def test_by_default_it_is_ho_et_als_and_has_no_state() -> None:
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


def learning_model() -> torch.nn.Module:
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
def test_it_trains_and_its_history_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    model, data = learning_model(), ImageDataModule(Digits(), batch_size=16)
    trainer = quiet_trainer(tmp_path, max_steps=3)
    trainer.fit(model, datamodule=data)
    assert model.timesteps.counts.sum() == 48
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = learning_model()
    quiet_trainer(tmp_path, max_steps=4).fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert again.timesteps.counts.sum() == 64
    assert again.generate(SampleRequest(2), 0, 2).shape == (2, 1, 8, 8)


def test_a_prediction_that_the_schedule_forbids_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(UserError, match="zero terminal SNR"):
        tiny_model(network=tiny_network(), schedule=ZERO[0])

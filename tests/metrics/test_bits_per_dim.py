"""Bits/dim: each term against its formula, the ELBO against the entropy, and the mean over a dataset."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from PIL import Image
from pytorch_lightning import Callback, Trainer
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from lightning_ddpm.callbacks import EMA, BitsPerDim, RunLogger
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.diffusion import (
    DDIM,
    Cosine,
    Denoiser,
    ELBOTerms,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    ReverseVariance,
    elbo,
    elbo_term,
    elbos,
    q_sample,
)
from lightning_ddpm.diffusion.elbo import decoder_log_likelihood, gaussian_kl
from lightning_ddpm.metrics.bits_per_dim import BitsPerDimEstimate, ELBOSums
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.networks import SmallCNN, UNet
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
PRETRAINED = Path(__file__).parents[2] / "checkpoints" / "pretrained" / "digits.ckpt"
CONSTANT = torch.optim.lr_scheduler.ConstantLR
BOTH = ["bits_per_dim", "bits_per_dim_unclipped"]


# ---- the terms ---------------------------------------------------------------------------------------------------


def test_kl_of_nearly_equal_gaussians_keeps_its_digits_in_float32() -> None:
    zero = torch.zeros(())
    for ratio in (1e-2, 1e-3, 1e-4):
        expected = 0.5 * (math.expm1(ratio) - ratio)
        kl = gaussian_kl(zero, torch.tensor(ratio), zero, zero)
        assert kl.item() == pytest.approx(expected, rel=1e-2 * 1e-3 / ratio, abs=1e-10)
        assert kl >= 0


def test_kl_of_gaussians_is_above_the_kl_of_their_signs() -> None:
    # The sign of N(a, 1) is positive with probability 0.6, that of N(b, 1) with 0.7: data processing loses divergence.
    coins = kl_divergence(Bernoulli(torch.tensor(0.6)), Bernoulli(torch.tensor(0.7))).item()
    assert coins == pytest.approx(0.0225824, abs=1e-7)
    a, b = (torch.tensor(stats.norm.ppf(p)) for p in (0.6, 0.7))
    assert coins < gaussian_kl(a, torch.zeros(()), b, torch.zeros(())).item() < 2 * coins


@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.123, 0.999, 1.7])
def test_decoder_probabilities_of_all_levels_sum_to_one(mean: float, sigma: float) -> None:
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    log_likelihood = decoder_log_likelihood(LEVELS, torch.full((256,), mean, dtype=torch.float64), log_variance)
    assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoder_likelihood_is_the_mass_of_each_bin(dtype: torch.dtype) -> None:
    mean, sigma = np.linspace(-1.2, 1.2, 41)[:, None], 0.02
    levels = LEVELS.numpy()
    upper = np.where(levels > 0.999, np.inf, levels + 1 / 255)
    lower = np.where(levels < -0.999, -np.inf, levels - 1 / 255)
    # of the two tails, the left one keeps its digits
    right = levels > mean
    low, high = np.where(right, mean - upper, lower - mean), np.where(right, mean - lower, upper - mean)
    expected = np.log(np.maximum(stats.norm.cdf(high / sigma) - stats.norm.cdf(low / sigma), 1e-12))
    x_0, means = LEVELS.to(dtype).expand(41, 256), torch.tensor(mean, dtype=dtype).expand(41, 256)
    ours = decoder_log_likelihood(x_0, means, torch.tensor(2 * math.log(sigma), dtype=dtype))
    torch.testing.assert_close(
        ours.double(), torch.tensor(expected), rtol=1e-3 if dtype is torch.float32 else 1e-9, atol=1e-9
    )


def test_elbos_of_two_denoisers_in_one_pass_equal_those_of_each_alone() -> None:
    schedule, x_0 = Cosine(8), LEVELS[::4].view(4, 1, 4, 4)
    calls = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(int(t[0]))
        return x_t.sin()

    denoisers = [Denoiser(network, schedule), Denoiser(network, schedule, clip=None)]
    together = elbos(denoisers, FixedLarge(), x_0, ImageNoise(0, 0, 4))
    assert calls == list(range(1, 9))
    for denoiser, ours in zip(denoisers, together, strict=True):
        alone = elbo(denoiser, FixedLarge(), x_0, ImageNoise(0, 0, 4))
        assert torch.equal(alone.prior, ours.prior)
        assert torch.equal(alone.terms, ours.terms)
        torch.testing.assert_close(ours.total, ours.prior + ours.terms.sum(1))
    assert not torch.equal(together[0].terms, together[1].terms)


def gap_to_the_entropy(variance: ReverseVariance, T: int) -> float:
    """Compute E[ELBO] - entropy in bits, of gray levels that are N(mu, s^2), rounded, under the eps of N(mu, s^2).

    No sampling: all 256 levels by their mass, the noise by Gauss-Hermite quadrature (the KLs are quadratic in it).
    """
    mu, s, nodes, schedule = 0.2, 0.25, 16, Cosine(T)
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])])
    mass = Normal(mu, s).cdf(edges).diff()
    entropy = -torch.special.xlogy(mass, mass).sum() / math.log(2)
    noise, weight = map(torch.tensor, np.polynomial.hermite_e.hermegauss(nodes))

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = schedule.signal[t[0]], schedule.noise[t[0]]
        return noise * (x_t - signal * mu) / ((signal * s) ** 2 + noise**2)

    x_0 = LEVELS.repeat(nodes).view(-1, 1, 1, 1)
    eps_at_nodes = noise.repeat_interleave(256).view(-1, 1, 1, 1)
    each = elbo(Denoiser(eps, schedule, clip=None), variance, x_0, lambda like: eps_at_nodes).total.view(nodes, 256)
    return float(weight / weight.sum() @ each @ mass - entropy)


def test_elbo_is_above_the_entropy_and_approaches_it_with_smaller_steps() -> None:
    # For any model, E[ELBO] >= E[-log p_model] >= entropy. This model is exact except for its finite steps.
    gaps = [gap_to_the_entropy(FixedLarge(), T) for T in (10, 100, 1000, 4000)]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > 0
    assert gaps[0] > 0.25
    assert gaps[3] < 0.01


def test_elbo_of_beta_tilde_is_looser_but_above_the_entropy() -> None:
    assert gap_to_the_entropy(FixedSmall(), 100) > 2 * gap_to_the_entropy(FixedLarge(), 100)


def test_clipping_lowers_the_elbo_of_a_trained_model() -> None:
    model = load(PRETRAINED, DDPM).eval()
    data = ImageDataModule(Digits())
    data.setup("test")
    x_0 = to_float(data.held_out.__getitems__(range(16))[0])
    sums = torch.zeros(2)
    for t in (1, 2, 5, 20, 100, 500, 900, 990, 1000):
        x_t = q_sample(model.schedule, x_0, t, ImageNoise(t, 0, 16)(x_0))
        for i, clip in enumerate((1.0, None)):
            with torch.no_grad():
                denoised = Denoiser(model.network, model.schedule, clip, model.parameterization)(x_t, t)
            sums[i] += elbo_term(model.schedule, FixedLarge(), x_0, t, denoised).mean()
    assert sums[0] < sums[1]


# ---- over a dataset -----------------------------------------------------------------------------------------------


def test_sums_give_the_mean_and_its_standard_error_for_any_batches_and_ranks() -> None:
    prior, terms = torch.rand(10, generator=torch.Generator().manual_seed(0)), torch.rand(10, 5)
    whole = ELBOTerms(prior.double(), terms.double()).total
    ranks = [ELBOSums(5, torch.device("cpu")) for _ in range(2)]
    for rank, batch in ((0, slice(0, 4)), (1, slice(4, 8)), (0, slice(8, 10))):
        ranks[rank].update(ELBOTerms(prior[batch], terms[batch]))
    got = ranks[0].compute(Ranks(0, 2, lambda sums: sums + ranks[1].sums))
    assert got.n == 10
    assert got.mean == pytest.approx(whole.mean().item(), rel=1e-12)
    assert got.standard_error == pytest.approx(whole.std().item() / 10**0.5, rel=1e-9)
    assert got.prior == pytest.approx(prior.double().mean().item(), rel=1e-12)
    torch.testing.assert_close(got.terms, terms.double().mean(0))


def compute_by_formulas(model: DDPM, indices: list[int], batch_size: int, clip: bool) -> tuple[Tensor, Tensor]:
    """Compute prior and terms (n, T + 1), and the ELBO (n,), of held-out digits from the formulas; Sigma = beta."""
    data = ImageDataModule(Digits())
    data.setup("test")
    images = data.held_out.__getitems__(indices)[0].double() / 127.5 - 1
    beta = model.schedule.beta.numpy()
    alpha_bar = np.cumprod(1 - beta)
    rows = []
    for start in range(0, len(images), batch_size):
        x_0 = images[start : start + batch_size]
        noise = ImageNoise(0, start, start + len(x_0), "likelihood")
        q_T = Normal(alpha_bar[-1] ** 0.5 * x_0, (1 - alpha_bar[-1]) ** 0.5)
        columns = [kl_divergence(q_T, Normal(0.0, 1.0))]
        for t in range(1, len(beta)):
            eps = noise(x_0)
            x_t = alpha_bar[t] ** 0.5 * x_0 + (1 - alpha_bar[t]) ** 0.5 * eps
            with torch.no_grad():
                predicted_eps = model.eval().network(x_t.float(), torch.full((len(x_0),), t)).double()
            predicted_x_0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * predicted_eps) / alpha_bar[t] ** 0.5
            predicted_x_0 = predicted_x_0.clamp(-1, 1) if clip else predicted_x_0
            small = [beta[u] * (1 - alpha_bar[u - 1]) / (1 - alpha_bar[u]) for u in (t, 2)]
            if t == 1:  # mu = x^_0
                p = Normal(predicted_x_0, small[1] ** 0.5)
                upper = torch.where(x_0 > 0.999, torch.inf, x_0 + 1 / 255)
                lower = torch.where(x_0 < -0.999, -torch.inf, x_0 - 1 / 255)
                columns.append(-(p.cdf(upper) - p.cdf(lower)).clamp(min=1e-12).log())
            else:
                of_x_t = (1 - beta[t]) ** 0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * x_t
                of_x_0 = alpha_bar[t - 1] ** 0.5 * beta[t] / (1 - alpha_bar[t])
                q = Normal(of_x_0 * x_0 + of_x_t, small[0] ** 0.5)
                columns.append(kl_divergence(q, Normal(of_x_0 * predicted_x_0 + of_x_t, beta[t] ** 0.5)))
        rows.append(torch.stack([each.sum((1, 2, 3)) / (64 * math.log(2)) for each in columns], dim=1))
    terms = torch.cat(rows)
    return terms, terms.sum(1)


def measure(folder: Path, callback: BitsPerDim, model: DDPM, **arguments: Any) -> dict[str, float]:
    trainer = quiet_trainer(folder, callbacks=[callback], limit_test_batches=1, **arguments)
    (metrics,) = trainer.test(model, datamodule=ImageDataModule(Digits()), verbose=False)
    return dict(metrics)


def fit(folder: Path, callbacks: list[Callback], model: Any = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)  # for dropout
    trainer = quiet_trainer(folder, callbacks=callbacks, max_steps=4, **arguments)
    trainer.fit(model or tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16))
    return trainer


def check_agreement(
    ours: BitsPerDimEstimate, model: DDPM, indices: list[int], batch_size: int, clip: bool, rel: float = 1e-6
) -> None:
    terms, total = compute_by_formulas(model, indices, batch_size, clip)
    assert ours.n == len(indices)
    assert ours.mean == pytest.approx(total.mean().item(), rel=rel)
    assert ours.standard_error == pytest.approx(total.std().item() / len(indices) ** 0.5, rel=10 * rel)
    assert ours.prior == pytest.approx(terms[:, 0].mean().item(), rel=rel)
    torch.testing.assert_close(ours.terms, terms[:, 1:].mean(0), rtol=10 * rel, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "indices"),
    [(None, list(range(179))), (3, [0, 96, 133]), (1000, list(range(179)))],
    ids=["all", "three of them", "more than there are"],
)
def test_bits_per_dim_of_a_dataset_matches_the_formulas(tmp_path: Path, n: int | None, indices: list[int]) -> None:
    model, callback = tiny_model(), BitsPerDim(n)
    metrics = measure(tmp_path, callback, model)
    for name, clip in zip(BOTH, (True, False), strict=True):
        ours = callback.likelihoods[name]
        check_agreement(ours, model, indices, 64, clip)
        assert metrics[f"test/{name}"] == pytest.approx(ours.mean, rel=1e-6)
        assert metrics[f"test/{name}_standard_error"] == pytest.approx(ours.standard_error, rel=1e-6)


def test_batch_size_changes_only_rounding_and_seed_changes_the_noise(tmp_path: Path) -> None:
    model, one, other, seeded = tiny_model(), BitsPerDim(40), BitsPerDim(40, batch_size=7), BitsPerDim(40, seed=1)
    for each in (one, other, seeded):
        measure(tmp_path, each, model)
    for name in BOTH:
        first, second, third = (each.likelihoods[name] for each in (one, other, seeded))
        assert first.mean == pytest.approx(second.mean, rel=1e-4)
        assert first.mean != pytest.approx(third.mean, rel=1e-4)
        assert first.prior == pytest.approx(third.prior, rel=1e-9)


def test_half_precision_applies_to_the_network_only(tmp_path: Path) -> None:
    full, half = BitsPerDim(8), BitsPerDim(8)
    measure(tmp_path, full, tiny_model())
    measure(tmp_path, half, tiny_model(), precision="bf16-mixed")
    a, b = full.likelihoods["bits_per_dim"], half.likelihoods["bits_per_dim"]
    assert a.prior == b.prior
    assert a.mean != b.mean
    assert a.mean == pytest.approx(b.mean, rel=0.05)


def test_learned_variance_changes_the_bound(tmp_path: Path) -> None:
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), attention=(), blocks=1, groups=4, outputs=2)
    model, learned, fixed = tiny_model(network=network), BitsPerDim(8, LearnedRange()), BitsPerDim(8)
    assert (
        measure(tmp_path, learned, model)["test/bits_per_dim"] != measure(tmp_path, fixed, model)["test/bits_per_dim"]
    )


@pytest.mark.parametrize("first", [True, False])
def test_end_of_fit_measures_the_averaged_weights_and_plots_every_term(tmp_path: Path, first: bool) -> None:
    callback, average = BitsPerDim(20), EMA(0.5)
    logger = RunLogger(tmp_path / "tensorboard")
    model = tiny_model()
    fit(tmp_path / "run", [callback, average] if first else [average, callback], model, logger=logger)
    for name, clip in zip(BOTH, (True, False), strict=True):  # after fit the module has the average
        check_agreement(callback.likelihoods[name], model, spread_indices(20, 179), 64, clip)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    for name in BOTH:
        (mean,), (error,) = events.Scalars(f"val/{name}"), events.Scalars(f"val/{name}_standard_error")
        assert (mean.step, error.step) == (4, 4)
        assert mean.value == pytest.approx(callback.likelihoods[name].mean, rel=1e-6)
        assert error.value == pytest.approx(callback.likelihoods[name].standard_error, rel=1e-6)
    (event,) = events.Images("val/bits_per_dim_terms")
    shown = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert shown.shape == (500, 800, 3)
    assert np.array_equal(np.array(Image.open(tmp_path / "run" / "val_bits_per_dim.png")), shown)
    coloured = (shown.max(-1).astype(int) - shown.min(-1) > 50).any(0).nonzero()[0]
    assert coloured.max() - coloured.min() > 500  # the curves run from left to right


def test_callback_does_not_change_training(tmp_path: Path) -> None:
    measured, not_measured = tiny_model(), tiny_model()
    fit(tmp_path, [BitsPerDim(4)], measured)
    fit(tmp_path, [], not_measured)
    assert same(weights(measured), weights(not_measured))


def test_fast_dev_run_measures_nothing(tmp_path: Path) -> None:
    callback = BitsPerDim()
    trainer = quiet_trainer(tmp_path, callbacks=[callback], fast_dev_run=True)
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16))
    trainer.test(tiny_model(), datamodule=ImageDataModule(Digits()), verbose=False)
    assert not callback.likelihoods
    assert not list(tmp_path.glob("*.png"))


def test_cost_and_result_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = BitsPerDim(20)
    fit(tmp_path, [callback])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("bits/dim: 20 images x 20 network evaluations at the end of training, about ")
    clipped, unclipped = callback.likelihoods.values()
    (line,) = (each for each in printed if each.startswith("val/bits_per_dim of 20 images, FixedLarge, seed 0: "))
    for value in (clipped.mean, clipped.standard_error, clipped.terms[0], unclipped.mean, unclipped.standard_error):
        assert f"{float(value):.4f}" in line


def test_values_that_are_not_finite_are_reported_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    next(model.parameters()).data.fill_(math.nan)
    metrics = measure(tmp_path, BitsPerDim(4), model)
    assert math.isnan(metrics["test/bits_per_dim"])
    assert math.isnan(metrics["test/bits_per_dim_standard_error"])
    out = capsys.readouterr().out
    for name in BOTH:
        assert f"test/{name} is not finite: its terms are not finite at 20 of 20 steps, t = 1, 2, 3, 4, 5, ...; " in out
    assert "diverged" in out


def test_command_line_logs_prints_and_plots_bits_per_dim(digits_run: Any, command: Any, tmp_path: Path) -> None:
    status, out, err = command(
        *("test", "--config", digits_run.folder / "config.yaml", "--ckpt_path", digits_run.folder / "last.ckpt"),
        *("--trainer.default_root_dir", tmp_path),
        *("--trainer.callbacks+=lightning_ddpm.callbacks.BitsPerDim", "--trainer.callbacks.n", "32"),
    )
    assert status == 0, err
    for name in BOTH:
        assert f"test/{name} " in out  # in Lightning's table
    assert "test/bits_per_dim of 32 images, FixedLarge, seed 0: " in out
    assert (tmp_path / "test_bits_per_dim.png").is_file()
    events = EventAccumulator(str(tmp_path / "test"), {"scalars": 0, "images": 0}).Reload()
    assert len(events.Images("test/bits_per_dim_terms")) == 1
    model = load(digits_run.folder / "last.ckpt", DDPM)
    _, total = compute_by_formulas(model, spread_indices(32, 179), 64, clip=True)
    assert events.Scalars("test/bits_per_dim")[0].value == pytest.approx(total.mean().item(), rel=1e-5)


# ---- unusable settings are refused before training ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "model", "message"),
    [
        (BitsPerDim(8), lambda: tiny_model(schedule=Cosine(1), sampler=DDIM(1)), "give the schedule at least 2 steps"),
        (BitsPerDim(8, LearnedRange()), tiny_model, "set UNet's outputs: 2"),
        (
            BitsPerDim(8),
            lambda: ImageClassifier(SmallCNN(1, 8, 10), torch.optim.SGD, CONSTANT),
            "bits/dim needs a DDPM, got ImageClassifier",
        ),
    ],
    ids=["T=1", "no variance", "a classifier"],
)
def test_unusable_settings_are_refused_before_training(tmp_path: Path, callback: Any, model: Any, message: str) -> None:
    built = model()
    before = weights(built)
    with pytest.raises(UserError, match=message):
        fit(tmp_path, [callback], built)
    assert same(before, weights(built))


@pytest.mark.parametrize("arguments", [{"n": 1}, {"n": 0}, {"batch_size": 0}], ids=str)
def test_fewer_than_two_images_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 2 images in batches of at least 1"):
        BitsPerDim(**arguments)


def test_other_kinds_of_data_are_refused(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=16)
    data.setup("test")
    with pytest.raises(UserError, match="an ImageDataModule's held-out images, got NoneType"):
        quiet_trainer(tmp_path, callbacks=[BitsPerDim(4)]).test(tiny_model(), data.test_dataloader(), verbose=False)

"""What is missing in images: the known is kept, the rest is drawn from what it is given that."""

import math

import pytest
import torch
from helpers.known_data import Mixture
from torch import Tensor

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.diffusion import (
    DDIM,
    DDRM,
    Ancestral,
    Cosine,
    Degradation,
    Denoiser,
    Downsample,
    FixedLarge,
    FixedSmall,
    Grayscale,
    Identity,
    Linear,
    PredictorCorrector,
    RePaint,
    SDEdit,
    interpolate,
    slerp,
)
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError

SCHEDULE = Linear(1000)
PRETRAINED = "checkpoints/pretrained/digits.ckpt"
KNOWN, FIRST = torch.tensor([[[0.7, 99.0]]]), torch.tensor([[[1.0, 0.0]]])


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Seeded:
    """Noise, one draw after another."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def second_pixel(data: Mixture, n: int, inpainting: RePaint) -> Tensor:
    """What is drawn beside the first pixel, which is known."""
    x = inpainting.sample(data.denoiser(SCHEDULE), randn(n, 1, 1, 2), Seeded()).flatten(1)
    assert (x[:, 0] == KNOWN.flatten()[0].double()).all()
    return x[:, 1]


# ---- inpainting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("sampler", [Ancestral(FixedSmall(), 200), DDIM(100)], ids=repr)
def test_known_pixels_are_exact_and_independent_ones_are_drawn_as_ever(sampler, passes) -> None:
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.0], [0.0, 0.09]]])
    inpainting = RePaint(sampler, KNOWN, FIRST, passes, 5)
    x = second_pixel(data, 4000, inpainting)
    assert float(x.mean()) == pytest.approx(-0.2, abs=0.02)
    assert float(x.var()) == pytest.approx(0.09, abs=0.016)
    assert inpainting.nfe(1000) == passes * sampler.nfe(1000)


def test_every_pass_brings_it_nearer_to_the_conditional_distribution() -> None:
    """The two pixels of this data are nearly equal: to know one is to know the other."""
    data, truth = Mixture([1.0], [[0.0, 0.0]], [[[0.25, 0.24], [0.24, 0.25]]]), 0.7 * 0.96
    drawn = [second_pixel(data, 1000, RePaint(Ancestral(FixedSmall(), 200), KNOWN, FIRST, n, 4)) for n in (1, 3, 9)]
    apart = [abs(float(x.mean()) - truth) for x in drawn]
    assert 0.1 < apart[0] < truth  # 0 where nothing is known
    assert apart[1] < 0.7 * apart[0]
    assert apart[2] < 0.5 * apart[1]
    assert float(drawn[2].std()) < 0.2  # 0.14; 0.5 where nothing is known


@pytest.mark.slow
def test_with_many_passes_it_is_the_conditional_distribution() -> None:
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.15], [0.15, 0.16]]])
    n, mean, variance = 2000, -0.2 + 0.6 * (0.7 - 0.3), 0.16 - 0.6 * 0.15
    x = second_pixel(data, n, RePaint(Ancestral(FixedLarge()), KNOWN, FIRST, 40, 10))
    assert float(x.mean()) == pytest.approx(mean, abs=3 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, abs=3 * variance * math.sqrt(2 / n))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mask": torch.full((1, 2, 2), 0.5)}, "1 where a pixel is known and 0 where it is not"),
        ({"mask": torch.ones(1, 3, 3)}, "the mask is 1x3x3 and the image 1x2x2"),
        ({"passes": 0}, "at least once, got passes=0"),
        ({"jump": 0}, "got passes=10 and jump=0"),
    ],
)
def test_a_mask_or_passes_that_are_none_are_refused(arguments, said) -> None:
    with pytest.raises(UserError, match=said):
        RePaint(DDIM(10), torch.zeros(1, 2, 2), **{"mask": torch.ones(1, 2, 2)} | arguments)


# ---- linear inverse problems -----------------------------------------------------------------------------------------

DEGRADATIONS = [Identity(), Downsample(2), Downsample(4), Grayscale()]


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=repr)
def test_a_degradation_is_its_singular_value_decomposition(degradation: Degradation) -> None:
    x, other = randn(5, 3, 8, 8, seed=1), randn(5, 3, 8, 8, seed=2)
    z, y = degradation.to_spectral(x), degradation(x)
    torch.testing.assert_close(degradation.from_spectral(z), x)
    torch.testing.assert_close((z * degradation.to_spectral(other)).sum(), (x * other).sum())
    values = degradation.singular_values(z)
    torch.testing.assert_close(degradation.project_observation(y, z), torch.where(values > 0, z, 0.0))
    # U is orthogonal: y is as long as its coordinates
    torch.testing.assert_close((values * z).square().sum(), y.square().sum())
    assert (values > 0).sum() == y.numel()


def test_what_they_do() -> None:
    x = randn(2, 3, 4, 4)
    assert torch.equal(Identity()(x), x)
    torch.testing.assert_close(Downsample(2)(x)[0, 1, 1, 0], x[0, 1, 2:4, 0:2].mean())
    torch.testing.assert_close(Grayscale()(x), x.mean(1, keepdim=True))


def model_of_nothing(schedule: Cosine) -> Denoiser:
    """Any network: what is known for certain does not depend on it."""
    return Denoiser(lambda x, t: torch.tanh(3 * x), schedule)


@pytest.mark.parametrize("steps", [1, 7, None])
def test_the_identity_without_noise_returns_the_input(steps) -> None:
    x = randn(4, 3, 8, 8).clamp(-1, 1)
    made = DDRM(Identity(), x, steps=steps).sample(model_of_nothing(Cosine(50)), randn(4, 3, 8, 8, seed=5), Seeded())
    assert torch.equal(made, x)


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=repr)
def test_what_is_seen_without_noise_is_kept(degradation) -> None:
    y = degradation(randn(4, 3, 8, 8).clamp(-1, 1))
    made = DDRM(degradation, y).sample(model_of_nothing(Cosine(50)), randn(4, 3, 8, 8, seed=5), Seeded())
    torch.testing.assert_close(degradation(made), y)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_noise_is_taken_away_nearly_as_well_as_can_be(sigma) -> None:
    """Of independent Gaussian pixels the best guess is known; a draw has twice its mean squared error."""
    variance = 0.09
    data = Mixture([1.0], [[0.3, -0.2]], [[[variance, 0.0], [0.0, variance]]])
    x = torch.tensor([0.3, -0.2]) + math.sqrt(variance) * randn(4000, 1, 1, 2)
    y = x + sigma * randn(4000, 1, 1, 2, seed=3)
    made = DDRM(Identity(), y, sigma, steps=100).sample(data.denoiser(SCHEDULE), randn(4000, 1, 1, 2, seed=4), Seeded())
    best = 1 / (1 / variance + 1 / sigma**2)
    error = float((made - x).square().mean())
    assert 0.95 * best < error < 2.1 * best


def test_what_is_noisier_than_all_noise_is_refused() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(UserError, match="sigma=1e\\+06 is noisier than the schedule's x_T; lower the noise"):
        DDRM(Identity(), x, 1e6).sample(model_of_nothing(SCHEDULE), x)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Downsample(1), "by a factor of 2 or more, got 1"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 8, 8)), "8x8 do not fall into blocks of 3x3"),
        (lambda: Grayscale()(torch.zeros(1, 1, 8, 8)), "no colour to lose"),
        (lambda: DDRM(Identity(), torch.zeros(1), -1.0), "at least 0 and finite, got sigma=-1"),
        (lambda: DDRM(Identity(), torch.zeros(1), eta=1.5), r"eta must lie in \\[0, 1\\]"),
    ],
)
def test_problems_that_are_none_are_refused(call, said) -> None:
    with pytest.raises(UserError, match=said.replace("\\\\", "\\")):
        call()


def test_ddrm_says_what_it_spends() -> None:
    calls = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(int(t[0]))
        return torch.zeros_like(x)

    sampler = DDRM(Downsample(2), torch.zeros(1, 1, 4, 4), steps=7)
    sampler.sample(Denoiser(network, SCHEDULE), randn(1, 1, 8, 8))
    assert len(calls) == sampler.nfe(1000) == 7


# ---- variations, and what lies between -------------------------------------------------------------------------------


def test_a_variation_begins_at_the_share_of_the_steps_that_is_its_strength() -> None:
    seen: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t[0]))
        return torch.zeros_like(x)

    denoise, image = Denoiser(network, SCHEDULE), randn(1, 2, 2).clamp(-1, 1)
    for strength, made in ((0.0, 0), (0.3, 3), (1.0, 10)):
        seen.clear()
        variation = SDEdit(DDIM(10), image, strength)
        x = variation.sample(denoise, randn(3, 1, 2, 2))
        assert len(seen) == made == variation.nfe(1000)
        assert (x == image).all() == (strength == 0)
    assert seen[0] == 1000
    pair = SDEdit(PredictorCorrector(Ancestral(FixedSmall(), 10)), image, 0.5)
    seen.clear()
    pair.sample(denoise, randn(3, 1, 2, 2))
    assert len(seen) == pair.nfe(1000)


@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
def test_a_variation_of_a_gaussian_keeps_what_its_strength_leaves(strength) -> None:
    """It is a draw of q(x_0 | x_t), whose correlation with the image is the share of x_t's variance that is signal."""
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.0], [0.0, 0.09]]])
    x = torch.tensor([0.3, -0.2]) + torch.tensor([0.5, 0.3]) * randn(4000, 1, 1, 2)
    variation = SDEdit(Ancestral(FixedLarge()), x, strength)
    made = variation.sample(data.denoiser(SCHEDULE), randn(4000, 1, 1, 2, seed=9), Seeded())
    assert made.flatten(1).mean(0).tolist() == pytest.approx([0.3, -0.2], abs=0.03)
    assert made.flatten(1).var(0).tolist() == pytest.approx([0.25, 0.09], rel=0.1)
    alpha_bar = float(SCHEDULE.alpha_bar[round(1000 * strength)])
    for pixel, variance in enumerate((0.25, 0.09)):
        correlation = torch.corrcoef(torch.stack([each.flatten(1)[:, pixel] for each in (x, made)]))[0, 1]
        left = alpha_bar * variance / (alpha_bar * variance + 1 - alpha_bar)
        assert float(correlation) == pytest.approx(left, abs=0.04)


def test_a_strength_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"lies in \[0, 1\], got 1.5"):
        SDEdit(DDIM(10), torch.zeros(1, 2, 2), 1.5)


def test_slerp_keeps_the_length_and_ends_where_it_should() -> None:
    a, b = randn(3, 4, seed=1), randn(3, 4, seed=2)
    b = b * a.norm() / b.norm()
    points = slerp(a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[3], b)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), a.norm().expand(4))
    torch.testing.assert_close(points[2], (a + b) * a.norm() / (a + b).norm())
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5]))[0], a)


@torch.no_grad()
def test_what_lies_between_two_digits_begins_and_ends_with_them() -> None:
    model = load(PRETRAINED, DDPM)
    first, second = to_float(Digits().open(None, "test").__getitems__([3, 4])[0])  # type: ignore[arg-type]
    images = interpolate(model.denoiser, first, second, torch.linspace(0, 1, 5), DDIM(100))
    for made, real in ((images[0], first), (images[4], second)):
        assert 10 * math.log10(4 / float((made - real).square().mean())) > 30  # PSNR in dB
    middle = images[2]
    assert min(float((middle - end).square().mean()) for end in (first, second)) > 0.02
    with pytest.raises(UserError, match=r"by DDIM with eta=0, got eta=0\.5"):
        interpolate(model.denoiser, first, second, torch.zeros(1), DDIM(10, eta=0.5))

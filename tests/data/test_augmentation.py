"""Augmentation: what it does to images is in its parameters, which are 0 for an image as it is."""

import math

import pytest
import torch
from torch import Tensor

from lightning_ddpm.data import Augmentation, ColourAugmentation, GeometricAugmentation
from lightning_ddpm.data.augmentation import augment
from lightning_ddpm.data.geometric_augmentation import resample
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


def make_random(start: int = 0, stop: int = 4096, total: int = 4096) -> PositionRandom:
    return PositionRandom("cpu", "augmentation", 0, index=0, start=start, stop=stop, total=total)


def make_images(n: int, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


BOTH = [GeometricAugmentation(0.3), ColourAugmentation(0.3)]


@pytest.mark.parametrize("augmentation", BOTH)
def test_an_image_without_parameters_is_bit_equal_and_others_are_not(augmentation: Augmentation) -> None:
    x_0 = make_images(4096)
    changed, parameters = augmentation(x_0, make_random())
    assert parameters.shape == (4096, augmentation.parameters)
    same = (parameters == 0).all(1)
    assert 50 < same.sum() < 1000
    assert torch.equal(changed[same], x_0[same])
    assert (changed[~same] != x_0[~same]).flatten(1).any(1).all()


def test_images_get_the_same_in_batches_of_any_size() -> None:
    x_0 = make_images(300)
    whole = augment(BOTH, x_0, make_random(0, 300, 300))
    halves = [augment(BOTH, x_0[a:b], make_random(a, b, 300)) for a, b in ((0, 137), (137, 300))]
    assert torch.equal(whole[1], torch.cat([each[1] for each in halves]))
    torch.testing.assert_close(whole[0], torch.cat([each[0] for each in halves]))


def test_the_parameters_have_the_distributions_of_the_paper() -> None:
    _, p = GeometricAugmentation(0.12)(make_images(4096), make_random())
    share = (p != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])  # half of the stretches are along x
    assert ((share - expected).abs() < 0.03).all()
    for column in (2, 7, 8):
        chosen = p[:, column][p[:, column] != 0]
        assert chosen.std() == pytest.approx(1, abs=0.12)
    torch.testing.assert_close((p[:, 3] + 1) ** 2 + p[:, 4] ** 2, torch.ones(4096))
    assert ((p[:, 7] != 0) == (p[:, 8] != 0)).all()


def affine(x_0: Tensor, rows: list[list[float]], offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    n = len(x_0)
    return resample(x_0, torch.tensor([rows]).expand(n, 2, 2), torch.tensor([offset]).expand(n, 2))


def test_resampling_moves_a_known_image_as_its_formula_says() -> None:
    """A smooth image of period 16 at transformed points, in closed form; the mean of four points softens it little."""
    side = 32
    axis = torch.arange(side) - (side - 1) / 2
    w = 2 * math.pi / 16

    def picture(x: Tensor, y: Tensor) -> Tensor:
        return (w * x + 0.3).cos() + (w * y).sin()

    x, y = axis[None, :].expand(side, side), axis[:, None].expand(side, side)
    image = picture(x, y)[None, None]
    for rows, offset in (
        ([[1.0, 0.0], [0.0, 1.0]], (2.5, -1.0)),
        ([[0.8, 0.0], [0.0, 0.9]], (0.0, 0.0)),
        ([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]], (0.7, 0.2)),
    ):
        found = affine(image, rows, offset)[0, 0]
        u = rows[0][0] * x + rows[0][1] * y + offset[0]
        v = rows[1][0] * x + rows[1][1] * y + offset[1]
        inner = (u.abs() < side / 2 - 3) & (v.abs() < side / 2 - 3)
        assert inner.sum() > 300
        assert (found - picture(u, v))[inner].abs().max() < 0.02


def test_a_quarter_turn_is_rot90() -> None:
    x_0 = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    plain = [[1.0, 0.0], [0.0, 1.0]]
    turned = affine(x_0, [[0.0, -1.0], [1.0, 0.0]])  # cos 0 and sin 1
    torch.testing.assert_close(turned, affine(torch.rot90(x_0, 1, (2, 3)), plain), rtol=0, atol=1e-5)


def homogeneous(rows: list[list[float]]) -> Tensor:
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def turn(cos: float, sin: float) -> Tensor:
    return homogeneous([[cos, -sin, 0.0], [sin, cos, 0.0]])


def scale(x: float, y: float) -> Tensor:
    return homogeneous([[x, 0.0, 0.0], [0.0, y, 0.0]])


def test_the_parameters_describe_what_was_done() -> None:
    """A smooth image in closed form at the points that Karras et al.'s matrices, made of the parameters, give."""
    side, n, w = 32, 96, 2 * math.pi / 32
    axis = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)

    def picture(x: Tensor, y: Tensor) -> Tensor:
        return ((w * x + 0.3).cos() + (2 * w * y + 1).sin()) / 2

    image = picture(x, y).float().expand(n, 1, side, side)
    changed, parameters = GeometricAugmentation(0.7)(image, make_random(0, n, n))
    assert (parameters != 0).all(1).sum() > 2, "everything at once"
    for found, row in zip(changed.double().flatten(1), parameters.double().tolist(), strict=True):
        mirrored, upended, scaled, less_cos, sin, along, across, right, down = row
        errors = []
        # stretching by z along an axis and shrinking by z along its opposite have equal parameters in the paper
        for sign in (1, -1):
            direction = math.atan2(sign * across, sign * along)
            stretch = 2 ** (0.2 * sign * math.hypot(along, across))
            inverse = scale(1 - 2 * mirrored, 1 - 2 * upended) @ scale(2 ** (-0.2 * scaled), 2 ** (-0.2 * scaled))
            inverse = inverse @ turn(less_cos + 1, sin)
            inverse = inverse @ turn(math.cos(direction), -math.sin(direction)) @ scale(1 / stretch, stretch)
            inverse = inverse @ turn(math.cos(direction), math.sin(direction))
            inverse = inverse @ homogeneous([[1.0, 0.0, -right * side / 8], [0.0, 1.0, -down * side / 8]])
            u, v, _ = inverse @ pixels
            inner = (u.abs() < side / 2 - 2) & (v.abs() < side / 2 - 2)
            assert inner.sum() > 50
            errors.append(float((found - picture(u, v))[inner].abs().max()))
        assert min(errors) < 0.02, row


def test_half_a_turn_is_both_flips_and_constants_stay() -> None:
    x_0 = make_images(2)
    torch.testing.assert_close(
        affine(x_0, [[-1.0, 0.0], [0.0, -1.0]]), affine(x_0.flip(2, 3), [[1.0, 0.0], [0.0, 1.0]]), rtol=0, atol=1e-5
    )
    constant = torch.full((64, 1, 8, 8), 0.3)
    changed, _ = GeometricAugmentation(1.0)(constant, make_random(0, 64, 64))
    torch.testing.assert_close(changed, constant, rtol=0, atol=1e-5)


def test_flips_are_exact() -> None:
    x_0 = make_images(256)
    changed, p = GeometricAugmentation(0.2)(x_0, make_random(0, 256, 256))
    only = (p[:, 2:] == 0).all(1)
    for mirrored, upended in ((1, 0), (0, 1), (1, 1)):
        chosen = only & (p[:, 0] == mirrored) & (p[:, 1] == upended)
        assert chosen.any()
        sides = [dim for dim, flipped in ((3, mirrored), (2, upended)) if flipped]
        assert torch.equal(changed[chosen], x_0[chosen].flip(sides))


def test_colours_change_by_their_parameters() -> None:
    """Against the matrices of homogeneous colours that Karras et al. 2020 write."""
    x_0 = make_images(512).double()
    changed, p = ColourAugmentation(0.5)(x_0.float(), make_random(0, 512, 512))
    v = torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    axis, one = torch.outer(v, v), torch.eye(3, dtype=torch.float64)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    for image, found, (b, c, inverted, cos, sin, s) in zip(x_0, changed, p.double(), strict=True):
        shifted = (image + 0.2 * b) * (0.5 * c).exp2()
        hue = axis + (cos + 1) * (one - axis) + sin * cross
        matrix = (axis + (one - axis) * s.exp2()) @ hue @ (one - 2 * axis * inverted)
        expected = torch.einsum("ij,jhw->ihw", matrix, shifted)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    gray, parameters = ColourAugmentation(0.5)(x_0[:, :1].float(), make_random(0, 512, 512))
    assert torch.equal(parameters, p)
    upright = p[:, 2] == 0
    shifted = (x_0[:, :1] + 0.2 * p[:, 0, None, None, None]) * (0.5 * p[:, 1, None, None, None]).exp2()
    torch.testing.assert_close(gray[upright].double(), shifted[upright], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gray[~upright].double(), -shifted[~upright], rtol=1e-4, atol=1e-4)


def test_wrong_settings_and_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"needs a probability in \(0, 1\], got 0; Karras"):
        GeometricAugmentation(0)
    with pytest.raises(UserError, match=r"mirror in \[0, 1\] and scale, stretch and shift in \[0, 2\), got 1.0, -0.2"):
        GeometricAugmentation(scale=-0.2)
    with pytest.raises(UserError, match=r"brightness, contrast and saturation in \[0, 4\)"):
        ColourAugmentation(contrast=4.0)
    with pytest.raises(UserError, match="changes images with 1 or 3 channels, got 5; leave it out"):
        ColourAugmentation().check_images(5)

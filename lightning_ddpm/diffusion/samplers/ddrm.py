"""Linear inverse problems y = H x_0 + sigma_y z, solved by sampling: DDRM (Kawar et al. 2022, arXiv:2201.11793).

A degradation H is known by its singular value decomposition, H = U S V^T. It is given by V^T, an orthonormal change of
coordinates of images, the singular values that belong to those, and S^+ U^T, which reads y in them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler, check_fraction, list_steps
from lightning_ddpm.diffusion.samplers.spacing import Spacing, uniform_spacing
from lightning_ddpm.utils.errors import UserError


class Degradation(ABC):
    """What was done to images x (b, c, h, w)."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """y = H x, without noise.

        Raises:
            UserError: images of this shape cannot be degraded so.
        """

    @abstractmethod
    def to_spectral(self, x: Tensor) -> Tensor:
        """V^T x, in any shape."""

    @abstractmethod
    def from_spectral(self, z: Tensor) -> Tensor:
        """V z: undoes :meth:`to_spectral`."""

    @abstractmethod
    def singular_values(self, z: Tensor) -> Tensor:
        """S, which broadcasts to the coordinates z; 0 for those that y says nothing about."""

    @abstractmethod
    def project_observation(self, y: Tensor, z: Tensor) -> Tensor:
        """S^+ U^T y: what y says of the coordinates, shaped as z; 0 where it says nothing."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


@final
class Identity(Degradation):
    """H = 1: nothing but the noise is to be taken away."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def to_spectral(self, x: Tensor) -> Tensor:
        return x

    def from_spectral(self, z: Tensor) -> Tensor:
        return z

    def singular_values(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def project_observation(self, y: Tensor, z: Tensor) -> Tensor:
        return y


class GroupMean(Degradation):
    """Of every group of k numbers, y has the mean: one coordinate of each group, with the singular value 1/sqrt(k)."""

    @abstractmethod
    def split_groups(self, x: Tensor) -> Tensor:
        """(k, ...), without the k shaped as y."""

    @abstractmethod
    def merge_groups(self, groups: Tensor) -> Tensor:
        """Undoes :meth:`split_groups`."""

    @final
    def __call__(self, x: Tensor) -> Tensor:
        means: Tensor = self.split_groups(x).mean(0)
        return means

    @final
    def to_spectral(self, x: Tensor) -> Tensor:
        groups = self.split_groups(x)
        coordinates: Tensor = torch.tensordot(_build_mean_first_basis(groups), groups, 1)
        return coordinates

    @final
    def from_spectral(self, z: Tensor) -> Tensor:
        return self.merge_groups(torch.tensordot(_build_mean_first_basis(z).T, z, 1))

    @final
    def singular_values(self, z: Tensor) -> Tensor:
        values = torch.zeros_like(z)
        values[0] = len(z) ** -0.5
        return values

    @final
    def project_observation(self, y: Tensor, z: Tensor) -> Tensor:
        seen = torch.zeros_like(z)
        seen[0] = len(z) ** 0.5 * y
        return seen


@final
class Downsample(GroupMean):
    """The mean of every block of factor x factor pixels."""

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise UserError(f"images are made smaller by a factor of 2 or more, got {factor}")
        self.factor = factor

    def split_groups(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise UserError(
                f"images of {x.shape[-2]}x{x.shape[-1]} do not fall into blocks of {self.factor}x{self.factor}; "
                "take a factor that divides their size"
            )
        blocks = functional.pixel_unshuffle(x, self.factor)  # (b, c f f, h, w)
        return blocks.reshape(len(x), x.shape[1], -1, *blocks.shape[2:]).movedim(2, 0)

    def merge_groups(self, groups: Tensor) -> Tensor:
        return functional.pixel_shuffle(groups.movedim(0, 2).flatten(1, 2), self.factor)


@final
class Grayscale(GroupMean):
    """The mean of a pixel's channels."""

    def split_groups(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise UserError("images of one channel have no colour to lose; colourisation needs a model of RGB images")
        return x.movedim(1, 0).unsqueeze(2)

    def merge_groups(self, groups: Tensor) -> Tensor:
        return groups.squeeze(2).movedim(0, 1)


def _build_mean_first_basis(like: Tensor) -> Tensor:
    """(k, k) orthonormal, k the first size of its argument: the first row equal numbers, the others any."""
    k = len(like)
    square = torch.eye(k, dtype=torch.float64)
    square[:, 0] = 1
    basis = torch.linalg.qr(square).Q.T
    signed: Tensor = basis * basis[0, 0].sign()
    return signed.to(like)


@final
class DDRM(Sampler):
    """Samples images of which y = H x_0 + sigma_y z is known; Kawar et al. 2022, eq. 7-8.

    Every coordinate of V^T is drawn by itself, all from one x^_0: those that y says nothing about as DDIM does with
    eta; those of which y is noisier than x_s is, guided by y in place of the last x_t; those that y knows better, by y
    itself with weight eta_b. Spends one network evaluation a step.

    Args:
        degradation: H.
        y: (b, ...) what is known, as :class:`Degradation` gives it, in the range of images in [-1, 1].
        sigma: sigma_y, the noise in y, in that range.
        steps: how many of the T steps are visited; ``None`` for all.
        eta, eta_b: as in the paper, which takes 0.85 and 1.
        spacing: which steps.
    """

    def __init__(
        self,
        degradation: Degradation,
        y: Tensor,
        sigma: float = 0.0,
        steps: int | None = 20,
        eta: float = 0.85,
        eta_b: float = 1.0,
        spacing: Spacing = uniform_spacing,
    ) -> None:
        if not 0 <= sigma < float("inf"):
            raise UserError(f"the noise of an image is at least 0 and finite, got sigma={sigma}")
        self.degradation, self.y, self.sigma = degradation, y, sigma
        self.eta, self.eta_b = check_fraction("eta", eta), check_fraction("eta_b", eta_b)
        self.steps, self.spacing = steps, spacing

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, H = denoise.schedule, self.degradation
        signal, level = (each.tolist() for each in (schedule.signal, schedule.noise))
        T = schedule.T
        z = H.to_spectral(x_T)
        s = H.singular_values(z)
        seen, blind = H.project_observation(self.y.to(x_T), z), s == 0
        # the noise of y in these coordinates, where y says anything
        sigma = torch.where(blind, 0.0, self.sigma / torch.where(blind, 1.0, s))
        if bool((signal[T] * sigma > level[T]).any()):
            raise UserError(
                f"an image with noise of sigma={self.sigma:g} is noisier than the schedule's x_T; lower the noise"
            )
        start = signal[T] * seen + (level[T] ** 2 - (signal[T] * sigma) ** 2).sqrt() * z
        x = H.from_spectral(torch.where(blind, level[T] * z, start))
        for t, until in list_steps(T, self.spacing, self.steps):
            guess = denoise(x, t)
            x_0 = H.to_spectral(guess.x_0)
            z = H.to_spectral(noise(x)) if until else torch.zeros_like(z)
            fresh, kept = self.eta * level[until], (1 - self.eta**2) ** 0.5 * level[until]
            unseen = signal[until] * x_0 + kept * H.to_spectral(guess.eps) + fresh * z
            noisier = signal[until] * x_0 + kept * (seen - x_0) / torch.where(sigma == 0, 1.0, sigma) + fresh * z
            room = (level[until] ** 2 - (signal[until] * sigma * self.eta_b) ** 2).clamp(min=0).sqrt()
            known = signal[until] * ((1 - self.eta_b) * x_0 + self.eta_b * seen) + room * z
            better = torch.where(signal[until] * sigma <= level[until], known, noisier)
            x = H.from_spectral(torch.where(blind, unseen, better))
            yield x

    def nfe(self, T: int) -> int:
        return len(list_steps(T, self.spacing, self.steps))

    def __repr__(self) -> str:
        return (
            f"DDRM({self.degradation}, sigma={self.sigma:g}, steps={self.steps}, eta={self.eta:g}, "
            f"eta_b={self.eta_b:g}, spacing={self.spacing.__name__})"
        )

"""DDRM: linear inverse problems y = H x_0 + sigma_y z, solved by sampling; Kawar et al. 2022 (arXiv:2201.11793).

A degradation H is given by its singular value decomposition H = U S V^T: by V^T, an orthonormal change of basis of
images to spectral coordinates, by the singular values S, and by S^+ U^T, which maps y to spectral coordinates.

Cost: one network evaluation (NFE) per step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.formatting import format_settings
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler, Spacing, check_fraction, list_steps, uniform_spacing
from lightning_ddpm.utils.errors import UserError


class Degradation(ABC):
    """A linear degradation H of images x (b, c, h, w)."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return y = H x, without noise.

        Raises:
            UserError: images of this shape cannot be degraded in this way.
        """

    @abstractmethod
    def to_spectral(self, x: Tensor) -> Tensor:
        """Return the spectral coordinates V^T x, in any shape."""

    @abstractmethod
    def from_spectral(self, z: Tensor) -> Tensor:
        """Return V z: the inverse of :meth:`to_spectral`."""

    @abstractmethod
    def observe(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and S^+ U^T y: the singular value of each coordinate of z, and the coordinates that y determines.

        Both are shaped as z, and 0 for the coordinates that y does not determine.
        """

    __repr__ = format_settings


@final
class Identity(Degradation):
    """H = 1, for denoising: y differs from x_0 by its noise alone."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def to_spectral(self, x: Tensor) -> Tensor:
        return x

    def from_spectral(self, z: Tensor) -> Tensor:
        return z

    def observe(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(z), y


class GroupMean(Degradation):
    """y holds the mean of every group of k values: one coordinate per group, with the singular value 1/sqrt(k)."""

    @abstractmethod
    def split_groups(self, x: Tensor) -> Tensor:
        """Return the groups ``(k, *y.shape)``."""

    @abstractmethod
    def merge_groups(self, groups: Tensor) -> Tensor:
        """Return the images: the inverse of :meth:`split_groups`."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.split_groups(x).mean(0)

    def to_spectral(self, x: Tensor) -> Tensor:
        groups = self.split_groups(x)
        z: Tensor = torch.tensordot(_build_mean_first_basis(groups), groups, 1)
        return z

    def from_spectral(self, z: Tensor) -> Tensor:
        return self.merge_groups(torch.tensordot(_build_mean_first_basis(z).T, z, 1))

    def observe(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        values, observed = torch.zeros_like(z), torch.zeros_like(z)
        values[0], observed[0] = len(z) ** -0.5, len(z) ** 0.5 * y
        return values, observed


@final
class Downsample(GroupMean):
    """Average pooling over blocks of factor x factor pixels."""

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise UserError(f"the downsampling factor must be at least 2, got {factor}")
        self.factor = factor

    def split_groups(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise UserError(
                f"images of {x.shape[-2]}x{x.shape[-1]} cannot be divided into blocks of {self.factor}x{self.factor}; "
                "use a factor that divides their size"
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
            raise UserError("images of one channel are already grayscale; colourisation needs a model of RGB images")
        return x.movedim(1, 0).unsqueeze(2)

    def merge_groups(self, groups: Tensor) -> Tensor:
        return groups.squeeze(2).movedim(0, 1)


def _build_mean_first_basis(like: Tensor) -> Tensor:
    """Return an orthonormal (k, k) matrix, k = len(like), whose first row is constant."""
    k = len(like)
    vectors = torch.eye(k, dtype=torch.float64)
    vectors[:, 0] = 1
    basis: Tensor = torch.linalg.qr(vectors).Q.T
    return (basis * basis[0, 0].sign()).to(like)


@final
class DDRM(Sampler):
    """Samples images x_0 given y = H x_0 + sigma_y z; Kawar et al. 2022, eq. 7-8.

    A step samples each spectral coordinate on its own, given x^_0. There are three cases: a coordinate that y does not
    determine is sampled as in DDIM with eta; one whose y is noisier than x_s is guided by y in place of eps^; one whose
    y is less noisy than x_s is sampled around y with weight eta_b.

    Args:
        degradation: H.
        y: (b, ...) the observation, shaped as the output of ``degradation``, for images in [-1, 1].
        sigma: sigma_y, the standard deviation of the noise in y, on the same scale.
        steps: number of the T timesteps to visit; ``None`` for all.
        eta, eta_b: as in the paper, which uses 0.85 and 1.
        spacing: which timesteps, if not all.
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
            raise UserError(f"the noise of the observation must be at least 0 and finite, got sigma={sigma}")
        self.degradation, self.y, self.sigma = degradation, y, sigma
        self.eta, self.eta_b = check_fraction("eta", eta), check_fraction("eta_b", eta_b)
        self.steps, self.spacing = steps, spacing

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, H = denoise.schedule, self.degradation
        T, steps = schedule.T, list_steps(schedule.T, self.spacing, self.steps)
        times = [T, *(s for _, s in steps)]
        signal, level = ({t: float(at(t)) for t in times} for at in (schedule.signal_at, schedule.noise_at))
        z = H.to_spectral(x_T)
        values, observed = H.observe(self.y.to(x_T), z)
        unobserved = values == 0
        # sigma_y / S, the noise of y in spectral coordinates; unused where S is 0
        sigma = torch.where(unobserved, 0.0, self.sigma / torch.where(unobserved, 1.0, values))
        if bool((signal[T] * sigma > level[T]).any()):
            raise UserError(f"the noise sigma={self.sigma:g} is larger than that of the schedule's x_T; lower it")
        start = signal[T] * observed + (level[T] ** 2 - (signal[T] * sigma) ** 2).sqrt() * z
        x = H.from_spectral(torch.where(unobserved, level[T] * z, start))
        for t, s in steps:
            denoised = denoise(x, t)
            x_0 = H.to_spectral(denoised.x_0)
            z = H.to_spectral(noise(x)) if s else torch.zeros_like(z)
            fresh, kept = self.eta * level[s], (1 - self.eta**2) ** 0.5 * level[s]
            without_y = signal[s] * x_0 + kept * H.to_spectral(denoised.eps) + fresh * z
            noisy_y = signal[s] * x_0 + kept * (observed - x_0) / torch.where(sigma == 0, 1.0, sigma) + fresh * z
            remaining = (level[s] ** 2 - (signal[s] * sigma * self.eta_b) ** 2).clamp(min=0).sqrt()
            clean_y = signal[s] * ((1 - self.eta_b) * x_0 + self.eta_b * observed) + remaining * z
            with_y = torch.where(signal[s] * sigma <= level[s], clean_y, noisy_y)
            x = H.from_spectral(torch.where(unobserved, without_y, with_y))
            yield x

    def nfe(self, T: int) -> int:
        return len(list_steps(T, self.spacing, self.steps))

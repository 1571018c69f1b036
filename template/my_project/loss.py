"""The loss: one value for each image of a batch."""

from lightning_ddpm.diffusion import Denoiser, Objective, q_sample
from torch import Tensor


class PseudoHuber(Objective):
    """sqrt(error^2 + c^2) - c of the predicted noise, averaged over the values of each image.

    Args:
        c: the error at which the loss turns from quadratic to linear.
    """

    def __init__(self, c: float = 1.0) -> None:
        self.c = c

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        _, eps_hat = denoise(q_sample(denoise.schedule, x_0, t, eps), t)
        error = (eps_hat - eps).float()
        return ((error.square() + self.c**2).sqrt() - self.c).flatten(1).mean(1)

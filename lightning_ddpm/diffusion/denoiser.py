"""What the network says about an image, in the terms that samplers need."""

from collections.abc import Callable

from torch import Tensor

from lightning_ddpm.diffusion.parameterization import Denoised, Epsilon, Parameterization
from lightning_ddpm.diffusion.process import expand_timesteps, x_0_to_eps
from lightning_ddpm.diffusion.schedule import NoiseSchedule, Timestep
from lightning_ddpm.utils.errors import UserError

NetworkFunction = Callable[..., Tensor]
"""(x_t (b, c, h, w), t (b,) in 1..T) -> (b, c, h, w), or (b, 2c, h, w) from a network that learns the variance too.

One with classes takes a third, label (b,) int64, -1 for none; without it, it is that of no class."""


class Denoiser:
    """Reads a network: x_t, t -> (x^_0, eps^).

    Args:
        network: predicts from (x_t, t); anything callable, an analytic eps included.
        schedule: the noise schedule it was trained on.
        clip: half-width of the range that images live in. x^_0 is clipped to [-clip, clip] before any mean is formed,
            and eps^ derived from it again, so that the two still make x_t. ``None`` for data without bounds.
        prediction: what the network's output means; ``None`` for the noise.

    Raises:
        UserError: the prediction and the schedule do not go together.
    """

    def __init__(
        self,
        network: NetworkFunction,
        schedule: NoiseSchedule,
        clip: float | None = 1.0,
        parameterization: Parameterization | None = None,
    ) -> None:
        self.network, self.schedule, self.clip = network, schedule, clip
        self.parameterization = parameterization or Epsilon()
        self.parameterization.check_schedule(schedule)

    def with_network(self, network: NetworkFunction) -> "Denoiser":
        """Another network, read in the same way."""
        return Denoiser(network, self.schedule, self.clip, self.parameterization)

    def conditioned_on(self, label: Tensor) -> "Denoiser":
        """The network told the classes (b,) of every batch that will be denoised."""
        return self.with_network(lambda x_t, t: self.network(x_t, t, label))

    def without_clipping(self) -> "Denoiser":
        """The same network, read without clipping."""
        return Denoiser(self.network, self.schedule, None, self.parameterization)

    def __call__(self, x_t: Tensor, t: Timestep) -> Denoised:
        """Denoise a batch.

        Args:
            x_t: (b, c, h, w) noisy images.
            t: the step of the whole batch, 1..T, or (b,) of them; real where a solver stops between steps.
        """
        return self.interpret(x_t, *self.network_output(x_t, t), t)

    def network_output(self, x_t: Tensor, t: Timestep) -> tuple[Tensor, Tensor | None]:
        """The network's output (b, c, h, w) as it is, and nu = (v + 1) / 2 where it has channels for it.

        Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1: v is -1 at beta~ and 1 at beta, and left unbounded.
        """
        output = self.network(x_t, expand_timesteps(t, x_t)).to(x_t.dtype)
        if output.shape == x_t.shape:
            return output, None
        if output.shape[1] != 2 * x_t.shape[1]:
            raise UserError(
                f"the network must answer {x_t.shape[1]} channels with as many, or twice as many if it learns the "
                f"variance, got {output.shape[1]}"
            )
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2

    def interpret(self, x_t: Tensor, output: Tensor, nu: Tensor | None, t: Timestep) -> Denoised:
        """What :meth:`network_output` says, in terms of image and noise, clipped."""
        x_0, eps = self.parameterization.to_denoised(self.schedule, x_t, output, t)
        if self.clip is None:
            return Denoised(x_0, eps, nu)
        x_0 = x_0.clamp(-self.clip, self.clip)
        return Denoised(x_0, x_0_to_eps(self.schedule, x_t, x_0, t), nu)

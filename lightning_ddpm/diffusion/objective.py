"""What training minimises."""

from torch import Tensor


def simple_loss(eps: Tensor, eps_hat: Tensor) -> Tensor:
    """L_simple for each image: the squared error of the predicted noise; Ho et al. 2020 (arXiv:2006.11239), eq. 14.

    The mean over pixels, not the sum, as in Ho et al.'s code: losses of different image sizes compare.

    Args:
        eps: (b, c, h, w) the noise in x_t.
        eps_hat: (b, c, h, w) what the network says it is.

    Returns:
        (b,) float32, whatever precision the network ran in.
    """
    return (eps_hat.float() - eps.float()).square().flatten(1).mean(1)

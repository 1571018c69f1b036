"""A trial of the parts of a model that a user may have written, which reports a broken contract before training."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_ddpm.diffusion import Denoiser, MarkovSampler
from lightning_ddpm.models.conditioning import make_example
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.network import check_forward
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.contracts import check_call, describe_class, is_ours
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator, seed_globally

IMAGES = 2
"""Number of images in the trial: enough to distinguish one loss for each from their mean."""


def check_parts(model: DDPM, context: Callable[[], AbstractContextManager[object]]) -> None:
    """Compute the loss of two images, and make a step of a sampler of the user's; nothing of the model changes.

    Args:
        model: the model, on its device.
        context: entered around the network, for its precision.

    Raises:
        UserError: the network, the objective or the sampler does not do what its base class documents.
        Exception: code of the user's raised it.
    """
    check_forward(model.network, bool(model.condition_kinds))
    device, T = model.device, model.schedule.T
    x_0 = torch.zeros(IMAGES, *model.image_shape, device=device)
    eps = torch.randn(x_0.shape, device=device, generator=make_generator(device, "trial"))
    t = torch.tensor([1, T], device=device)
    example = make_example(model.condition_format, bool(model.class_names), IMAGES).to(device)
    condition = example.hide(torch.tensor([True, False], device=device))

    def network(x_t: Tensor, t: Tensor, *given: Tensor | Condition, **interval: Tensor) -> Tensor:
        with context():
            # its __call__ would compile it for two images
            output: Tensor = model.network.forward(x_t, t, *given, **interval)
            return output

    training = model.training
    model.eval()
    try:
        with seed_globally(device, "trial"):
            denoise = model.denoiser.with_network(network)
            denoise = denoise.conditioned_on(condition) if condition.kinds else denoise
            losses = model.objective.losses(denoise.without_clipping(), x_0, t, eps)
            _check_losses(model, losses)
            _check_sampler(model, x_0 + eps)
    finally:
        model.train(training)


def _check_losses(model: DDPM, losses: object) -> None:
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if not isinstance(losses, Tensor) or shape != (IMAGES,):
        raise UserError(
            f"{describe_class(type(model.objective))}.losses must return the loss of each image, a tensor of shape "
            f"({IMAGES},) for {IMAGES} images, got {shape}; take the mean over pixels only"
        )
    if not losses.is_floating_point() or not losses.requires_grad:
        raise UserError(
            f"{describe_class(type(model.objective))}.losses must return floats that depend on the network's output, "
            "got a tensor without gradients; do not detach it"
        )


def _check_sampler(model: DDPM, x_T: Tensor) -> None:
    """Make the first step of a Markov sampler of the user's, with a network that predicts zeros."""
    sampler, T = model.sampler, model.schedule.T
    if is_ours(type(sampler)):
        return
    denoise = Denoiser(lambda x_t, t: torch.zeros_like(x_t), model.schedule, parameterization=model.parameterization)
    if not isinstance(sampler, MarkovSampler):
        check_call(sampler, sampler.trajectory, "denoise, x_T, noise")
        return
    check_call(sampler, sampler.step, "denoise, x_t, t, s, noise")
    with torch.no_grad():
        x_s = sampler.step(denoise, x_T, T, T - 1, torch.randn_like)
    if not isinstance(x_s, Tensor) or x_s.shape != x_T.shape:
        got = tuple(x_s.shape) if isinstance(x_s, Tensor) else type(x_s).__name__
        raise UserError(
            f"{describe_class(type(sampler))}.step must return x_s in the shape of x_t, {tuple(x_T.shape)}, got {got}"
        )

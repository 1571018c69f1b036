"""The likelihood of given images under the probability-flow ODE of a model, on every path and for values of any type.

Song et al. 2021 (arXiv:2011.13456), section 4.3. The dequantisation and the probe of image i depend on (seed, i) alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.data.conditioned import convert_image
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.sharding import split_evenly, spread_indices
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion.gaussian_path import choose_precision
from lightning_ddpm.diffusion.samplers.ode import flow_log_likelihood, hutchinson_divergence
from lightning_ddpm.metrics.bits_per_dim import Context, build_denoisers
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise

NAME = "bits_per_dim_flow"


class FlowEstimate(NamedTuple):
    """-log2 p of a set of images under the flow, in bits/dim.

    Attributes:
        n: number of images.
        mean: mean over the images.
        standard_error: standard error of the mean: the standard deviation over images / sqrt(n).
        nfe: mean number of network evaluations per image, each with a backward pass.
    """

    n: int
    mean: float
    standard_error: float
    nfe: float


def check_tolerance(tolerance: float) -> float:
    """Return the tolerance of a solver, after checking that it lies between 0 and 1."""
    if not 0 < tolerance < 1:
        raise UserError(f"the tolerance must lie between 0 and 1, got {tolerance}; Song et al. use 1e-5")
    return tolerance


def measure_flow_likelihood(
    model: DDPM,
    images: ImageDataset,
    n: int,
    seed: int,
    batch_size: int,
    tolerance: float,
    ranks: Ranks,
    context: Context,
    progress: Callable[..., Iterator[Tensor]],
) -> FlowEstimate:
    """Measure -log2 p of images, without clipping; every rank must call.

    A conditional model is given what the images are conditioned on. See :func:`to_bits_per_dim` for the unit.

    Args:
        model: the model, with the weights to use.
        images: the dataset.
        n: number of images to use, spread evenly over the dataset.
        seed: seed of dequantisation and probes.
        batch_size: images processed at a time.
        tolerance: of the solver.
        ranks: the processes that share the work.
        context: entered around the network, for its precision.
        progress: passes on the batches of (count, batch) pairs and shows how many are done.
    """
    chosen, device = spread_indices(n, len(images)), model.device
    sums = torch.zeros(4, dtype=torch.float64)

    def compute_batch(start: int, stop: int) -> Tensor:
        pixels, given = images.__getitems__(chosen[start:stop])
        return compute_bits_per_dim(model, pixels, as_condition(given), seed, start, tolerance, context)

    shard = split_evenly(n, seed, batch_size, ranks)
    with evaluation_mode(model):
        batches = ((stop - start, compute_batch(start, stop)) for _, start, stop in shard)
        for each in progress(batches, sum(stop - start for _, start, stop in shard)):
            sums += each.sum(1)
    # not every accelerator has float64: the sums are converted where they are exchanged
    dtype = choose_precision(device)
    count, total, square, nfe = ranks.reduce(sums.to(device, dtype)).tolist()
    mean = total / count
    variance = max(square - count * mean * mean, 0.0) / (count - 1)
    return FlowEstimate(int(count), mean, (variance / count) ** 0.5, nfe / count)


def compute_bits_per_dim(
    model: DDPM, pixels: Tensor, condition: Condition, seed: int, start: int, tolerance: float, context: Context
) -> Tensor:
    """Compute for each image 1, its bits/dim, their square and the network evaluations, (4, b) float64 on the CPU.

    Args:
        model: the model.
        pixels: (b, c, h, w) values of the data.
        condition: what they are conditioned on.
        seed: seed of dequantisation and probes.
        start: index of the first image.
        tolerance: of the solver.
        context: entered around the network, for its precision.
    """
    device, stop, calls = model.device, start + len(pixels), 0
    with torch.inference_mode(False), torch.no_grad():  # autograd cannot use the tensors of inference mode, as in test
        x = model.values.to_float(pixels.clone().to(device)).to(choose_precision(device))
        x = x + dequantise(model.values, ImageNoise(seed, start, stop, "dequantise")(x))
        probe = ImageNoise(seed, start, stop, "probe")(x).sign()
        given = condition.map(torch.clone).to(device)
        _, denoise = build_denoisers(model, context, convert_image(given, model.condition_values))

        def count(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return denoise.network(x_t, t)

        nats = flow_log_likelihood(denoise.with_network(count), x, hutchinson_divergence(probe), tolerance)
        bits = to_bits_per_dim(model.values, nats.cpu().double(), x[0].numel())
        return torch.stack([torch.ones_like(bits), bits, bits.square(), torch.full_like(bits, calls)])


def dequantise(values: ValueRange, z: Tensor) -> Tensor:
    """Return what spreads integers uniformly over the unit around them, on the model's scale; 0 for real values.

    Integers have no density, and a flow could give them any (Theis et al. 2016, arXiv:1511.01844).

    Args:
        values: the type and the range of the values.
        z: (b, c, h, w) standard normal noise, whose quantiles are the uniform numbers.
    """
    if values.dtype.startswith("float"):
        return torch.zeros_like(z)
    shift: Tensor = torch.special.ndtr(z) - 0.5
    return shift / _half_range(values).to(z).reshape(-1, 1, 1)


def to_bits_per_dim(values: ValueRange, log_likelihood: Tensor, dimensions: int) -> Tensor:
    """Convert log p of the model's x in nats to -log2 p of the data in their own units, divided by the dimensions.

    A density in the data's units is that of x divided by half of their range, for every dimension. For integers, a unit
    is one level, and the result an upper bound on -log2 of the level's probability (Jensen): it compares with the
    bits/dim of the variational bound. For real values it depends on their unit, and may be below 0.
    """
    scale = float(_half_range(values).log2().mean())
    return -log_likelihood / (dimensions * math.log(2)) + scale


def _half_range(values: ValueRange) -> Tensor:
    """Return half of the distance from low to high, (1,) or (c,) float64."""
    low, high = (torch.tensor(each, dtype=torch.float64).reshape(-1) for each in (values.low, values.high))
    return (high - low) / 2

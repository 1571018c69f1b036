"""What samples and likelihoods of a model of Gaussian random fields are, beside the closed form."""

import csv
import math
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu_time import read_seconds
from benchmarks.gaussian_field import GaussianField
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.diffusion import Denoiser, DPMSolverPP, FixedLarge, q_sample
from lightning_ddpm.diffusion.elbo import elbo_term, prior_kl
from lightning_ddpm.diffusion.schedule import NoiseSchedule, require_chain
from lightning_ddpm.metrics.fields import compute_radial_spectrum, compute_spectral_distance
from lightning_ddpm.metrics.flow_likelihood import compute_bits_per_dim
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate, generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.random import ImageNoise

GIVEN = ((-1.2, -1.2), (-1.2, 1.2), (0.0, 0.0), (0.6, -0.6), (1.2, 1.2))
TOLERANCE = 1e-4
STEPS = 50
"""Steps of DPM-Solver++."""


def measure_gaussian(folder: Path, data: Path, options: Namespace) -> dict[str, Any]:
    """Return all measurements of the unconditional model; save some of its samples."""
    model, field = load(folder / "last.ckpt"), GaussianField()
    samples = generate(model, options.n, batch_size=32)
    np.save(folder / "samples.npy", samples[:4].numpy())
    other = np.load(data / "test.npy")
    best = Denoiser(lambda x_t, t: field.predict_eps(model.schedule, x_t, t), model.schedule, None)
    x_T = torch.randn(options.n, *samples.shape[1:], generator=torch.Generator().manual_seed(1))
    x = torch.from_numpy(other[spread_indices(options.likelihoods, len(other))])
    exact = -field.log_density(x) / (x[0].numel() * math.log(2))
    flow = compute_bits_per_dim(model, x, Condition(), 0, 0, TOLERANCE, nullcontext)
    bits = {
        "density": exact,
        "flow": flow[1],
        "ELBO": measure_elbo(model.denoiser.without_clipping(), x),
        "ELBO of the exact denoiser": measure_elbo(best, x),
    }
    return {
        "known": list_known(field),
        "trained": summarise(samples),
        "exact": summarise(DPMSolverPP(STEPS).sample(best, x_T)),
        "data": summarise(torch.from_numpy(other)),
        "bits": {name: describe_pairs(each, exact) for name, each in bits.items()},
        "likelihoods": len(x),
        "nfe": int(flow[3][0]),
        **describe_run(folder, model),
    }


def measure_conditional(folder: Path, data: Path, options: Namespace) -> dict[str, Any]:
    """Return the means of samples given each of some means, and the likelihood given that of each field."""
    model, field = load(folder / "last.ckpt"), GaussianField()
    given = torch.tensor(GIVEN).repeat_interleave(options.n // len(GIVEN), 0)
    request = SampleRequest(len(given), conditions=lambda start, stop: Condition(vector=given[start:stop]))
    samples = torch.cat([pixels for _, pixels in generate_batches(model, request)])
    means = samples.double().mean((2, 3)).unflatten(0, (len(GIVEN), -1))
    images = np.load(data / "train.npy", mmap_mode="r")
    chosen = spread_indices(options.likelihoods, len(images))
    with (data / "conditions.csv").open() as file:
        rows = [[float(each) for each in row] for row in list(csv.reader(file))[1:]]
    x, y = torch.from_numpy(images[chosen]), torch.tensor([rows[index] for index in chosen])
    exact = -field.log_density(x - y[:, :, None, None]) / (x[0].numel() * math.log(2))
    flow = compute_bits_per_dim(model, x, Condition(vector=y), 0, 0, TOLERANCE, nullcontext)[1]
    return {
        "given": GIVEN,
        "means": means.mean(1).tolist(),
        "errors": (means.std(1) / means.shape[1] ** 0.5).tolist(),
        "deviations": means.std(1).tolist(),
        "known_deviations": (field.covariance[0, 0].diagonal() / (field.height * field.width)).sqrt().tolist(),
        "trained": summarise(samples),
        "bits": {"density": describe_pairs(exact, exact), "flow": describe_pairs(flow, exact)},
        "likelihoods": len(x),
        **describe_run(folder, model),
    }


def describe_run(folder: Path, model: DDPM) -> dict[str, float]:
    """Return the size of the network and the CPU minutes of its training."""
    parameters = sum(each.numel() for each in model.network.parameters())
    return {"parameters": parameters, "minutes": sum(read_seconds(folder)) / 60}


def describe_pairs(bits: Tensor, exact: Tensor) -> list[float]:
    """Return the mean, that of the differences to the closed form of the same fields, and its standard error."""
    difference = bits - exact
    return [float(bits.mean()), float(difference.mean()), float(difference.std() / len(bits) ** 0.5)]


def list_spectra(fields: Tensor) -> Tensor:
    """Return the ring means (n, 3, k) of the two channels' power, and of the real part of their cross-spectrum."""
    first, second = fields.double().unbind(1)
    # |A + B|^2 - |A - B|^2 = 4 Re(A* B)
    powers = compute_radial_spectrum(torch.stack([first, second, first + second, first - second], dim=1))
    return torch.stack([powers[:, 0], powers[:, 1], (powers[:, 2] - powers[:, 3]) / 4], dim=1)


def list_known(field: GaussianField) -> dict[str, list[list[float]]]:
    """Return the field's ring means: those of a field whose Fourier coefficients are the roots of the covariance."""
    S = field.covariance
    roots = torch.stack([S[..., 0, 0], S[..., 1, 1], S[..., 0, 1]]).sqrt()
    spectra = compute_radial_spectrum(torch.fft.ifft2(roots, norm="ortho").real[None])[0]
    return {"spectra": spectra.tolist(), "coherence": compute_coherence(spectra).tolist()}


def compute_coherence(spectra: Tensor) -> Tensor:
    """Compute Re S_12 / sqrt(S_1 S_2) of each ring, (..., k), from ring means (..., 3, k)."""
    return spectra[..., 2, :] / (spectra[..., 0, :] * spectra[..., 1, :]).sqrt()


def summarise(fields: Tensor) -> dict[str, Any]:
    """Return mean spectra and coherence with their standard errors, those of the coherence by the jackknife."""
    spectra, n = list_spectra(fields), len(fields)
    mean = spectra.mean(0)
    each = compute_coherence((n * mean - spectra) / (n - 1))
    error = ((n - 1) / n * (each - each.mean(0)).square().sum(0)).sqrt()
    known = torch.tensor(list_known(GaussianField())["spectra"], dtype=torch.float64)
    correlation = (fields[:, 0].double() * fields[:, 1].double()).mean((1, 2))
    return {
        "n": n,
        "spectra": mean.tolist(),
        "errors": (spectra.std(0) / n**0.5).tolist(),
        "coherence": compute_coherence(mean).tolist(),
        "coherence_errors": error.tolist(),
        "distance": compute_spectral_distance(mean[:2], known[:2]).tolist(),
        "correlation": [float(correlation.mean()), float(correlation.std() / n**0.5)],
    }


@torch.no_grad()
def measure_elbo(denoise: Denoiser, x_0: Tensor) -> Tensor:
    """Estimate the variational bound on -log2 p of each field's density, (b,) float64 bits/dim.

    The terms are the package's, with the variances beta, which are optimal for data of variance 1 (Ho et al. 2020,
    section 3.2); the decoder is the Gaussian's density in place of the probability of a level: eq. 5, before the
    discretisation of eq. 13.
    """
    schedule, noise = require_chain(denoise.schedule, "the variational bound"), ImageNoise(0, 0, len(x_0), "elbo")
    variance = FixedLarge()
    total = prior_kl(schedule, x_0).double()
    for t in range(1, schedule.T + 1):
        denoised = denoise(x_t := q_sample(schedule, x_0, t, noise(x_0)), t)
        if t > 1:
            total += elbo_term(schedule, variance, x_0, t, denoised).double()
        else:
            total += _decode(schedule, variance, x_0, x_t, denoised)
    return total


def _decode(schedule: NoiseSchedule, variance: FixedLarge, x_0: Tensor, x_t: Tensor, denoised: Any) -> Tensor:
    """Return -log2 of the density of x_0 given x_1, (b,) bits/dim."""
    log_variance = variance.log_variance(schedule, torch.ones(len(x_0), dtype=torch.long), denoised)
    log_variance = torch.as_tensor(log_variance).double().reshape(-1)[:1]
    error = (x_0 - denoised.x_0).double().square().flatten(1).mean(1)
    nats: Tensor = 0.5 * (math.log(2 * math.pi) + log_variance + error / log_variance.exp())
    return nats / math.log(2)

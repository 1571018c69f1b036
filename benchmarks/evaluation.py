"""Times the parts of an evaluation, the distance's matrix square root, and the effect of the batch size."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.models import load_shipped_model
from benchmarks.report import device, time_in_turns, write_result
from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics import DigitsFeatures, FrechetDistance, Inception, ModuleFeatures, Statistics
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.distributed import Ranks


def run(options: Namespace) -> None:
    """Time what an evaluation does for each batch, what it does once, and the time of an image by the batch size."""
    n = options.batch_size or 64
    model = load_shipped_model()
    digits, wide = DigitsFeatures().to(device()), ModuleFeatures(torch.nn.Flatten(), 2048, "wide").to(device())
    digits.load()
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=device())
    features = torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).to(device())
    accumulated, computed = FrechetDistance(wide, device()), FrechetDistance(wide, device())
    mean, covariance = (each.double().cpu().numpy() for each in (features.mean(0), features.T.cov()))
    statistics = Statistics(mean, covariance, len(features))
    for each in (accumulated, computed):
        each.set_reference_statistics(statistics, Ranks())
    sources = MemoryDataset(*Digits().open(Path(), "train").__getitems__(range(1024)))
    contenders = {
        f"generate {n} digits, DDIM 20": partial(model.generate, SampleRequest(n, sampler=DDIM(20)), 0, n),
        f"digit classifier's features of {n}": partial(digits, pixels[:, :1, :8, :8].contiguous()),
        f"accumulate {n} x 2048 features": partial(accumulated.update_features, features[:n]),
        "Fréchet distance of 2048 features, with its matrix square root": partial(
            _compute_distance, computed, features
        ),
        "reference statistics of 1024 digits": partial(_compute_reference, digits, sources),
    }
    batched: dict[str, tuple[int, Callable[[int], object]]] = {
        "digits": (1024, partial(_generate_and_evaluate, model, digits))
    }
    if options.weights_path:
        inception = Inception(str(options.weights_path)).to(device())
        inception.load()
        inception.to(device())
        contenders[f"Inception's features of {n}"] = partial(inception, pixels)
        contenders[f"torch-fidelity's features of {n}"] = partial(inception.network, pixels)
        batched["inception"] = (n, lambda size: _extract_at_once(inception, pixels[:size]))
    with evaluation_mode(model):
        seconds = time_in_turns(contenders, options.rounds)
        write_result(options.out, "evaluation", {"per": "call", "rounds": options.rounds}, seconds)
        for name, (most, work) in batched.items():
            _time_batch_sizes(options, name, most, work)


def _time_batch_sizes(options: Namespace, name: str, most: int, work: Callable[[int], object]) -> None:
    """Time an image in batches of several sizes."""
    sizes = {f"batch {size}": size for size in (max(1, most // part) for part in (64, 16, 4, 1))}
    seconds = time_in_turns({size: partial(work, each) for size, each in sizes.items()}, options.rounds)
    per = {size: [each / sizes[size] for each in found] for size, found in seconds.items()}
    write_result(
        options.out, f"evaluation_batches_{name}", {"per": "image", "images": 1, "rounds": options.rounds}, per
    )


def _generate_and_evaluate(model: DDPM, extractor: DigitsFeatures, n: int) -> None:
    extractor(model.generate(SampleRequest(n, sampler=DDIM(20)), 0, n))


def _extract_at_once(inception: Inception, pixels: torch.Tensor) -> None:
    inception.cpu_batch_size = len(pixels)
    inception(pixels)


def _compute_distance(distance: FrechetDistance, features: torch.Tensor) -> float:
    distance.update_features(features)
    return distance.compute()


def _compute_reference(extractor: DigitsFeatures, data: MemoryDataset) -> None:
    """Compute the statistics without the cache."""
    distance = FrechetDistance(extractor, device())
    distance.get_cache_path(data).unlink(missing_ok=True)
    distance.set_reference(data, Ranks(), _pass_batches)
    distance.get_cache_path(data).unlink(missing_ok=True)


def _pass_batches(batches, total):  # type: ignore[no-untyped-def]
    return (batch for _, batch in batches)

"""The parts of an evaluation, each alone, the distance's matrix square root, and how much larger batches give."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.models import pretrained
from benchmarks.report import device, in_turn, write
from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics import DigitsFeatures, FrechetDistance, Inception, ModuleFeatures, Statistics
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.sample_request import SampleRequest


def run(options: Namespace) -> None:
    """A batch of images is drawn, judged, and counted in; what is done once a figure; then an image's time by how many
    are drawn and judged at a time.
    """
    n = options.batch_size or 64
    model = pretrained()
    digits, wide = DigitsFeatures().to(device()), ModuleFeatures(torch.nn.Flatten(), 2048, "wide").to(device())
    digits.load()
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=device())
    features = torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).to(device())
    counted, whole = FrechetDistance(wide, device()), FrechetDistance(wide, device())
    covariance = features.T.cov().double().cpu().numpy()
    for each in (counted, whole):
        each.set_reference_statistics(Statistics(features.mean(0).double().cpu().numpy(), covariance, len(features)), 0)
    sources = MemoryDataset(*Digits().open(Path(), "train").__getitems__(range(1024)))
    contenders = {
        f"draw {n} digits, DDIM 20": partial(model.generate, (0, 0, n), DDIM(20)),
        f"digits' features of {n}": partial(digits, pixels[:, :1, :8, :8].contiguous()),
        f"count {n} x 2048 features in": partial(counted.update_features, features[:n]),
        "the distance of 2048 features, with its matrix square root": partial(_distance, whole, features),
        "reference statistics of 1024 digits": partial(_reference, digits, sources),
    }
    judges: dict[str, tuple[int, Callable[[int], object]]] = {"digits": (1024, partial(_draw_and_judge, model, digits))}
    if options.weights_path:
        inception = Inception(str(options.weights_path)).to(device())
        inception.load()
        inception.to(device())
        contenders[f"Inception's features of {n}"] = partial(inception, pixels)
        contenders[f"torch-fidelity's features of {n}"] = partial(inception.network, pixels)
        judges["inception"] = (n, lambda size: _together(inception, pixels[:size]))
    with evaluation_mode(model):
        seconds = in_turn(contenders, options.rounds)
        write(options.out, "evaluation", {"per": "call", "rounds": options.rounds}, seconds)
        for name, (most, work) in judges.items():
            _by_batch(options, name, most, work)


def _by_batch(options: Namespace, name: str, most: int, work: Callable[[int], object]) -> None:
    """An image's time, of so many at a time."""
    sizes = {f"{size} at a time": size for size in (max(1, most // part) for part in (64, 16, 4, 1))}
    seconds = in_turn({size: partial(work, each) for size, each in sizes.items()}, options.rounds)
    per = {size: [each / sizes[size] for each in found] for size, found in seconds.items()}
    write(options.out, f"evaluation_batches_{name}", {"per": "image", "images": 1, "rounds": options.rounds}, per)


def _draw_and_judge(model: DDPM, extractor: DigitsFeatures, n: int) -> None:
    extractor(model.generate(SampleRequest(n, sampler=DDIM(20)), 0, n))


def _together(inception: Inception, pixels: torch.Tensor) -> None:
    inception.at_a_time = len(pixels)
    inception(pixels)


def _distance(distance: FrechetDistance, features: torch.Tensor) -> float:
    distance.update_features(features)
    return distance.compute()


def _reference(extractor: DigitsFeatures, data: MemoryDataset) -> None:
    """Computed, not taken from the cache."""
    distance = FrechetDistance(extractor, device())
    distance.cache_path(data).unlink(missing_ok=True)
    distance.set_reference(data, lambda tensor: tensor, 0, 1, _silent)
    distance.cache_path(data).unlink(missing_ok=True)


def _silent(batches, total):  # type: ignore[no-untyped-def]
    return (batch for _, batch in batches)

"""Makes the tables of docs/results/evaluation.md, on the CPU.

    python -m benchmarks evaluation_tables --root data --weights_path FILE     # about an hour

Compares real CIFAR-10 images with real ones: the Fréchet distance of two sets from the same distribution, and how the
choices of a protocol change it. Features come from Inception (``--weights_path``, its published weights) and, for sets
too large for it on a CPU, from a small classifier that this script trains on CIFAR-10. Results are kept in ``--out``,
and a second run continues from them.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.page import PAGES, format_table, run_program, write_table
from lightning_ddpm.data import CIFAR10, Digits, ImageFolder, ImageSource
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics import (
    TF1,
    Antialiased,
    ClassifierFeatures,
    DigitsFeatures,
    FeatureExtractor,
    FrechetDistance,
    Inception,
    Statistics,
    TorchMetrics,
)
from lightning_ddpm.metrics.image_batches import BATCH
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import ImageNoise

PAGE = PAGES / "evaluation.md"
CPU = torch.device("cpu")
SIZES = (500, 1000, 2000, 5000, 10_000, 25_000, 50_000)
HALF = 25_000
"""Training images in each half; the second half is the reference."""
REFERENCE = 10_000
"""Reference images of the last column, which mixes all 60,000 training and test images."""
BY_INCEPTION = 2000
"""Images of each set, at most, for Inception: a CPU processes some ten images per second."""
FEW = 500
BATCH_SIZES = (1, 4, 7, 64, 250)


def add_options(parser: ArgumentParser) -> None:
    root = "CIFAR-10: train/ and test/ with its images, or where torchvision stores it"
    parser.add_argument("--root", type=Path, default=Path("data"), help=root)
    parser.add_argument("--weights_path", required=True, help="Inception's weights")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/evaluation_tables"), help="features and results")


def run(options: Namespace) -> None:
    source = ImageFolder(3, 32) if (options.root / "train").is_dir() else CIFAR10()
    source.prepare(options.root)
    train, test = (source.open(options.root, split) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(train))
    inception = Inception(options.weights_path)
    inception.load()
    classifier = train_classifier(source, options.root, options.out / "classifier")

    def read(split: str, start: int, stop: int) -> Tensor:
        data, rows = (train, order[start:stop]) if split == "train" else (test, range(start, stop))
        return data.__getitems__(rows)[0]

    cache = FeatureCache(options.out)
    features = partial(cache.features, read)
    by_classifier, by_inception = partial(features, "classifier", classifier), partial(features, "inception", inception)
    write_table(PAGE, "bias", make_bias_table(by_classifier, by_inception, classifier, inception))
    resizes = {resize.description: inception.with_resize(resize) for resize in (TF1(), Antialiased(), TorchMetrics())}
    write_table(PAGE, "resize", make_resize_table(features, resizes))
    write_table(PAGE, "rounding", make_rounding_table(cache, inception, read("train", 0, FEW), classifier))
    write_table(PAGE, "batch", make_batch_table(cache, inception, read("train", 0, 250)))


class FeatureCache:
    """Features in files, computed and written in parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def features(
        self, read: Callable[[str, int, int], Tensor], name: str, extractor: FeatureExtractor, split: str, n: int
    ) -> Tensor:
        """Return the features (n, d) of the first n images of a split."""

        def compute(start: int) -> Tensor:
            return extract(extractor, read(split, start, min(start + 500, n)))

        parts = range(0, n, 500)
        return torch.cat([self.get(f"{name}-{split}-{start}", partial(compute, start)) for start in parts])

    def get(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what was computed under this name, now or before."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, compute().numpy())
            print(f"computed {name}", flush=True)
        return torch.from_numpy(np.load(path))


@torch.no_grad()
def extract(extractor: FeatureExtractor, pixels: Tensor, batch_size: int = BATCH) -> Tensor:
    return torch.cat([extractor(each.contiguous()) for each in torch.split(pixels, batch_size)])


def compute_distance(extractor: FeatureExtractor, features: Tensor, reference: Tensor) -> float:
    """Compute the package's own Fréchet distance between features."""
    known = Statistics(reference.double().mean(0).numpy(), np.cov(reference.double().numpy().T), len(reference))
    distance = FrechetDistance(extractor, CPU)
    distance.set_reference_statistics(known, Ranks())
    distance.update_features(features)
    return distance.compute()


def make_bias_table(
    by_classifier: Callable[[str, int], Tensor],
    by_inception: Callable[[str, int], Tensor],
    classifier: FeatureExtractor,
    inception: FeatureExtractor,
) -> list[str]:
    columns = ["N", f"FID to {BY_INCEPTION:,} test images", "classifier, to the other half of the training images"]
    columns.append(f"classifier, to {REFERENCE:,} others of all 60,000")
    train = by_classifier("train", 2 * HALF)
    order = np.random.default_rng(1).permutation(2 * HALF + REFERENCE)
    mixed = torch.cat([train, by_classifier("test", REFERENCE)])[order]
    rows = []
    for n in SIZES:
        fid = halves = ""
        if n <= BY_INCEPTION:
            fid = f"{compute_distance(inception, by_inception('train', n), by_inception('test', BY_INCEPTION)):.2f}"
        if n <= HALF:
            halves = f"{compute_distance(classifier, train[:n], train[HALF:]):.3f}"
        rows.append([f"{n:,}", fid, halves, f"{compute_distance(classifier, mixed[:n], mixed[-REFERENCE:]):.3f}"])
    return format_table(columns, rows)


def make_resize_table(features: Callable[..., Tensor], resizes: dict[str, Inception]) -> list[str]:
    rows = []
    for description, extractor in resizes.items():
        name = "inception" if extractor.metric == "fid" else extractor.metric
        train, test = (features(name, extractor, split, FEW) for split in ("train", "test"))
        rows.append([description, f"`{extractor.metric}`", f"{compute_distance(extractor, train, test):.2f}"])
    return format_table(["protocol", "logged as", "distance"], rows)


def make_rounding_table(
    cache: FeatureCache, inception: Inception, images: Tensor, classifier: ClassifierFeatures
) -> list[str]:
    """Compare images between gray levels, as a sampler makes them, that are left as they are, rounded, or truncated."""
    x = images.float()
    shifted = (x + x.roll(1, -1) + x.roll(1, -2) + x.roll((1, 1), (-1, -2))) / 4 + 0.3  # by half a pixel
    generated = generate_float_digits(1797)
    digits = DigitsFeatures()
    digits.load()
    splits = [Digits().open(Path(), split) for split in ("train", "test")]
    real = torch.cat([split.__getitems__(range(len(split)))[0] for split in splits])
    columns = ["pixels", "FID of shifted CIFAR-10 images", "classifier, the same", "`fd_digits` of generated digits"]
    references = extract(inception, images), extract_from_floats(classifier, x), extract(digits, real)
    rows = []
    for name, convert in {
        "not rounded": lambda y: y,
        "rounded (as here)": torch.round,
        "truncated": torch.floor,
    }.items():
        found = (
            cache.get(
                f"rounding-{name.split()[0]}", partial(extract_inception_from_floats, inception, convert(shifted))
            ),
            extract_from_floats(classifier, convert(shifted)),
            extract_from_floats(digits, convert(generated)),
        )
        fid, by_classifier, fd_digits = map(compute_distance, (inception, classifier, digits), found, references)
        rows.append([name, f"{fid:.3f}", f"{by_classifier:.4f}", f"{fd_digits:.3f}"])
    return format_table(columns, rows)


def make_batch_table(cache: FeatureCache, inception: Inception, images: Tensor) -> list[str]:
    found = {b: cache.get(f"batch-{b}", partial(extract_in_batches, inception, images, b)) for b in BATCH_SIZES}
    half, default = len(images) // 2, inception.cpu_batch_size
    fid = {b: compute_distance(inception, each[:half], found[default][half:]) for b, each in found.items()}
    rows = []
    for b, features in found.items():
        difference = (features - found[default]).abs().max()
        rows.append([str(b), f"{difference:.1e}", f"{abs(fid[b] - fid[default]):.1e} of {fid[default]:.1f}"])
    return format_table(["batch size", "largest difference of a feature", "of the FID"], rows)


def extract_in_batches(inception: Inception, images: Tensor, batch_size: int) -> Tensor:
    other = inception.with_resize(inception.resize)
    other.cpu_batch_size = batch_size
    return extract(other, images, batch_size)


@torch.no_grad()
def extract_inception_from_floats(inception: Inception, pixels: Tensor) -> Tensor:
    """Return the features that :class:`Inception` computes from floats in 0..255."""
    return torch.cat([inception(each) for each in torch.split(pixels, BATCH)])  # .float() leaves floats unchanged


@torch.no_grad()
def extract_from_floats(extractor: DigitsFeatures | ClassifierFeatures, pixels: Tensor) -> Tensor:
    assert extractor.network is not None
    return extractor.network.embed(to_float(pixels))


def generate_float_digits(n: int) -> Tensor:
    """Return digits of the shipped model by DDIM with 20 steps, as floats in 0..255: (n, 1, 8, 8)."""
    model = load("checkpoints/pretrained/digits.ckpt", DDPM)
    noise = ImageNoise(0, 0, n)
    with evaluation_mode(model):
        x_0 = DDIM(20).sample(model.denoiser, noise(torch.empty(n, *model.image_shape)), noise)
    return (x_0.clamp(-1, 1) + 1) * 127.5


def train_classifier(source: ImageSource, root: Path, folder: Path) -> ClassifierFeatures:
    """Train configs/digits_features.yaml on CIFAR-10, unless it was trained before."""
    ckpt = folder / "last.ckpt"
    if not ckpt.exists():
        data = ["--data.source", f"lightning_ddpm.data.{type(source).__name__}", "--data.root", root]
        data += ["--data.source.size", 32] if isinstance(source, ImageFolder) else []
        trainer = ("--trainer.default_root_dir", folder, "--trainer.check_val_every_n_epoch", 1)
        run_program("fit", "--config", "configs/digits_features.yaml", *data, *trainer)
    extractor = ClassifierFeatures(str(ckpt), "cifar10")
    extractor.check_images(3, 32)
    return extractor

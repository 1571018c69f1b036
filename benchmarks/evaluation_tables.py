"""Makes the tables in docs/results/evaluation.md, on the CPU.

    python -m benchmarks.evaluation_tables --root data --weights_path FILE     # about an hour

Real CIFAR-10 images against real ones: what a Fréchet distance says of two sets that differ in nothing, and what the
choices of a protocol change in it. Features come from Inception (``--weights_path``, its published weights) and, for
sets too large for it on a processor, from a small classifier that this script trains on CIFAR-10. What has been
computed is kept in ``--out``, and a script that is started again goes on.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.page import put
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
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.random import ImageNoise

DOCS = Path(__file__).parent.parent / "docs"
CPU = torch.device("cpu")
SIZES = (500, 1000, 2000, 5000, 10_000, 25_000, 50_000)
HALF = 25_000
"""Training images, of which the other half is the reference."""
HELD = 10_000
"""Reference images, where the others of all 60,000, training and test images mixed, are judged."""
BY_INCEPTION = 2000
"""On each side; a processor looks at some ten images a second."""
FEW = 500
BATCHES = (1, 4, 7, 64, 250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="CIFAR-10: train/ and test/ with its images, or where torchvision has it or puts it",
    )
    parser.add_argument("--weights_path", required=True, help="Inception's weights")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/evaluation_tables"), help="features and results")
    options = parser.parse_args()
    source = ImageFolder(3, 32) if (options.root / "train").is_dir() else CIFAR10()
    source.prepare(options.root)
    train, test = (source.open(options.root, split) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(train))
    inception = Inception(options.weights_path)
    inception.load()
    classifier = cifar_classifier(source, options.root, options.out / "classifier")

    def read(split: str, start: int, stop: int) -> Tensor:
        data, rows = (train, order[start:stop]) if split == "train" else (test, range(start, stop))
        return data.__getitems__(rows)[0]

    keep = Kept(options.out)
    of = partial(keep.features, read)
    lines = bias_table(
        partial(of, "classifier", classifier), partial(of, "inception", inception), classifier, inception
    )
    write("bias", lines)
    resizes = {resize.words: inception.with_resize(resize) for resize in (TF1(), Antialiased(), TorchMetrics())}
    write("resize", resize_table(of, resizes))
    write("rounding", rounding_table(keep, inception, read("train", 0, FEW), classifier))
    write("batch", batch_table(keep, inception, read("train", 0, 250)))


class Kept:
    """Features, computed in parts that are kept as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def features(
        self, read: Callable[[str, int, int], Tensor], name: str, extractor: FeatureExtractor, split: str, n: int
    ) -> Tensor:
        """Of the first n images of the split, (n, d)."""
        parts = [
            self.once(
                f"{name}-{split}-{start}", partial(self._part, extractor, read, split, start, min(start + 500, n))
            )
            for start in range(0, n, 500)
        ]
        return torch.cat(parts)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What was computed under this name, now or before."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, compute().numpy())
            print(f"computed {name}", flush=True)
        return torch.from_numpy(np.load(path))

    @staticmethod
    def _part(
        extractor: FeatureExtractor, read: Callable[[str, int, int], Tensor], split: str, start: int, stop: int
    ) -> Tensor:
        return features_of(extractor, read(split, start, stop))


@torch.no_grad()
def features_of(extractor: FeatureExtractor, pixels: Tensor, batch: int = BATCH) -> Tensor:
    return torch.cat([extractor(each.contiguous()) for each in torch.split(pixels, batch)])


def distance(extractor: FeatureExtractor, features: Tensor, reference: Tensor) -> float:
    """The project's own Fréchet distance, between features."""
    known = Statistics(reference.double().mean(0).numpy(), np.cov(reference.double().numpy().T), len(reference))
    measure = FrechetDistance(extractor, CPU)
    measure.set_reference_statistics(known, 0)
    measure.update_features(features)
    return measure.compute()


def bias_table(
    by_classifier: Callable[[str, int], Tensor],
    by_inception: Callable[[str, int], Tensor],
    classifier: FeatureExtractor,
    inception: FeatureExtractor,
) -> list[str]:
    lines = [
        f"| N | FID to {BY_INCEPTION:,} test images | classifier, to the other half of the training images "
        f"| classifier, to {HELD:,} others of all 60,000 |",
        "|---|---|---|---|",
    ]
    train = by_classifier("train", 2 * HALF)
    mixed = torch.cat([train, by_classifier("test", HELD)])[np.random.default_rng(1).permutation(2 * HALF + HELD)]
    for n in SIZES:
        large = halves = ""
        if n <= BY_INCEPTION:
            large = f"{distance(inception, by_inception('train', n), by_inception('test', BY_INCEPTION)):.2f}"
        if n <= HALF:
            halves = f"{distance(classifier, train[:n], train[HALF:]):.3f}"
        lines.append(f"| {n:,} | {large} | {halves} | {distance(classifier, mixed[:n], mixed[-HELD:]):.3f} |")
    return lines


def resize_table(of: Callable[..., Tensor], resizes: dict[str, Inception]) -> list[str]:
    lines = ["| protocol | logged as | distance |", "|---|---|---|"]
    for words, extractor in resizes.items():
        name = "inception" if extractor.metric == "fid" else extractor.metric
        real, other = of(name, extractor, "train", FEW), of(name, extractor, "test", FEW)
        lines.append(f"| {words} | `{extractor.metric}` | {distance(extractor, real, other):.2f} |")
    return lines


def rounding_table(keep: Kept, inception: Inception, images: Tensor, classifier: ClassifierFeatures) -> list[str]:
    """Images between the grey levels, as a sampler makes them, judged as they are, rounded, and cut off."""
    x = images.float()
    between = (x + x.roll(1, -1) + x.roll(1, -2) + x.roll((1, 1), (-1, -2))) / 4 + 0.3  # half a pixel on
    drawn = digits_before_rounding(1797)
    shipped = DigitsFeatures()
    shipped.load()
    parts = [Digits().open(Path(), split) for split in ("train", "test")]
    real = torch.cat([part.__getitems__(range(len(part)))[0] for part in parts])
    lines = [
        "| pixels | FID of shifted CIFAR-10 images | classifier, the same | `fd_digits` of drawn digits |",
        "|---|---|---|---|",
    ]
    plain = features_of(inception, images), features_of_floats(classifier, x), features_of(shipped, real)
    ways = {"not rounded": lambda y: y, "rounded (as here)": torch.round, "cut off": torch.floor}
    for words, way in ways.items():
        found = (
            keep.once(f"rounding-{words.split()[0]}", partial(inception_of_floats, inception, way(between))),
            features_of_floats(classifier, way(between)),
            features_of_floats(shipped, way(drawn)),
        )
        cells = [distance(e, f, p) for e, f, p in zip((inception, classifier, shipped), found, plain, strict=True)]
        lines.append(f"| {words} | {cells[0]:.3f} | {cells[1]:.4f} | {cells[2]:.3f} |")
    return lines


def batch_table(keep: Kept, inception: Inception, images: Tensor) -> list[str]:
    lines = ["| images at a time | largest difference of a feature | of the FID |", "|---|---|---|"]
    found = {b: keep.once(f"batch-{b}", partial(_together, inception, images, b)) for b in BATCHES}
    half, own = len(images) // 2, inception.at_a_time
    at = {b: distance(inception, each[:half], found[own][half:]) for b, each in found.items()}
    for b, each in found.items():
        apart = (each - found[own]).abs().max()
        lines.append(f"| {b} | {apart:.1e} | {abs(at[b] - at[own]):.1e} of {at[own]:.1f} |")
    return lines


def _together(inception: Inception, images: Tensor, b: int) -> Tensor:
    """Features of b images at a time."""
    other = inception.with_resize(inception.resize)
    other.at_a_time = b
    return features_of(other, images, b)


@torch.no_grad()
def inception_of_floats(inception: Inception, pixels: Tensor) -> Tensor:
    """As :class:`Inception` does it, from floats in 0..255."""
    return torch.cat([inception(each) for each in torch.split(pixels, BATCH)])  # .float() leaves floats as they are


@torch.no_grad()
def features_of_floats(extractor: DigitsFeatures | ClassifierFeatures, pixels: Tensor) -> Tensor:
    assert extractor.network is not None
    return extractor.network.embed(to_float(pixels))


def digits_before_rounding(n: int) -> Tensor:
    """Digits of the shipped model by DDIM with 20 steps, as floats in 0..255: (n, 1, 8, 8)."""
    model = load("checkpoints/pretrained/digits.ckpt", DDPM)
    noise = ImageNoise(0, 0, n)
    with evaluation_mode(model):
        x_0 = DDIM(20).sample(model.denoiser, noise(torch.empty(n, *model.image_shape)), noise)
    return (x_0.clamp(-1, 1) + 1) * 127.5


def cifar_classifier(source: ImageSource, root: Path, run: Path) -> ClassifierFeatures:
    """configs/digits_features.yaml, on CIFAR-10."""
    ckpt = run / "last.ckpt"
    if not ckpt.exists():
        command = [sys.executable, "-m", "lightning_ddpm", "fit", "--config", "configs/digits_features.yaml"]
        command += ["--data.source", f"lightning_ddpm.data.{type(source).__name__}", "--data.root", str(root)]
        command += ["--data.source.size", "32"] if isinstance(source, ImageFolder) else []
        command += ["--trainer.default_root_dir", str(run), "--trainer.check_val_every_n_epoch", "1"]
        subprocess.run(command, check=True)
    extractor = ClassifierFeatures(str(ckpt), "cifar10")
    extractor.check_images(3, 32)
    return extractor


def write(name: str, lines: list[str]) -> None:
    put(DOCS / "results" / "evaluation.md", name, lines)
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()

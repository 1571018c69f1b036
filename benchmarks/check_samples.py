"""Metrics of a folder of generated images that are independent of this package's metrics and networks.

    python -m benchmarks check_samples --images DIR --source Digits
    python -m benchmarks check_samples --images DIR --source MNIST --root data

Prints the Fréchet distance to the real images in raw pixels scaled to [-1, 1] (scipy's matrix square root); that of as
many real images to the others, which a perfect generator would have; that between two halves of the real images; and
the share of each class by scikit-learn's support vector classifier, trained on real images only, and of how many images
it is sure, beside how many held-out ones.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from lightning_ddpm import data

LEVELS = (0.5, 0.9)
"""Probabilities from which on a classifier counts as sure."""


def compute_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Fréchet distance between Gaussians fitted to the rows of a and b."""
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T) + 1e-12 * np.eye(a.shape[1])).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def flatten_images(images: torch.Tensor) -> np.ndarray:
    """Return uint8 images as float64 rows in [-1, 1]."""
    return images.flatten(1).double().numpy() / 127.5 - 1


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="folder of generated images")
    parser.add_argument("--source", choices=["Digits", "MNIST", "FashionMNIST"], required=True, help="the real images")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the real images")


def run(options: Namespace) -> None:
    source = getattr(data, options.source)()
    splits = [source.open(options.root, split) for split in ("train", "test")]
    batches = [split.__getitems__(range(min(len(split), 10_000))) for split in splits]
    (train, labels), (held_out, held_out_labels) = [(flatten_images(x), label.numpy()) for x, label in batches]
    files = sorted(options.images.glob("[0-9]*.png"))
    generated = flatten_images(torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files]))

    real = np.concatenate([train, held_out])
    order = np.random.default_rng(0).permutation(len(real))
    half = len(order) // 2
    noise = np.random.default_rng(0).standard_normal((len(generated), generated.shape[1]))
    print(f"{len(generated)} generated, {len(real)} real images")
    print(f"Fréchet distance in raw pixels, generated to real: {compute_frechet(real, generated):.3f}")
    n = min(len(generated), half)  # the distance depends on the number of images
    print(f"  {n} of the real images to the others: {compute_frechet(real[order[n:]], real[order[:n]]):.3f}")
    print(f"  two halves of the real images: {compute_frechet(real[order[:half]], real[order[half:]]):.3f}")
    print(f"  Gaussian noise to real: {compute_frechet(real, noise):.1f}")
    classifier = CalibratedClassifierCV(SVC(), ensemble=False).fit(train, labels)
    print(f"classifier's accuracy on held-out images: {classifier.score(held_out, held_out_labels):.3f}")
    found = classifier.predict_proba(generated)
    shares = np.bincount(found.argmax(1), minlength=10) / len(generated)
    print("share of each class in per cent:", " ".join(f"{100 * share:.1f}" for share in shares))
    for name, probabilities in (("generated", found), ("held-out", classifier.predict_proba(held_out))):
        sure = [100 * (probabilities.max(1) > level).mean() for level in LEVELS]
        text = ", ".join(f"{level} of {share:.1f}" for level, share in zip(LEVELS, sure, strict=True))
        print(f"its probability is over {text} per cent of the {name} images")

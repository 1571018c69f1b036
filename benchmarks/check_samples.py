"""Figures of a folder of generated images that owe nothing to this project's metrics or networks.

    python -m benchmarks.check_samples --images DIR --source Digits
    python -m benchmarks.check_samples --images DIR --source MNIST --root data

Prints the Fréchet distance to the real images in raw pixels scaled to [-1, 1] (scipy's matrix square root), what two
halves of the real images have, and the share of each class by scikit-learn's support vector classifier, trained on
real images alone.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from sklearn.svm import SVC

from lightning_ddpm import data


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between Gaussians fitted to the rows of a and b."""
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T) + 1e-12 * np.eye(a.shape[1])).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--source", choices=["Digits", "MNIST", "FashionMNIST"], required=True)
    parser.add_argument("--root", type=Path, default=Path("data"))
    options = parser.parse_args()

    source = getattr(data, options.source)()
    sets = [source.open(options.root, split) for split in ("train", "test")]
    batches = [each.__getitems__(range(min(len(each), 10_000))) for each in sets]
    (real, labels), (held_out, held_out_labels) = [(flat(images), labels.numpy()) for images, labels in batches]
    files = sorted(options.images.glob("[0-9]*.png"))
    made = flat(torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files]))

    everything = np.concatenate([real, held_out])
    order = np.random.default_rng(0).permutation(len(everything))
    half = len(order) // 2
    noise = np.random.default_rng(0).standard_normal((len(made), made.shape[1]))
    print(f"{len(made)} generated, {len(everything)} real images")
    print(f"Fréchet distance in raw pixels, generated to real: {frechet(everything, made):.3f}")
    print(f"  two halves of the real: {frechet(everything[order[:half]], everything[order[half:]]):.3f}")
    print(f"  Gaussian noise to real: {frechet(everything, noise):.1f}")
    judge = SVC().fit(real, labels)
    print(f"classifier's accuracy on held-out images: {judge.score(held_out, held_out_labels):.3f}")
    shares = np.bincount(judge.predict(made), minlength=10) / len(made)
    print("share of each class in per cent:", " ".join(f"{100 * share:.1f}" for share in shares))


def flat(images: torch.Tensor) -> np.ndarray:
    """uint8 images as float64 rows in [-1, 1]."""
    return images.flatten(1).double().numpy() / 127.5 - 1


if __name__ == "__main__":
    main()

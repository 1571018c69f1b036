"""Makes the table and the picture in docs/results/restoration.md, on the CPU.

    python -m benchmarks.restoration_tables --root data     # some 5 minutes, after configs/mnist.yaml has been trained

Held-out images are damaged and restored by ``restore --degrade``, whose commands are printed. What has been computed is
kept in ``--out``, and a script that is started again goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.page import put
from lightning_ddpm.data import MNIST, Digits, ImageSource
from lightning_ddpm.data.image_io import save_image

DOCS = Path(__file__).parent.parent / "docs"
N = 64
"""Images of each data set, at most."""
TASKS = {
    "twice as large": ("superres", "--factor", "2"),
    "four times as large": ("superres", "--factor", "4"),
    "noise of 0.5": ("denoise", "--sigma", "0.5"),
    "lower half lost": ("inpaint", "--box", "0", "HALF", "SIZE", "SIZE"),
}


class Subject(NamedTuple):
    """What is restored, and by which model."""

    source: ImageSource
    size: int
    ckpt: str


SUBJECTS = {
    "digits": Subject(Digits(), 8, "checkpoints/pretrained/digits.ckpt"),
    "MNIST": Subject(MNIST(), 28, "checkpoints/mnist/last.ckpt"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/restoration_tables"), help="results")
    options = parser.parse_args()
    lines = [
        "| images | what was done | PSNR as given | restored | SSIM as given | restored |",
        "|---|---|---|---|---|---|",
    ]
    pictures: dict[tuple[str, str], Path] = {}
    for name, subject in SUBJECTS.items():
        images = options.out / name / "images"
        if not images.is_dir():
            images.mkdir(parents=True)
            held_out = subject.source.open(options.root, "test")
            for index, pixels in enumerate(held_out.__getitems__(range(min(N, len(held_out))))[0]):
                save_image(pixels, images / f"{index:03d}.png")
        for what, task in TASKS.items():
            out = options.out / name / what.replace(" ", "_")
            if not (out / "figures.json").is_file():
                restore(subject, images, task, out)
            mean = json.loads((out / "figures.json").read_text())["mean"]
            cells = f"{mean['psnr_given']:.2f} | {mean['psnr']:.2f} | {mean['ssim_given']:.3f} | {mean['ssim']:.3f}"
            lines.append(f"| {name} | {what} | {cells} |")
            pictures[name, what] = out / "side_by_side.png"
    write(lines, pictures)


def restore(subject: Subject, images: Path, task: tuple[str, ...], out: Path) -> None:
    places = {"HALF": str(subject.size // 2), "SIZE": str(subject.size)}
    command = [sys.executable, "-m", "lightning_ddpm", "restore", "--ckpt", subject.ckpt, "--degrade", "--task"]
    command += [*(places.get(each, each) for each in task), "--images", str(images), "--out", str(out)]
    print(*command[1:], flush=True)
    subprocess.run(command, check=True)


def write(lines: list[str], pictures: dict[tuple[str, str], Path]) -> None:
    put(DOCS / "results" / "restoration.md", "restoration", lines)
    figure = Figure(figsize=(2 * len(pictures), 7), layout="constrained")
    FigureCanvasAgg(figure)
    for ((name, what), path), place in zip(pictures.items(), figure.subplots(1, len(pictures)), strict=True):
        place.imshow(np.asarray(Image.open(path)), cmap="grey")
        place.set(xticks=[], yticks=[], title=f"{name}\n{what}")
    figure.savefig(DOCS / "restoration.png", dpi=70)


if __name__ == "__main__":
    main()

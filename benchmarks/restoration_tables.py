"""Makes the table of docs/results/restoration.md and its image, on the CPU.

    python -m benchmarks restoration_tables --root data     # some 5 minutes

``restore --degrade`` degrades and restores held-out images; its commands are printed. Results are kept in ``--out``,
and a second run reuses them.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.page import DOCS, PAGES, format_table, run_program, save_image_grid, write_table
from lightning_ddpm.data import MNIST, Digits, ImageSource
from lightning_ddpm.data.image_io import save_image

N = 64
"""Images of each dataset, at most."""
TASKS = {
    "twice as large": ("superres", "--factor", "2"),
    "four times as large": ("superres", "--factor", "4"),
    "noise of 0.5": ("denoise", "--sigma", "0.5"),
    "lower half lost": ("inpaint", "--box", "0", "HALF", "SIZE", "SIZE"),
}
COLUMNS = ("images", "degradation", "PSNR as given", "restored", "SSIM as given", "restored")


class Subject(NamedTuple):
    """Images to restore, their size, and the model's checkpoint."""

    source: ImageSource
    size: int
    ckpt: str


SUBJECTS = {
    "digits": Subject(Digits(), 8, "checkpoints/pretrained/digits.ckpt"),
    "MNIST": Subject(MNIST(), 28, "checkpoints/pretrained/mnist.ckpt"),
}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/restoration_tables"), help="results")


def run(options: Namespace) -> None:
    rows, images = [], {}
    for name, subject in SUBJECTS.items():
        folder = options.out / name / "images"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            held_out = subject.source.open(options.root, "test")
            for index, pixels in enumerate(held_out.__getitems__(range(min(N, len(held_out))))[0]):
                save_image(pixels, folder / f"{index:03d}.png")
        for degradation, task in TASKS.items():
            out = options.out / name / degradation.replace(" ", "_")
            if not (out / METRICS).is_file():
                restore(subject, folder, task, out)
            mean = json.loads((out / METRICS).read_text())["mean"]
            psnr, ssim = ([f"{mean[key]:{form}}" for key in (f"{metric}_given", metric)] for metric, form in FORMATS)
            rows.append([name, degradation, *psnr, *ssim])
            images["", f"{name}\n{degradation}"] = np.asarray(Image.open(out / "side_by_side.png"))
    write_table(PAGES / "restoration.md", "restoration", format_table(COLUMNS, rows))
    save_image_grid(DOCS / "restoration.png", images, cell=(2, 7), dpi=70)


METRICS = "metrics.json"
FORMATS = (("psnr", ".2f"), ("ssim", ".3f"))


def restore(subject: Subject, images: Path, task: tuple[str, ...], out: Path) -> None:
    corners = {"HALF": str(subject.size // 2), "SIZE": str(subject.size)}
    words = [corners.get(each, each) for each in task]
    run_program(
        *("restore", "--ckpt", subject.ckpt, "--degrade", "--task", *words), *("--images", images, "--out", out)
    )

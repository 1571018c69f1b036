"""Makes the table of docs/results/restoration.md on super-resolution that is trained on pairs, on the CPU.

    python -m lightning_ddpm fit --config configs/superresolution.yaml
    python -m benchmarks superresolution_tables --root data --ckpt checkpoints/superresolution/last.ckpt

The first 64 held-out images of MNIST are given as means of blocks of 2x2 pixels, rounded to 8 bits, as
``sample --condition_images`` takes them. DDRM's numbers, of the same originals, are those in the page's first table.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from benchmarks.page import PAGES, format_table, write_table
from lightning_ddpm.data import MNIST
from lightning_ddpm.data.paired import BlockMeans
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics.pair_quality import measure_pairs
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks.condition_embeddings import resize_to
from lightning_ddpm.utils.condition import Condition

N, FACTOR = 64, 2
STEPS = (1, 5, 20)
DDRM = "| MNIST | twice as large |"
"""The row of the page's first table with DDRM's numbers."""
COLUMNS = ("MNIST, 14x14 to 28x28", "NFE", "PSNR, dB", "SSIM")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--ckpt", type=Path, default=Path("checkpoints/superresolution/last.ckpt"), help="the model")


def run(options: Namespace) -> None:
    originals = MNIST().open(options.root, "test").__getitems__(range(N))[0]
    given, model = BlockMeans(FACTOR)(originals), load(options.ckpt)
    bicubic = resize_to(given.float(), originals.shape[2:]).clamp(0, 255).round()
    rows = [["bicubic interpolation", "", *_measure(bicubic, originals)]]
    (line,) = [each for each in (PAGES / "restoration.md").read_text().splitlines() if each.startswith(DDRM)]
    *_, psnr, _, ssim = (each.strip() for each in line.strip("|").split("|"))
    rows.append(["DDRM, not trained on pairs", "20", psnr, ssim])
    for steps in STEPS:
        request = SampleRequest(
            N, sampler=DDIM(steps), conditions=lambda start, stop: Condition(image=given[start:stop])
        )
        found = torch.cat([pixels for _, pixels in generate_batches(model, request)])
        rows.append([f"trained on pairs, DDIM in {steps}", str(steps), *_measure(found, originals)])
    write_table(PAGES / "restoration.md", "pairs", format_table(COLUMNS, rows))


def _measure(images: torch.Tensor, originals: torch.Tensor) -> list[str]:
    psnr, ssim = measure_pairs(images, originals).mean(0).tolist()
    return [f"{psnr:.2f}", f"{ssim:.3f}"]

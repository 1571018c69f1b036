"""Makes the tables and the image of docs/results/satellite.md: tiles of a Landsat 7 scene, float32 with five bands.

    apt-get download r-cran-stars && dpkg-deb -x r-cran-stars_*.deb stars
    python -m benchmarks landsat_tables --tif stars/usr/lib/R/site-library/stars/tif/L7_ETMs.tif
    python -m benchmarks landsat_tables report

The scene is Olinda in Brazil, 352 rows of 349 pixels of 28.5 m in six bands, which Debian's package of the R package
stars ships (Pebesma et al., Apache-2.0). Tiles of its first rows are trained on, those of its last rows are held out.
The folder holds all that is done: stop it by Ctrl-C or SIGTERM, and the same command continues.
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional
from torchvision.utils import make_grid

from benchmarks.field_metrics import describe_run
from benchmarks.field_tables import build_training
from benchmarks.page import DOCS, PAGES, format_table, run_program, save_figure, write_table
from benchmarks.recipe_runs import fit
from lightning_ddpm.data import ArrayFile
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.data.tiff import read_tiff
from lightning_ddpm.metrics.fields import FIELD_METRICS, NAMES, FieldMetrics, compute_radial_spectrum
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.utils.distributed import Ranks

PAGE, IMAGE = PAGES / "satellite.md", DOCS / "landsat.png"
MARKS = ("run", "spectrum", "marginals", "correlations", "nearest")
"""The tables of the page."""
BANDS = 5
"""Blue, green, red, near and short-wave infrared; the scene's sixth, Landsat's band 7, is not used."""
SIDE, STRIDE = 32, 8
TRAINING_ROWS = 280
COMPOSITE = [3, 2, 1]
"""Near infrared, red and green, shown as red, green and blue: Landsat's bands 4, 3 and 2."""
QUANTILES = [0.05, 0.5]
"""Of the distances to the nearest window of the training rows."""
SHOWN = 4
"""Rows and columns of the image's tiles."""
CURVES = {"training tiles": ("black", "-"), "held-out tiles": ("black", ":"), "samples": ("tab:orange", "-")}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", default="train", choices=["train", "report"], help="the model, or the page")
    parser.add_argument("--tif", type=Path, help="the scene, L7_ETMs.tif; needed until its tiles are in the folder")
    parser.add_argument("--steps", type=int, default=4000, help="steps of 16 tiles")
    parser.add_argument("--n", type=int, default=240, help="number of samples")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/landsat_tables"), help="data, run and results")


def run(options: Namespace) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "LIGHTNING_DDPM_TRUST": "benchmarks"}
    torch.set_num_threads(1)
    data, folder = options.folder / "data", options.folder / "run"
    result = options.folder / "result.json"
    if options.task == "report":
        write_report(options.folder)
        return
    write_tiles(data, options.tif)
    fit(build_config(data, options.steps), folder)
    if not result.exists():
        samples = options.folder / "samples"
        words = ["--n", options.n, "--batch_size", 32, "--out", samples]
        run_program("sample", "--ckpt", folder / "last.ckpt", *words)
        measured = measure(data, load_samples(samples)) | describe_run(folder, load(folder / "last.ckpt"))
        result.write_text(json.dumps(measured | {"steps": options.steps}, indent=1))
    print(result.read_text())


def write_tiles(folder: Path, tif: Path | None) -> None:
    """Write the tiles of the scene to train on and the held-out ones, unless they are there.

    Raises:
        SystemExit: there is no scene, or it is none that tiles can be cut from.
    """
    if (folder / "test.npy").exists():
        return
    if tif is None or not tif.is_file():
        wrong = f"there is no scene {tif}" if tif else "no scene was given"
        sys.exit(f"{wrong}; give --tif FILE, L7_ETMs.tif of Debian's package r-cran-stars: see --help")
    scene = read_tiff(tif)
    if scene.shape[0] < BANDS or scene.shape[1] < TRAINING_ROWS + SIDE or scene.shape[2] < SIDE:
        found, least = "x".join(map(str, scene.shape)), f"{BANDS}x{TRAINING_ROWS + SIDE}x{SIDE}"
        sys.exit(f"{tif} has {found} bands, rows and columns; at least {least} are needed: give L7_ETMs.tif")
    folder.mkdir(parents=True, exist_ok=True)
    first, last = scene[:BANDS, :TRAINING_ROWS], scene[:BANDS, TRAINING_ROWS:]
    arrays = {"rows": first.astype(np.float32), "train": cut_tiles(first), "test": cut_tiles(last)}
    for name, array in arrays.items():
        np.save(folder / f".{name}.npy", array)
        (folder / f".{name}.npy").rename(folder / f"{name}.npy")


def cut_tiles(scene: np.ndarray) -> np.ndarray:
    """Return the overlapping tiles (n, c, SIDE, SIDE) of a scene (c, h, w), row by row, float32."""
    windows = np.lib.stride_tricks.sliding_window_view(scene, (SIDE, SIDE), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    return np.moveaxis(windows, 0, 2).reshape(-1, len(scene), SIDE, SIDE).astype(np.float32)


def build_config(data: Path, steps: int) -> dict[str, Any]:
    """Return the config of the run: a U-Net with attention at a quarter of the resolution."""
    settings = {"width": 24, "multipliers": [1, 2, 2], "attention": [8], "blocks": 1, "dropout": 0.0, "groups": 8}
    network = {"class_path": "lightning_ddpm.networks.UNet", "init_args": settings}
    source = {"class_path": "lightning_ddpm.data.ArrayFile", "init_args": {"held_out_file": "test.npy"}}
    return build_training(network, source, data, steps)


def load_samples(folder: Path) -> Tensor:
    """Return the arrays that ``sample`` wrote, (n, c, h, w)."""
    return torch.from_numpy(np.stack([np.load(each) for each in sorted(folder.glob("*.npy"))]))


def measure(data: Path, samples: Tensor) -> dict[str, Any]:
    """Return the metrics of the samples, and those of as many training tiles and of noise of their mean and std."""
    source = ArrayFile(held_out_file="test.npy")
    source.inspect(data)
    references = {"held-out tiles": source.open(data, "test"), "training tiles": source.open(data, "train")}
    arrays = {name: each.__getitems__(range(len(each)))[0] for name, each in references.items()}
    n, *shape = samples.shape
    noise = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    sets = {
        "samples": samples,
        "training tiles": arrays["training tiles"][spread_indices(n, len(arrays["training tiles"]))],
        "Gaussian noise": source.values.to_data(noise),
    }
    metrics = FieldMetrics(shape, torch.device("cpu"), FIELD_METRICS, n)
    scene, found = source.values.to_float(torch.from_numpy(np.load(data / "rows.npy"))[None])[0], []
    for reference, dataset in references.items():
        metrics.set_reference(dataset, None, Ranks(), lambda pairs, total: (batch for _, batch in pairs))
        for name, tiles in sets.items():
            if (name, reference) != ("training tiles", "training tiles"):
                metrics.update(0, tiles)
                values = {each: value.value for each, value in metrics.compute(Ranks()).items()}
                found.append({"tiles": name, "reference": reference, "n": [n, len(dataset)], "values": values})
    return {
        "metrics": found,
        "correlations": {name: correlate(each) for name, each in [("samples", samples), *arrays.items()]},
        "nearest": {
            name: np.quantile(measure_nearest(source.values.to_float(each), scene), QUANTILES).tolist()
            for name, each in (("samples", samples), ("held-out tiles", arrays["held-out tiles"]))
        },
        "training": len(arrays["training tiles"]),
        "outside": float(((samples < 0) | (samples > 255)).double().mean()),
    }


def correlate(tiles: Tensor) -> list[list[float]]:
    """Return the correlation matrix of the channels' pixels, (c, c)."""
    matrix: list[list[float]] = tiles.double().transpose(0, 1).flatten(1).corrcoef().tolist()
    return matrix


@torch.no_grad()
def measure_nearest(tiles: Tensor, scene: Tensor) -> Tensor:
    """Return the squared distance of each tile to the scene's nearest window, over the tile's variance, (n,) float64.

    It is 0 for a copy of a window at any place. The variance is about the mean of each channel in the tile.

    Args:
        tiles: (n, c, h, w), standardised.
        scene: (c, height, width), standardised.
    """
    tiles, scene = tiles.double(), scene.double()[None]
    energies = functional.conv2d(scene.square(), torch.ones_like(tiles[:1]))
    least = []
    for part in torch.split(tiles, 32):
        products = functional.conv2d(scene, part)[0]
        distances = part.square().sum((1, 2, 3)) + (energies[0] - 2 * products).flatten(1).amin(1)
        least.append(distances / (part - part.mean((2, 3), keepdim=True)).square().sum((1, 2, 3)))
    return torch.cat(least)


def write_report(folder: Path) -> None:
    """Write the tables and the image of the model that is measured."""
    found = json.loads((folder / "result.json").read_text())
    cells = [f"{found['training']:,}", f"{found['steps']:,}", "16", f"{found['minutes']:.1f}"]
    columns = ["tiles to train on", "steps", "tiles a step", "CPU minutes on one core", "parameters"]
    write_table(PAGE, "run", format_table(columns, [[*cells, f"{found['parameters']:,}"]]))
    bands = [f"band {band + 1}" for band in range(BANDS)]
    for metric, overall in (("spectrum", "all bands, dB"), ("marginals", "all bands, standard deviations")):
        rows = []
        for each in found["metrics"]:
            values = (each["values"][NAMES[metric] + end] for end in ("", *(f"/channel_{c}" for c in range(BANDS))))
            of, among = each["n"]
            rows.append([each["tiles"], str(of), f"{among:,} {each['reference']}"])
            rows[-1] += [f"{value:.2f}" for value in values]
        write_table(PAGE, metric, format_table(["tiles", "N", "compared with", overall, *bands], rows))
    pairs = [(i, j) for i in range(BANDS) for j in range(i + 1, BANDS)]
    rows = [[name, *(f"{each[i][j]:.2f}" for i, j in pairs)] for name, each in found["correlations"].items()]
    columns = ["tiles", *(f"{i + 1}, {j + 1}" for i, j in pairs)]
    write_table(PAGE, "correlations", format_table(columns, rows))
    rows = [[name, *(f"{value:.2f}" for value in each)] for name, each in found["nearest"].items()]
    write_table(PAGE, "nearest", format_table(["tiles", "lowest 5 per cent", "median"], rows))
    save_image(IMAGE, folder)


def save_image(path: Path, folder: Path) -> None:
    """Plot training tiles beside samples, and the spectra and histograms of each band."""
    training, held_out = (torch.from_numpy(np.load(folder / "data" / f"{each}.npy")) for each in ("train", "test"))
    sets = dict(zip(CURVES, (training, held_out, load_samples(folder / "samples")), strict=True))
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.25, 1]).flat
    pixels = training[:, COMPOSITE].transpose(0, 1).flatten(1).numpy()
    low, high = (each[:, None, None] for each in np.quantile(pixels, [0.02, 0.98], axis=1))
    for axis, name in zip(top.subplots(1, 2), ("training tiles", "samples"), strict=True):
        chosen = sets[name][spread_indices(min(SHOWN**2, len(sets[name])), len(sets[name]))]
        shown = ((chosen[:, COMPOSITE].numpy() - low) / (high - low)).clip(0, 1)
        axis.imshow(make_grid(torch.from_numpy(shown), SHOWN, padding=1, pad_value=1).permute(1, 2, 0).numpy())
        axis.set_title(f"{name}, bands 4, 3, 2", fontsize=9)
        axis.set_axis_off()
    axes = bottom.subplots(2, BANDS)
    for name, (colour, style) in CURVES.items():
        spectra = compute_radial_spectrum(sets[name]).mean(0)
        for c in range(BANDS):
            settings: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1, "label": name}
            axes[0, c].plot(np.arange(1, spectra.shape[1] + 1), spectra[c], **settings)
            values = sets[name][:, c].flatten().numpy()
            axes[1, c].hist(values, np.arange(0, 200, 4), density=True, histtype="step", **settings)
            axes[0, c].set(xscale="log", yscale="log", title=f"band {c + 1}", xlabel="ring")
            axes[1, c].set(yticks=[], xlabel="digital number")
    axes[0, 0].set_ylabel("power")
    axes[1, 0].set_ylabel("density")
    axes[0, -1].legend(frameon=False, fontsize=7)
    save_figure(path, figure, 64)

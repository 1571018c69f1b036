"""The tables and the image of docs/results/fields.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.page import DOCS, PAGES, format_table, save_figure, write_table

PAGE = PAGES / "fields.md"
RINGS = (1, 2, 4, 8, 12, 16, 20, 24)
NAMES = {"trained": "trained model", "exact": "exact denoiser", "data": "held-out fields"}
SHOWN = 3
MARKS = ("run", "spectra", "summary", "likelihood", "conditional run", "means", "conditional likelihood")
"""The tables of the page."""


def write_report(folder: Path) -> None:
    """Write the tables of the models that are measured, and the image."""
    results = {each: folder / each / "result.json" for each in ("gaussian", "conditional")}
    if results["gaussian"].exists():
        found = json.loads(results["gaussian"].read_text())
        _write_run("run", found)
        write_table(PAGE, "spectra", _make_spectra(found))
        write_table(PAGE, "summary", _make_summary(found))
        write_table(PAGE, "likelihood", _make_likelihoods(found))
        save_image(DOCS / "gaussian_field.png", found, folder)
    if results["conditional"].exists():
        found = json.loads(results["conditional"].read_text())
        _write_run("conditional run", found)
        write_table(PAGE, "means", _make_means(found))
        write_table(PAGE, "conditional likelihood", _make_likelihoods(found))


def _write_run(name: str, found: dict[str, Any]) -> None:
    cells = [f"{found['fields']:,}", f"{found['steps']:,}", "16", f"{found['minutes']:.1f}", f"{found['parameters']:,}"]
    columns = ["fields to train on", "steps", "fields a step", "CPU minutes on one core", "parameters"]
    write_table(PAGE, name, format_table(columns, [cells]))


def _make_spectra(found: dict[str, Any]) -> list[str]:
    known, rows = found["known"], []
    for ring in RINGS:
        cells = [str(ring)]
        for c in (0, 1):
            power = known["spectra"][c][ring - 1]
            cells.append(f"{power:.3g}")
            for which in ("trained", "exact"):
                ratios = [found[which][key][c][ring - 1] / power for key in ("spectra", "errors")]
                cells.append(f"{ratios[0]:.3f} ± {ratios[1]:.3f}")
        cells.append(f"{known['coherence'][ring - 1]:.3f}")
        for which in ("trained", "exact"):
            value, error = (found[which][key][ring - 1] for key in ("coherence", "coherence_errors"))
            cells.append(f"{value:.3f} ± {error:.3f}")
        rows.append(cells)
    columns = ["ring"]
    for c in ("first", "second"):
        columns += [f"power, {c} channel", "model / known", "exact denoiser / known"]
    return format_table([*columns, "coherence", "model", "exact denoiser"], rows)


def _make_summary(found: dict[str, Any]) -> list[str]:
    rows = []
    for which, name in NAMES.items():
        each = found[which]
        correlation, error = each["correlation"]
        rows.append([name, str(each["n"]), *(f"{value:.2f}" for value in each["distance"])])
        rows[-1].append(f"{correlation:.3f} ± {error:.3f}")
    columns = ["fields", "N", "spectral distance to the known, first channel, dB", "second", "mean product of channels"]
    return format_table(columns, rows)


def _make_likelihoods(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, (mean, difference, error) in found["bits"].items():
        cells = ["closed form" if name == "density" else name, f"{mean:.4f}"]
        rows.append([*cells, "" if name == "density" else f"{difference:.4f} ± {error:.4f}"])
    columns = ["-log2 p of held-out fields", "bits/dim", "difference to the closed form"]
    return format_table(columns, rows)


def _make_means(found: dict[str, Any]) -> list[str]:
    rows = []
    for given, means, errors in zip(found["given"], found["means"], found["errors"], strict=True):
        pairs = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(means, errors, strict=True)]
        rows.append([", ".join(f"{each:g}" for each in given), *pairs])
    return format_table(["given means", "mean of samples, first channel", "second channel"], rows)


def save_image(path: Path, found: dict[str, Any], folder: Path) -> None:
    """Plot held-out fields beside samples, and spectra and coherence with bands of two standard errors."""
    fields = np.load(folder / "gaussian_data" / "test.npy", mmap_mode="r")[:SHOWN]
    samples = np.load(folder / "gaussian" / "samples.npy")[:SHOWN]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    images, curves = figure.subfigures(1, 2, width_ratios=[1.35, 1])
    axes = images.subplots(4, SHOWN)
    for column in range(SHOWN):
        for row, (name, c) in enumerate((name, c) for name in ("data", "sample") for c in (0, 1)):
            axis = axes[row, column]
            axis.imshow((fields if name == "data" else samples)[column, c], cmap="RdBu_r", vmin=-3, vmax=3)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(f"{name},\nchannel {c}", fontsize=8)
    top, bottom = curves.subplots(2, 1)
    rings, trained, known = np.arange(1, 25), found["trained"], found["known"]
    for c, colour in enumerate(("tab:blue", "tab:orange")):
        mean, error = (np.array(trained[key][c]) for key in ("spectra", "errors"))
        top.fill_between(rings, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.5, label=f"samples, {c}")
        top.plot(rings, known["spectra"][c], color="black", linestyle=("-", "--")[c], label=f"known, {c}", linewidth=1)
    top.set(xscale="log", yscale="log", ylabel="power")
    top.legend(frameon=False, fontsize=8)
    mean, error = (np.array(trained[key]) for key in ("coherence", "coherence_errors"))
    bottom.fill_between(rings, mean - 2 * error, mean + 2 * error, color="tab:green", alpha=0.5, label="samples")
    bottom.plot(rings, known["coherence"], color="black", linewidth=1, label="known")
    bottom.set(xscale="log", xlabel="ring", ylabel="coherence", ylim=(0.4, 0.9))
    bottom.legend(frameon=False, fontsize=8)
    save_figure(path, figure, 64)

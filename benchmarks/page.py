"""What the scripts of the result pages share: tables between a page's marks, grids of images, calls of the program."""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
PAGES = DOCS / "results"


def replace_table(text: str, name: str, lines: Iterable[str]) -> str | None:
    """Return the text with these lines between ``<!-- name -->`` and ``<!-- end -->``; ``None`` if these marks miss."""
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    if not mark or not end:
        return None
    return "".join([before, mark, *(f"{line}\n" for line in lines), end, after])


def write_table(page: Path, name: str, lines: Sequence[str]) -> None:
    """Print a table and write it between the page's marks of that name.

    Raises:
        ValueError: the page has no such marks.
    """
    print("\n".join(lines), flush=True)
    text = replace_table(page.read_text(), name, lines)
    if text is None:
        raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- end -->")
    page.write_text(text)


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; short rows are filled up with empty cells."""
    filled = ([*row, *[""] * (len(columns) - len(row))] for row in rows)
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in filled)]


def save_image_grid(path: Path, images: Mapping[tuple[str, str], Any], cell: tuple[float, float], dpi: int) -> None:
    """Plot images by row and column.

    Args:
        path: the PNG file.
        images: (h, w) or (h, w, 3) arrays by the names of row and column.
        cell: width and height of an image, inches.
        dpi: pixels per inch.
    """
    rows, columns = (list(dict.fromkeys(key[axis] for key in images)) for axis in (0, 1))
    figure = Figure(figsize=(cell[0] * len(columns), cell[1] * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (row, column), image in images.items():
        y, x = rows.index(row), columns.index(column)
        axes[y, x].imshow(image, cmap="gray")
        axes[y, x].set(xticks=[], yticks=[], title=column if y == 0 else None)
        axes[y, x].set_ylabel(row if x == 0 else "", fontsize=7)
    figure.savefig(path, dpi=dpi)


def save_figure(path: Path, figure: Figure, colours: int) -> None:
    """Save a figure as a PNG file of 80 pixels per inch with this number of colours, at most 256."""
    figure.savefig(path, dpi=80)
    with Image.open(path) as image:
        image.convert("RGB").quantize(colours).save(path, optimize=True)


def save_curves(path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> None:
    """Plot curves of values on a logarithmic axis.

    Args:
        path: the PNG file.
        curves: x and y of the points of each curve, by its name.
        x: name of the x axis.
        y: name of the y axis.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (at, values) in curves.items():
        axes.plot(at, values, marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, yscale="log")
    axes.grid(which="both", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def run_program(*arguments: object) -> None:
    """Print and run ``python -m lightning_ddpm`` with these arguments."""
    command = [sys.executable, "-m", "lightning_ddpm", *map(str, arguments)]
    print(*command[1:], flush=True)
    subprocess.run(command, check=True)

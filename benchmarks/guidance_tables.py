"""Makes the tables and pictures in docs/results/guidance.md, on the CPU.

    python -m benchmarks.guidance_tables digits                # some 10 minutes, with the shipped checkpoints
    python -m benchmarks.guidance_tables mnist --root data     # half an hour, after the four trainings that the page names

Every figure is one of ``evaluate``, every picture one of ``sample``: their commands are printed. What has been
computed is kept in ``--out``, and a script that is started again goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.page import put

DOCS = Path(__file__).parent.parent / "docs"
PRETRAINED, RUNS = Path("checkpoints/pretrained"), Path("checkpoints")
SCALES = ("0", "1", "2", "4")
COLUMNS = {"Fréchet distance": "fd", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}
FREE, BY_CLASSIFIER = "classifier-free", "by a classifier"


class Subject(NamedTuple):
    """What is measured of one data set.

    Attributes:
        conditional: a model with classes, guided without a classifier.
        unconditional: one without, guided by
        classifier: which knows noisy images.
        judge: options for the feature network, which has seen real images alone.
        name: what its figures end in.
        steps: network evaluations of the sampler, DDIM.
        n: images of each figure.
    """

    conditional: Path
    unconditional: Path
    classifier: Path
    judge: tuple[str, ...]
    name: str
    steps: int
    n: int


SUBJECTS = {
    "digits": Subject(
        PRETRAINED / "digits_conditional.ckpt",
        PRETRAINED / "digits.ckpt",
        PRETRAINED / "digits_classifier.ckpt",
        ("--extractor", "DigitsFeatures", "--reference", "Digits"),
        *("digits", 50, 1000),
    ),
    "mnist": Subject(
        RUNS / "mnist_conditional" / "last.ckpt",
        RUNS / "mnist" / "last.ckpt",
        RUNS / "mnist_classifier" / "last.ckpt",
        (
            *("--extractor", "ClassifierFeatures", "--extractor.ckpt", str(RUNS / "mnist_features" / "last.ckpt")),
            *("--extractor.name", "mnist", "--reference", "MNIST"),
        ),
        *("mnist", 20, 500),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SUBJECTS))
    parser.add_argument("--root", default="data", help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=RUNS / "guidance_tables", help="results")
    options = parser.parse_args()
    subject = SUBJECTS[options.data]
    lines = [f"| guidance | w | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    pictures: dict[tuple[str, str], Path] = {}
    for kind in (FREE, BY_CLASSIFIER):
        for scale in SCALES:
            out = options.out / options.data / f"{kind} {scale}".replace(" ", "_")
            figures = measured(subject, guided(subject, kind, scale), out.with_suffix(".json"), options.root)
            cells = (f"{figures[f'{figure}_{subject.name}']['value']:.3g}" for figure in COLUMNS.values())
            lines.append(f"| {kind} | {scale} | {' | '.join(cells)} |")
            pictures[kind, scale] = drawn(subject, guided(subject, kind, scale), out)
    write(options.data, lines, pictures)


def guided(subject: Subject, kind: str, scale: str) -> list[str]:
    if kind == FREE:
        return ["--ckpt", str(subject.conditional), "--guidance", scale]
    return ["--ckpt", str(subject.unconditional), "--classifier", str(subject.classifier), "--guidance", scale]


def measured(subject: Subject, options: list[str], out: Path, root: str) -> dict[str, Any]:
    """What ``evaluate`` finds."""
    if not out.is_file():
        judge = [*subject.judge, "--metrics", "fid", "pr", "accuracy", "--root", root, "--out", str(out)]
        call("evaluate", *options, "--n", str(subject.n), "--steps", str(subject.steps), "--batch_size", "100", *judge)
    figures: dict[str, Any] = json.loads(out.read_text())["figures"]
    return figures


def drawn(subject: Subject, options: list[str], out: Path) -> Path:
    """A picture in which each class has a column."""
    if not (out / "grid.png").is_file():
        labels = ",".join(map(str, range(10)))
        call("sample", *options, "--labels", labels, "--n", "40", "--steps", str(subject.steps), "--out", str(out))
    return out / "grid.png"


def call(*arguments: str) -> None:
    command = [sys.executable, "-m", "lightning_ddpm", *arguments]
    print(*command[1:], flush=True)
    subprocess.run(command, check=True)


def write(name: str, lines: list[str], pictures: dict[tuple[str, str], Path]) -> None:
    put(DOCS / "results" / "guidance.md", name, lines)
    figure = Figure(figsize=(3 * len(SCALES), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for ((kind, scale), path), place in zip(pictures.items(), np.ravel(figure.subplots(2, len(SCALES))), strict=True):
        place.imshow(np.asarray(Image.open(path)), cmap="grey")
        place.set(xticks=[], yticks=[], title=f"w = {scale}" if kind == FREE else None)
        place.set_ylabel(kind if scale == SCALES[0] else "", fontsize=8)
    figure.savefig(DOCS / f"guidance_{name}.png", dpi=80)


if __name__ == "__main__":
    main()

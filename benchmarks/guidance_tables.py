"""Makes the tables and images of docs/results/guidance.md, on the CPU.

    python -m benchmarks guidance_tables digits              # some 10 minutes, with the shipped checkpoints
    python -m benchmarks guidance_tables mnist --root data   # half an hour, after the four trainings named on the page

``evaluate`` computes every metric and ``sample`` makes every image; their commands are printed. Results are kept in
``--out``, and a second run reuses them.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.page import DOCS, PAGES, format_table, run_program, save_image_grid, write_table

PRETRAINED, RUNS = Path("checkpoints/pretrained"), Path("checkpoints")
SCALES = ("0", "1", "2", "4")
COLUMNS = {"Fréchet distance": "fd", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}
FREE, BY_CLASSIFIER = "classifier-free", "by a classifier"


class Subject(NamedTuple):
    """The models of one dataset, and how their images are evaluated.

    Attributes:
        conditional: checkpoint of a model with classes, for classifier-free guidance.
        unconditional: checkpoint of a model without classes, guided by ``classifier``.
        classifier: checkpoint of a classifier of noisy images.
        extractor: options of the feature network, which was trained on real images only.
        name: suffix of the metrics' names.
        steps: steps of the sampler, DDIM.
        n: images per evaluation.
    """

    conditional: Path
    unconditional: Path
    classifier: Path
    extractor: tuple[str, ...]
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


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", choices=list(SUBJECTS))
    parser.add_argument("--root", default="data", help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=RUNS / "guidance_tables", help="results")


def run(options: Namespace) -> None:
    subject, rows, images = SUBJECTS[options.dataset], [], {}
    for kind in (FREE, BY_CLASSIFIER):
        for scale in SCALES:
            out = options.out / options.dataset / f"{kind} {scale}".replace(" ", "_")
            words = make_model_options(subject, kind, scale)
            metrics = evaluate(subject, words, out.with_suffix(".json"), options.root)
            rows.append([kind, scale, *(f"{metrics[f'{m}_{subject.name}']['value']:.3g}" for m in COLUMNS.values())])
            images[kind, f"w = {scale}"] = np.asarray(Image.open(sample(subject, words, out)))
    write_table(PAGES / "guidance.md", options.dataset, format_table(["guidance", "w", *COLUMNS], rows))
    save_image_grid(DOCS / f"guidance_{options.dataset}.png", images, cell=(3, 1.5), dpi=80)


def make_model_options(subject: Subject, kind: str, scale: str) -> list[object]:
    if kind == FREE:
        return ["--ckpt", subject.conditional, "--guidance", scale]
    return ["--ckpt", subject.unconditional, "--classifier", subject.classifier, "--guidance", scale]


def evaluate(subject: Subject, model: list[object], out: Path, root: str) -> dict[str, Any]:
    """Return the metrics that ``evaluate`` measures, by name."""
    if not out.is_file():
        sampling = ("--n", subject.n, "--steps", subject.steps, "--batch_size", 100)
        metrics = (*subject.extractor, "--metrics", "fid", "pr", "accuracy", "--root", root)
        run_program("evaluate", *model, *sampling, *metrics, "--out", out)
    measured: dict[str, Any] = json.loads(out.read_text())["metrics"]
    return measured


def sample(subject: Subject, model: list[object], out: Path) -> Path:
    """Return the path of a grid with one column per class."""
    if not (out / "grid.png").is_file():
        labels = ",".join(map(str, range(10)))
        run_program("sample", *model, "--labels", labels, "--n", 40, "--steps", subject.steps, "--out", out)
    return out / "grid.png"

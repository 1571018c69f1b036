"""Makes the tables in docs/results/digits.md, and its pictures, on the CPU.

    python -m benchmarks.digits_tables samplers       # half an hour: the shipped model, drawn from in many ways
    python -m benchmarks.digits_tables objectives     # an hour: 24 models, trained and measured alike

The Fréchet distance is that of benchmarks/check_samples.py, in raw pixels, and ``fd_digits`` the same between features of the
digit classifier that the package ships. Both go to all 1,797 real digits, from N generated ones.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.check_samples import flat, frechet
from benchmarks.page import put
from lightning_ddpm import diffusion
from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import arrange_grid, to_float
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate

DOCS = Path(__file__).parent.parent / "docs"
N = 256
SHOWN = 4
EVALUATIONS = (5, 10, 20, 50, 100, 1000)

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "Ancestral, fixed small": lambda n: diffusion.Ancestral(diffusion.FixedSmall(), n),
    "Ancestral, fixed large": lambda n: diffusion.Ancestral(diffusion.FixedLarge(), n),
    "DDIM, uniform": lambda n: diffusion.DDIM(n),
    "DDIM, quadratic": lambda n: diffusion.DDIM(n, spacing=diffusion.quadratic_spacing),
    "DDIM, trailing": lambda n: diffusion.DDIM(n, spacing=diffusion.trailing_spacing),
    "DPM-Solver++ 2M": lambda n: diffusion.DPMSolverPP(n),
    "DPM-Solver++ 2M SDE": lambda n: diffusion.DPMSolverPP(n, eta=1),
    "Heun": lambda n: diffusion.Heun((n + 1) // 2),
    "Euler-Maruyama": lambda n: diffusion.EulerMaruyama(n),
    "Predictor-corrector": lambda n: diffusion.PredictorCorrector(
        diffusion.Ancestral(diffusion.FixedSmall(), (n + 1) // 2)
    ),
}

PREDICTIONS = ("Epsilon", "X0", "Velocity", "PosteriorMean")
OBJECTIVES: dict[str, list[str]] = {
    "Simple": ["Simple"],
    "VLB": ["VLB", "--model.objective.variance", "lightning_ddpm.diffusion.FixedLarge"],
    "Hybrid": ["Hybrid", "--model.network.outputs", "2"],
    "min-SNR": ["SimpleWeighted", "--model.objective.weight", "lightning_ddpm.diffusion.MinSNR"],
    "truncated SNR": ["SimpleWeighted", "--model.objective.weight", "lightning_ddpm.diffusion.TruncatedSNR"],
    "P2": ["SimpleWeighted", "--model.objective.weight", "lightning_ddpm.diffusion.P2"],
}
STEPS = 500
LIKELIHOOD_IMAGES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["samplers", "objectives"])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/digits_tables"), help="runs and results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (samplers if options.table == "samplers" else objectives)(options.out)


def samplers(out: Path) -> None:
    model = load("checkpoints/pretrained/digits.ckpt", DDPM)
    spent: list[int] = []
    model.network.register_forward_pre_hook(lambda network, inputs: spent.append(len(inputs[0])))
    results, pictures = Results(out / "samplers.json"), {}
    ways = [(name, str(n), make(n)) for name, make in SAMPLERS.items() for n in EVALUATIONS]
    ways += [(f"Adaptive ODE, {tolerance:g}", "own", diffusion.AdaptiveODE(tolerance)) for tolerance in (1e-2, 1e-4)]
    for name, column, sampler in ways:
        if (name, column) not in results:
            spent.clear()
            images = draw(model, sampler, N)
            results.add(name, column, {**distances(images), "evaluations": sum(spent) / N})
        pictures[name, column] = draw(model, sampler, SHOWN)
    rows = list(SAMPLERS)
    columns = [str(n) for n in EVALUATIONS]
    lines = ["| sampler | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for row in rows:
        lines.append(f"| {row} | " + " | ".join(cell(results[row, column]) for column in columns) + " |")
    for name, column, _ in ways[-2:]:
        figures = results[name, column]
        lines.append(
            f"| {name}: {figures['evaluations']:.0f} evaluations | {cell(figures)} |" + " |" * (len(columns) - 1)
        )
    write("digits_samplers", lines, rows, columns, pictures)


def objectives(out: Path) -> None:
    results, pictures = Results(out / "objectives.json"), {}
    for objective, arguments in OBJECTIVES.items():
        for prediction in PREDICTIONS:
            run = out / f"{objective} {prediction}".replace(" ", "_")
            new = (prediction, objective) not in results
            if new:
                shutil.rmtree(run, ignore_errors=True)  # of a run that did not come to its end
                train(run, prediction, arguments)
            model = load(run / "last.ckpt", DDPM)
            if new:
                images = draw(model, diffusion.DDIM(50), N)
                variance = diffusion.LearnedRange() if objective == "Hybrid" else diffusion.FixedLarge()
                results.add(prediction, objective, {**distances(images), "bits": bits_per_dim(model, variance)})
            pictures[prediction, objective] = draw(model, diffusion.DDIM(50), SHOWN)
    columns = list(OBJECTIVES)
    lines = ["| predicts | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for row in PREDICTIONS:
        cells = (f"{cell(results[row, column])}, {results[row, column]['bits']:.2f} bits" for column in columns)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    write("digits_objectives", lines, list(PREDICTIONS), columns, pictures)


def train(run: Path, prediction: str, objective: list[str]) -> None:
    command = [sys.executable, "-m", "lightning_ddpm", "fit", "--config", "configs/digits.yaml"]
    command += ["--trainer.default_root_dir", str(run), "--trainer.max_steps", str(STEPS)]
    command += ["--model.parameterization", f"lightning_ddpm.diffusion.{prediction}"]
    command += ["--model.objective", f"lightning_ddpm.diffusion.{objective[0]}", *objective[1:]]
    subprocess.run(command, check=True)


def draw(model: DDPM, sampler: Sampler, n: int) -> Tensor:
    """n images (n, 1, 8, 8) uint8, of the same noise every time."""
    return generate(model, n, batch_size=n, sampler=sampler)


def distances(images: Tensor) -> dict[str, float]:
    extractor = DigitsFeatures()
    extractor.load()
    real = torch.cat([Digits().open(Path(), split).__getitems__(range(n))[0] for split, n in SPLITS])
    with torch.no_grad():
        features = [extractor(each).double().numpy() for each in (real, images)]
    return {"pixels": frechet(flat(real), flat(images)), "fd_digits": frechet(*features)}


SPLITS = [(split, len(Digits().open(Path(), split))) for split in ("train", "test")]


def bits_per_dim(model: DDPM, variance: diffusion.ReverseVariance) -> float:
    """The bound, clipped, over the first held-out images; the noise is the same for every model."""
    images = to_float(Digits().open(Path(), "test").__getitems__(range(LIKELIHOOD_IMAGES))[0])
    torch.manual_seed(0)
    with torch.no_grad():
        return diffusion.elbo(model.denoiser, variance, images).total.mean().item()


class Results:
    """Figures by row and column, kept as they come: a script that is started again goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, row: str, column: str, figures: dict[str, float]) -> None:
        self.figures[f"{row} | {column}"] = figures
        self.path.write_text(json.dumps(self.figures, indent=1))
        print(row, column, figures, flush=True)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return " | ".join(key) in self.figures

    def __getitem__(self, key: tuple[str, str]) -> dict[str, float]:
        return self.figures[" | ".join(key)]


def cell(figures: dict[str, float]) -> str:
    return f"{figures['pixels']:.2f} / {figures['fd_digits']:.0f}"


def write(
    name: str, lines: list[str], rows: list[str], columns: list[str], pictures: dict[tuple[str, str], Tensor]
) -> None:
    put(DOCS / "results" / "digits.md", name, lines)
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(len(rows), len(columns))
    for (y, x), place in np.ndenumerate(places):
        place.imshow(arrange_grid(pictures[rows[y], columns[x]], columns=2).permute(1, 2, 0).numpy())
        place.set(xticks=[], yticks=[], title=columns[x] if y == 0 else None)
        place.set_ylabel(rows[y] if x == 0 else "", fontsize=7)
    figure.savefig(DOCS / f"{name}.png", dpi=80)


if __name__ == "__main__":
    main()

"""Makes the tables and images of docs/results/digits.md, on the CPU.

    python -m benchmarks digits_tables samplers       # half an hour: the shipped model with many samplers
    python -m benchmarks digits_tables objectives     # an hour: 24 models, trained and evaluated alike

The Fréchet distance in raw pixels is that of benchmarks/check_samples.py; ``fd_digits`` is the same distance between
features of the digit classifier that ships with the package. Both compare N generated digits with all 1,797 real ones.
"""

import json
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.check_samples import compute_frechet, flatten_images
from benchmarks.page import DOCS, PAGES, format_table, run_program, save_image_grid, write_table
from lightning_ddpm import diffusion
from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import arrange_grid, to_float
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate

N = 256
SHOWN = 4
"""Images of each sampler or model in the plot."""
NFES = (5, 10, 20, 50, 100, 1000)

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

PARAMETERIZATIONS = ("Epsilon", "X0", "Velocity", "PosteriorMean")
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


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("table", choices=["samplers", "objectives"])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/digits_tables"), help="runs and results")


def run(options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    (compare_samplers if options.table == "samplers" else compare_objectives)(options.out)


def compare_samplers(out: Path) -> None:
    model = load("checkpoints/pretrained/digits.ckpt", DDPM)
    calls: list[int] = []
    model.network.register_forward_pre_hook(lambda network, inputs: calls.append(len(inputs[0])))
    results, images = Results(out / "samplers.json"), {}
    samplers = [(name, str(n), make(n)) for name, make in SAMPLERS.items() for n in NFES]
    adaptive = [(f"Adaptive ODE, {tolerance:g}", "own", diffusion.AdaptiveODE(tolerance)) for tolerance in (1e-2, 1e-4)]
    for name, column, sampler in samplers + adaptive:
        if (name, column) not in results:
            calls.clear()
            measured = measure_distances(generate(model, N, batch_size=N, sampler=sampler))
            results.add(name, column, {**measured, "nfe": sum(calls) / N})
        if column != "own":
            images[name, column] = plot(model, sampler)
    columns = [str(n) for n in NFES]
    rows = [[name, *(format_cell(results[name, column]) for column in columns)] for name in SAMPLERS]
    for name, column, _ in adaptive:
        rows.append([f"{name}: {results[name, column]['nfe']:.0f} NFE", format_cell(results[name, column])])
    write_page("digits_samplers", format_table(["sampler", *columns], rows), images)


def compare_objectives(out: Path) -> None:
    results, images = Results(out / "objectives.json"), {}
    for objective, arguments in OBJECTIVES.items():
        for target in PARAMETERIZATIONS:
            folder = out / f"{objective} {target}".replace(" ", "_")
            is_new = (target, objective) not in results
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
                train(folder, target, arguments)
            model = load(folder / "last.ckpt", DDPM)
            if is_new:
                measured = measure_distances(generate(model, N, batch_size=N, sampler=diffusion.DDIM(50)))
                variance = diffusion.LearnedRange() if objective == "Hybrid" else diffusion.FixedLarge()
                results.add(target, objective, {**measured, "bits": measure_bits_per_dim(model, variance)})
            images[target, objective] = plot(model, diffusion.DDIM(50))
    cells = {key: f"{format_cell(results[key])}, {results[key]['bits']:.2f} bits" for key in images}
    rows = [[target, *(cells[target, objective] for objective in OBJECTIVES)] for target in PARAMETERIZATIONS]
    images = {
        (target, objective): images[target, objective] for target in PARAMETERIZATIONS for objective in OBJECTIVES
    }
    write_page("digits_objectives", format_table(["predicts", *OBJECTIVES], rows), images)


def train(folder: Path, target: str, objective: list[str]) -> None:
    run_program(
        *("fit", "--config", "configs/digits.yaml"),
        *("--trainer.default_root_dir", folder, "--trainer.max_steps", STEPS),
        *("--model.parameterization", f"lightning_ddpm.diffusion.{target}"),
        *("--model.objective", f"lightning_ddpm.diffusion.{objective[0]}", *objective[1:]),
    )


def plot(model: DDPM, sampler: Sampler) -> Tensor:
    """Return a grid (h, w, 3) of the first images of a sampler, from the same noise every time."""
    return arrange_grid(generate(model, SHOWN, batch_size=SHOWN, sampler=sampler), columns=2).permute(1, 2, 0)


def measure_distances(images: Tensor) -> dict[str, float]:
    extractor = DigitsFeatures()
    extractor.load()
    splits = [Digits().open(Path(), split) for split in ("train", "test")]
    real = torch.cat([split.__getitems__(range(len(split)))[0] for split in splits])
    with torch.no_grad():
        features = [extractor(each).double().numpy() for each in (real, images)]
    pixels = compute_frechet(flatten_images(real), flatten_images(images))
    return {"pixels": pixels, "fd_digits": compute_frechet(*features)}


def measure_bits_per_dim(model: DDPM, variance: diffusion.ReverseVariance) -> float:
    """Measure the ELBO, clipped, of the first held-out images, with the same noise for every model."""
    images = to_float(Digits().open(Path(), "test").__getitems__(range(LIKELIHOOD_IMAGES))[0])
    torch.manual_seed(0)
    with torch.no_grad():
        return diffusion.elbo(model.denoiser, variance, images).total.mean().item()


class Results:
    """Metrics by row and column in a JSON file, written as they are measured, so that a second run continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, row: str, column: str, metrics: dict[str, float]) -> None:
        self.metrics[f"{row} | {column}"] = metrics
        self.path.write_text(json.dumps(self.metrics, indent=1, allow_nan=False))
        print(row, column, metrics, flush=True)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return " | ".join(key) in self.metrics

    def __getitem__(self, key: tuple[str, str]) -> dict[str, float]:
        return self.metrics[" | ".join(key)]


def format_cell(metrics: dict[str, float]) -> str:
    return f"{metrics['pixels']:.2f} / {metrics['fd_digits']:.0f}"


def write_page(name: str, lines: list[str], images: dict[tuple[str, str], Tensor]) -> None:
    write_table(PAGES / "digits.md", name, lines)
    save_image_grid(DOCS / f"{name}.png", images, cell=(1.5, 1.5), dpi=80)

"""Makes the tables and the image of docs/results/paths.md: what the network predicts, on which path, in which network.

    python -m benchmarks paths_tables digits                 # 25 minutes of one CPU core
    python -m benchmarks paths_tables mnist --root data      # 40 minutes

Every candidate is trained by ``fit`` from three seeds, with the same images seen, learning rate and average of the
weights, and sampled by the same solver with the same number of network evaluations (NFE). Runs and scores are kept in
--out: Ctrl-C, SIGTERM or a lost machine stops the script, and the same command continues it. The tables are made of the
scores known so far, which are copied to benchmarks/results/paths/ once they are complete.
"""

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks.check_samples import compute_frechet, flatten_images
from benchmarks.digits_tables import Results
from benchmarks.models import read_config
from benchmarks.page import DOCS, PAGES, format_table, save_image_grid, write_table
from benchmarks.paths_candidates import (
    BATCH,
    NETWORKS,
    PREDICTIONS,
    SUBJECTS,
    Subject,
    list_predictions,
    list_solvers,
)
from benchmarks.recipe_runs import read_step
from lightning_ddpm import data
from lightning_ddpm.commands.main import main
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.metrics import ClassifierFeatures, DigitsFeatures, FeatureExtractor
from lightning_ddpm.metrics.flow_likelihood import measure_flow_likelihood
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate
from lightning_ddpm.utils.distributed import Ranks

SEEDS = (0, 1, 2)
N = 500
"""Images of a Fréchet distance."""
LIKELIHOOD_IMAGES = 32
TOLERANCE = 1e-3
SHOWN = 16
KEPT = Path(__file__).parent / "results" / "paths"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", choices=list(SUBJECTS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/paths_tables"), help="runs and scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of the trainings")


def run(options: Namespace) -> None:
    subject, out = SUBJECTS[options.dataset], options.out / options.dataset
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "scores.json")
    score = make_score(options, subject)
    for seed in options.seeds:  # all candidates with one seed first: a first table early
        for network in NETWORKS:
            for prediction in list_predictions(network):
                measure(options, subject, (prediction, network, seed), results, score)
    write_page(options.dataset, results)
    plot(options, out)
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{options.dataset}.json").write_text(results.path.read_text())


def get_folder(out: Path, prediction: str, network: str, seed: int) -> Path:
    return out / f"{prediction} {network} {seed}".replace(" ", "_")


def measure(
    options: Namespace,
    subject: Subject,
    candidate: tuple[str, str, int],
    results: Results,
    score: Callable[[DDPM, Sampler], dict[str, float]],
) -> None:
    """Train a candidate, and add the scores that are missing."""
    prediction, network, seed = candidate
    folder = get_folder(options.out / options.dataset, *candidate)
    row = f"{prediction} | {network}"
    solvers = list_solvers(PREDICTIONS[prediction])
    columns = [*(f"{nfe} NFE" for nfe in solvers), "likelihood"]
    if all((row, f"{seed} | {column}") in results for column in columns):
        return
    train(build_config(subject, prediction, network, seed, options.root), folder)
    model = load(folder / "last.ckpt", DDPM)
    for nfe, sampler in solvers.items():
        if (row, f"{seed} | {nfe} NFE") not in results:
            results.add(row, f"{seed} | {nfe} NFE", score(model, sampler))
    if (row, f"{seed} | likelihood") not in results:
        results.add(row, f"{seed} | likelihood", measure_likelihood(model, subject, options.root))


def train(config: dict[str, Any], folder: Path) -> None:
    """Train in this process; continue the run that is in the folder, unless it is complete.

    Raises:
        SystemExit: fit failed, or was stopped before its last step.
    """
    steps = config["trainer"]["max_steps"]
    if (step := read_step(folder)) >= steps:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(folder)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(config))
    status = main(["fit", "--config", str(file), *(["--ckpt_path", "last"] if step else [])])
    if status or read_step(folder) < steps:
        sys.exit(f"fit ended with {status} after step {read_step(folder)} in {folder}; the same command continues")


def build_config(subject: Subject, prediction: str, network: str, seed: int, root: Path) -> dict[str, Any]:
    """Return the subject's config with the candidate's model, for a run without validation."""
    config, steps = read_config(subject.config), subject.steps
    callbacks = [
        {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 1 - 20 / steps}},
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 100}},
    ]
    config["seed_everything"] = seed
    config["trainer"] |= {"max_steps": steps, "limit_val_batches": 0, "callbacks": callbacks}
    config["trainer"] |= {"enable_progress_bar": False, "precision": "32-true"}
    config["data"] |= {"root": str(root), "batch_size": BATCH}
    model, chosen = config["model"]["init_args"], PREDICTIONS[prediction]
    model |= chosen.build(subject.sigma_data)
    model["network"] = subject.build_network(network, chosen.few_steps)
    model["lr_scheduler"] = {
        "class_path": "torch.optim.lr_scheduler.OneCycleLR",
        "init_args": {"max_lr": 1e-3, "total_steps": steps, "pct_start": 0.1, "cycle_momentum": False},
    }
    return config


def make_score(options: Namespace, subject: Subject) -> Callable[[DDPM, Sampler], dict[str, float]]:
    """Return what computes the Fréchet distances of N images to the real ones, in pixels and in features."""
    splits = [getattr(data, subject.source)().open(options.root, split) for split in ("train", "test")]
    real = torch.cat([split.__getitems__(range(min(len(split), 10_000)))[0] for split in splits])
    extractor = get_extractor(options, subject)

    def embed(images: Tensor) -> "np.ndarray[Any, Any]":
        with torch.no_grad():
            return np.concatenate([extractor(part).double().numpy() for part in images.split(500)])

    pixels, features = flatten_images(real), embed(real)

    def score(model: DDPM, sampler: Sampler) -> dict[str, float]:
        images = generate(model, N, batch_size=250, sampler=sampler)
        found = {"pixels": compute_frechet(pixels, flatten_images(images))}
        return found | {"features": compute_frechet(features, embed(images))}

    return score


def get_extractor(options: Namespace, subject: Subject) -> FeatureExtractor:
    """Return the feature network, which was trained on real images only; MNIST's is trained first if it is missing."""
    extractor: FeatureExtractor = DigitsFeatures()
    if subject.features:
        folder = options.out / subject.features
        config = read_config(subject.features)
        config["data"]["root"] = str(options.root)
        config["trainer"]["max_steps"] = 400
        train(config, folder)
        extractor = ClassifierFeatures(str(folder / "last.ckpt"), name=options.dataset)
    extractor.load()
    return extractor


def measure_likelihood(model: DDPM, subject: Subject, root: Path) -> dict[str, float]:
    """Measure the flow's bits/dim of held-out images, with the same noise for every model."""
    images = data.ImageDataModule(getattr(data, subject.source)(), root=root)
    images.setup("test")

    def progress(batches: Iterator[tuple[int, Tensor]], total: int) -> Iterator[Tensor]:
        yield from (batch for _, batch in batches)

    settings = {"n": LIKELIHOOD_IMAGES, "seed": 0, "batch_size": LIKELIHOOD_IMAGES, "tolerance": TOLERANCE}
    found = measure_flow_likelihood(
        model, images.held_out, **settings, ranks=Ranks(), context=nullcontext, progress=progress
    )
    return {"bits": found.mean, "nfe": found.nfe}


def summarise(results: Results, row: str, column: str, name: str, digits: int) -> str:
    """Return mean and standard deviation over the seeds that are done, or nothing."""
    found = [each[name] for key, each in results.metrics.items() if is_of(key, row, column)]
    found = [each for each in found if math.isfinite(each)]
    if not found:
        return ""
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def is_of(key: str, row: str, column: str) -> bool:
    """Return whether a score is one of these, whatever its seed."""
    parts = key.split(" | ")
    return parts[:2] == row.split(" | ") and parts[3] == column


def write_page(dataset: str, results: Results) -> None:
    """Write the tables of the scores that are known."""
    page, cell = PAGES / "paths.md", partial(summarise, results)
    rows = []
    for name in (name for name, each in PREDICTIONS.items() if not each.few_steps):
        row = [PREDICTIONS[name].title]
        for network in NETWORKS:
            of = f"{name} | {network}"
            row += [cell(of, "19 NFE", "features", 0), cell(of, "likelihood", "bits", 2)]
        rows.append(row)
    columns = ["predicts", *(f"{network}: {what}" for network in NETWORKS for what in ("distance", "bits/dim"))]
    write_table(page, dataset, format_table(columns, rows))
    few = [name for name, each in PREDICTIONS.items() if each.few_steps or name == "flow"]
    nfes = list(list_solvers(PREDICTIONS["flow"]))
    rows = [
        [
            PREDICTIONS[name].title,
            *(cell(f"{name} | {NETWORKS[0]}", f"{nfe} NFE", "features", 0) for nfe in nfes),
        ]
        for name in few
    ]
    write_table(page, f"{dataset}_few", format_table(["objective", *(f"{nfe} NFE" for nfe in nfes)], rows))


def plot(options: Namespace, out: Path) -> None:
    """Show the first images of every candidate of the first seed, from the same noise."""
    images = {}
    for network in NETWORKS:
        for prediction in list_predictions(network):
            folder = get_folder(out, prediction, network, options.seeds[0])
            nfe, sampler = list(list_solvers(PREDICTIONS[prediction]).items())[-1]
            model = load(folder / "last.ckpt", DDPM)
            grid = arrange_grid(generate(model, SHOWN, batch_size=SHOWN, sampler=sampler), columns=4)
            images[network, f"{prediction}, {nfe} NFE"] = grid.permute(1, 2, 0)
    blank = torch.full_like(next(iter(images.values())), 255)
    columns = list(dict.fromkeys(column for _, column in images))
    filled = {(row, column): images.get((row, column), blank) for row in NETWORKS for column in columns}
    save_image_grid(DOCS / f"paths_{options.dataset}.png", filled, cell=(1.7, 1.7), dpi=80)

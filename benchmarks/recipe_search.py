"""Searches the recipe with the best Fréchet distance per CPU-minute at 28x28, by successive halving.

    python -m benchmarks recipe_search recipe --folder DIR --data data --precision bf16-mixed
    python -m benchmarks recipe_search measure --folder DIR        # on an idle machine: the cost of each network
    python -m benchmarks recipe_search network --folder DIR ...    # networks at equal time, with the best recipe
    python -m benchmarks recipe_search sampler --folder DIR ...    # the best checkpoint with samplers at 10 to 50 NFE
    python -m benchmarks recipe_search report --folder DIR         # what is known so far, into benchmarks/results/

All candidates (benchmarks/recipe_candidates.py, with the reasons) are trained by ``fit``; the best third is resumed to
three times as many images, with the learning rate of that length, and again (Jamieson & Talwalkar 2016,
arXiv:1502.07943). What is done is kept in --folder: Ctrl-C, SIGTERM or a lost machine stops the search, and the same
command continues it. Training and sampling have seeds of their own, not those of any reported run. The score is the
geometric mean of two Fréchet distances of 1,000 images to real ones: in raw pixels, as benchmarks/check_samples.py
computes it, and in features of the classifier of configs/mnist_features.yaml, which is trained first if it is missing.
"""

import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.check_samples import compute_frechet, flatten_images
from benchmarks.digits_tables import Results
from benchmarks.models import autocast, read_config
from benchmarks.recipe_candidates import BASE, NETWORKS, NFES, RECIPES, SAMPLERS, Recipe
from benchmarks.recipe_runs import build_config, fit
from benchmarks.report import PAGE, time_in_turns, write_result, write_tables
from lightning_ddpm.data import MNIST
from lightning_ddpm.diffusion import Cosine, DPMSolverPP
from lightning_ddpm.metrics import ClassifierFeatures
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet

SEED = 1001
"""Of training and of the images; reported runs have 0, 1 and 2."""
RUNGS = (16_384, 49_152, 147_456)
"""Images seen; a third of the candidates goes on to the next."""
N = 1000
REFERENCE = 10_000
"""Real images of each split; as many as check_samples takes."""
NFE = 20
REAL = "as many random real images"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("part", choices=["recipe", "network", "sampler", "measure", "report"])
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/recipe_search"), help="runs and scores")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--rungs", type=int, nargs="+", default=RUNGS, help="images seen at each comparison")
    parser.add_argument("--rounds", type=int, default=11, help="of measure: steps of each network, in turn")
    parser.add_argument("--out", type=Path, default=PAGE.parent / "results", help="folder of report's file")


def run(options: Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.folder / "scores.json")
    if options.part == "measure":
        measure_networks(options)
    elif options.part == "report":
        write_report(options, results)
    elif options.part == "recipe":
        candidates = {f"recipe: {name}": recipe for name, recipe in RECIPES.items()}
        halve(candidates, options.rungs, results, make_trial(options, results))
    elif options.part == "network":
        halve(make_networks(options, results), options.rungs, results, make_trial(options, results))
    else:
        compare_samplers(options, results)


def halve(
    candidates: Mapping[str, Recipe],
    rungs: tuple[int, ...],
    results: Results,
    trial: Callable[[str, Recipe, int], None],
) -> list[str]:
    """Train and score the candidates at every rung, a third of them at the next, and return the last ones, best first.

    Args:
        candidates: recipes by name.
        rungs: images seen, ascending.
        results: the scores, by name and rung.
        trial: trains a candidate to this many images and adds its score; not called for what has one already.
    """
    names = list(candidates)
    for rung in rungs:
        for name in names:
            if (name, str(rung)) not in results:
                trial(name, candidates[name], rung)
        names = rank(names, results, rung)
        print(f"after {rung:,} images: {', '.join(names)}", flush=True)
        if rung != rungs[-1]:
            names = names[: math.ceil(len(names) / 3)]
    return names


def rank(names: list[str], results: Results, rung: int) -> list[str]:
    """Return the names by their score, best first."""
    scores = {name: results[name, str(rung)]["score"] for name in names}
    return sorted(names, key=lambda name: scores[name])


def make_trial(options: Namespace, results: Results) -> Callable[[str, Recipe, int], None]:
    """Return the function that trains a candidate by ``fit``, scores its EMA weights, and adds the score."""
    score = make_score(options, results)
    costs = read_costs(options.folder) if options.part == "network" else {}

    def trial(name: str, recipe: Recipe, rung: int) -> None:
        cost = costs[name.partition(": ")[2]] if costs else 1.0
        folder = get_folder(options, name)
        steps = round(rung / cost / recipe.batch_size)
        fit(build_config(recipe, steps, SEED, options), folder)
        model = load(folder / "last.ckpt", DDPM)
        results.add(name, str(rung), {**score(model, DPMSolverPP(NFE)), "steps": steps, "cost": cost})

    return trial


def get_folder(options: Namespace, name: str) -> Path:
    """Return the folder of a candidate's run."""
    return options.folder / name.replace(": ", "/").replace(" ", "_").replace(",", "")


def make_score(options: Namespace, results: Results) -> Callable[..., dict[str, float]]:
    """Return the function that samples N images of a model and computes their distances to real images."""
    checkpoint = options.folder / "features" / "last.ckpt"
    config = read_config("mnist_features")
    config["data"]["root"] = str(options.data)
    fit(config, checkpoint.parent)
    extractor = ClassifierFeatures(str(checkpoint), "mnist")
    extractor.load()
    train, held_out = (MNIST().open(options.data, split) for split in ("train", "test"))
    real = torch.cat([split.__getitems__(range(REFERENCE))[0] for split in (train, held_out)])

    @torch.no_grad()
    def embed(images: torch.Tensor) -> "np.ndarray[Any, Any]":
        return np.concatenate([extractor(part).double().numpy() for part in images.split(500)])

    pixels, features = flatten_images(real), embed(real)

    def compare(images: torch.Tensor) -> dict[str, float]:
        found = {
            "pixels": compute_frechet(pixels, flatten_images(images)),
            "features": compute_frechet(features, embed(images)),
        }
        return {**found, "score": math.sqrt(found["pixels"] * found["features"])}

    def score(model: DDPM, sampler: Any) -> dict[str, float]:
        request = SampleRequest(N, SEED, 250, sampler)
        batches = generate_batches(model, request, context=lambda: autocast(options.precision))
        return compare(torch.cat([images for _, images in batches]).cpu())

    # what no generator can fall below but by chance; taken at random, because neighbours are by the same writer
    others = np.random.default_rng(SEED).choice(np.arange(REFERENCE, len(train)), N, replace=False).tolist()
    if (REAL, str(N)) not in results:
        results.add(REAL, str(N), compare(train.__getitems__(others)[0]))
    return score


def find_best(results: Results, part: str) -> str:
    """Return the name of the part's best candidate among those that were trained longest.

    Raises:
        SystemExit: the part has no result.
    """
    found = [key.split(" | ") for key in results.metrics if key.startswith(f"{part}: ")]
    if not found:
        sys.exit(f"there is no result of {part}; run that part first")
    rung = max(int(column) for _, column in found)
    return rank([name for name, column in found if int(column) == rung], results, rung)[0]


def make_networks(options: Namespace, results: Results) -> dict[str, Recipe]:
    """Return the best recipe with every network."""
    recipe = RECIPES[find_best(results, "recipe").partition(": ")[2]]
    return {f"network: {name}": replace(recipe, network=change) for name, change in NETWORKS.items()}


def measure_networks(options: Namespace) -> None:
    """Measure a training step of every network, in turns, and write the seconds into the folder."""
    contenders = {
        name: partial(next, iter_steps(replace(BASE, network=change), options)) for name, change in NETWORKS.items()
    }
    seconds = time_in_turns(contenders, options.rounds)
    settings = {"precision": options.precision, "images": BASE.batch_size}
    write_result(options.folder, "recipe_step", settings, seconds)


def iter_steps(recipe: Recipe, options: Namespace) -> Iterator[None]:
    """Train the recipe's network on noise, one step each time."""
    arguments = read_config("mnist")["model"]["init_args"]["network"]["init_args"]
    network = UNet(**(arguments | {"channels": 1, "size": 28} | dict(recipe.network)))
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr, fused=True)
    x = torch.randn(recipe.batch_size, 1, 28, 28)
    t = torch.randint(1, Cosine().T + 1, (recipe.batch_size,))
    while True:
        with autocast(options.precision):
            output = network(x, t)
        (output.float() - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def read_costs(folder: Path) -> dict[str, float]:
    """Return the time of a step of every network, divided by the first one's.

    Raises:
        SystemExit: it has not been measured.
    """
    files = sorted(folder.glob("recipe_step-*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        sys.exit("the networks are compared at equal time: run the part measure first, on an idle machine")
    seconds = {name: median(each) for name, each in json.loads(files[-1].read_text())["values"].items()}
    return {name: each / next(iter(seconds.values())) for name, each in seconds.items()}


def compare_samplers(options: Namespace, results: Results) -> None:
    """Score the longest-trained best candidate with every sampler."""
    known = [part for part in ("network", "recipe") if any(key.startswith(part) for key in results.metrics)]
    best = find_best(results, known[0] if known else "recipe")
    model = load(get_folder(options, best) / "last.ckpt", DDPM)
    score = make_score(options, results)
    for name, make in SAMPLERS.items():
        for nfe in NFES:
            if (f"sampler: {best}: {name}", str(nfe)) not in results:
                results.add(f"sampler: {best}: {name}", str(nfe), score(model, make(nfe)))


def write_report(options: Namespace, results: Results) -> None:
    """Write the scores of the recipes and networks by images seen."""
    found = {tuple(key.split(" | ")): value for key, value in results.metrics.items()}
    real = found.pop((REAL, str(N)), {})
    found = {key: value for key, value in found.items() if key[0].startswith(("recipe: ", "network: "))}
    columns = sorted({column for _, column in found}, key=int)
    rows = {
        f"{name}: {distance}": [found.get((name, column), {}).get(distance) for column in columns]
        for name in dict.fromkeys(name for name, _ in found)
        for distance in ("pixels", "features")
    }
    settings: dict[str, Any] = {"unit": "images seen", "columns": [f"{int(each):,}" for each in columns]}
    settings |= {"images per comparison": N, "NFE": NFE, "seed": SEED, "precision": options.precision}
    settings |= {f"{distance} of {REAL}": round(real[distance], 2) for distance in ("pixels", "features") if real}
    write_result(options.out, "recipe_search", settings, rows)
    if options.out == PAGE.parent / "results":
        write_tables(PAGE, options.out)

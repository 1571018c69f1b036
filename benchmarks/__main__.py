"""``python -m benchmarks WHAT``: measure something, write the result, and update the tables made of it.

Timings are written to benchmarks/results/WHAT-HARDWARE.json and to benchmarks/RESULTS.md; scripts named ..._tables
measure image quality and write the tables and images of docs/results/. ``WHAT --help`` lists the options.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TIMINGS = {
    "training": (
        "training.run config precision compile channels_last batch_size rounds",
        "a training step of fit, beside diffusers, denoising-diffusion-pytorch and a bare loop",
    ),
    "sampling": (
        "sampling.run config precision compile channels_last nfe batch_size rounds",
        "sampling, beside diffusers' pipeline and the network alone",
    ),
    "loading": ("loading.run data rounds", "images per second of each source, beside what training consumes"),
    "evaluation": ("evaluation.run batch_size weights_path rounds", "sampling, features, statistics and distance"),
    "curve": ("curve.run config weights_path data minutes", "image quality by images seen, within some minutes"),
    "recipes": ("recipes.run", "what each change from Ho et al.'s recipe to a faster one does to the images"),
    "precision_parity": ("precision_parity.run", "the losses and images of the quickstart in bf16 and in float32"),
    "counts": ("counts.run tree", "operations, bytes, conversions, reads and exchanges of a step, as on a GPU"),
    "memory": ("memory.run", "the memory of fit over 10,000 steps"),
    "start": ("start.run rounds", "time until --help, and until the first training step is done"),
    "compiled": ("start.run_compiled rounds", "the first step with torch.compile, with an empty and a warm cache"),
    "threads": ("threads.run config rounds", "a training step by number of threads and how they wait, idle and busy"),
    "huge_pages": (
        "huge_pages.run config precision batch_size rounds",
        "a training step on the CPU with memory in pages of 4 KiB and of 2 MiB",
    ),
    "growth": ("growth.run config rounds", "time and memory by batch, image size, T and number of images"),
    "optimizer": ("weights.run_optimizers config rounds", "Adam's step alone, fused and not"),
    "average": ("weights.run_averages config rounds", "the average of the weights, beside diffusers' and torch's"),
    "switches": (
        "switches.run config precision batch_size rounds",
        "a bare training step with channels_last, an unfused optimizer or torch.compile",
    ),
}
"""Module, function and options of each timing, and what it measures."""
SCRIPTS = {
    "digits_tables": "samplers, parameterizations and objectives on digits: docs/results/digits.md",
    "paths_tables": "what the network predicts, on which path, in which network: docs/results/paths.md",
    "evaluation_tables": "what a Fréchet distance depends on: docs/results/evaluation.md",
    "family_tables": "VAE, GAN, normalizing flow and DDPM at equal CPU time: docs/results/families.md",
    "field_tables": "a Gaussian random field beside its closed form: docs/results/fields.md",
    "landsat_tables": "tiles of a satellite's scene in five bands: docs/results/satellite.md",
    "guidance_tables": "guidance on digits and MNIST: docs/results/guidance.md",
    "restoration_tables": "restored digits and MNIST images: docs/results/restoration.md",
    "superresolution_tables": "super-resolution of MNIST that is trained on pairs: docs/results/restoration.md",
    "recipe_search": "the recipe for MNIST with the best Fréchet distance per minute, by successive halving",
    "speedrun": "FID by training time on two cores, beside diffusers and denoising-diffusion-pytorch",
    "golden_curves": "the band of many seeds' curves that fit compares a run with",
    "shards_memory": "the memory of reading an epoch of tar files",
    "many_files": "the start on a folder of a million files: time, memory, stats, and what a worker is sent",
    "check_samples": "metrics of a folder of images that are independent of this package",
}
"""Modules with ``add_options`` and ``run``."""
OPTIONS = {
    "config": {"default": "cifar10", "choices": ["cifar10", "digits"], "help": "which model"},
    "precision": {"default": "32-true", "choices": ["32-true", "bf16-mixed"], "help": "precision of all contenders"},
    "compile": {"action": "store_true", "help": "ours with torch.compile"},
    "channels_last": {"action": "store_true", "help": "ours with weights in the channels_last memory format"},
    "nfe": {"type": int, "nargs": "+", "default": [10, 50, 1000], "choices": [10, 50, 1000], "help": "NFE per image"},
    "batch_size": {"type": int, "help": "images at a time; the default depends on the model"},
    "rounds": {"type": int, "default": 11, "help": "measurements of each contender, in turn with the others"},
    "weights_path": {"type": Path, "help": "Inception's weights; without them evaluation skips Inception"},
    "data": {"type": Path, "help": "folder of the dataset: CIFAR-10 as torchvision stores it or as images; MNIST"},
    "tree": {"type": Path, "help": "another checkout of this repository, to count it beside this one"},
    "minutes": {"type": float, "default": 25.0, "help": "training time; the evaluation after training comes on top"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    words = list(sys.argv[1:] if arguments is None else arguments)
    for what, (call, description) in TIMINGS.items():
        timing = commands.add_parser(what, help=description, description=description)
        for name in call.split()[1:]:
            timing.add_argument(f"--{name}", **OPTIONS[name])  # type: ignore[arg-type]
        timing.add_argument("--out", type=Path, default=RESULTS, help="folder of results; RESULTS.md needs the default")
    for what, description in SCRIPTS.items():
        script = commands.add_parser(what, help=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if what in words[:1]:  # the others' libraries are not imported
            module = import_module(f"benchmarks.{what}")
            script.description = module.__doc__
            module.add_options(script)
    commands.add_parser("tables", help="write benchmarks/RESULTS.md again from benchmarks/results/")
    options = parser.parse_args(words)
    if options.what in SCRIPTS:
        import_module(f"benchmarks.{options.what}").run(options)
        return
    if getattr(options, "rounds", 3) < 3:
        sys.exit(f"--rounds must be at least 3, for a median with quartiles, got {options.rounds}")
    if options.what in TIMINGS:
        module_name, _, function = TIMINGS[options.what][0].split()[0].partition(".")
        getattr(import_module(f"benchmarks.{module_name}"), function)(options)
    if getattr(options, "out", RESULTS) == RESULTS:
        report = import_module("benchmarks.report")
        report.write_tables(report.PAGE, RESULTS)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # temporary folders are removed
    main()

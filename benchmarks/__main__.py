"""``python -m benchmarks WHAT``: measure, write benchmarks/results/WHAT-HARDWARE.json, and the table in the docs."""

import argparse
import sys
from pathlib import Path

from benchmarks import (
    curve,
    evaluation,
    growth,
    images,
    memory,
    recipes,
    report,
    sampling,
    start,
    switches,
    training,
    weights,
)

RESULTS = Path(__file__).parent / "results"
WHATS = {
    "training": (
        training.run,
        "a training step through the Trainer beside diffusers, denoising-diffusion-pytorch, a bare loop",
    ),
    "sampling": (sampling.run, "an image by the sampler beside diffusers' pipeline and the network alone"),
    "input": (images.run, "images that each source gives a second beside those that training takes"),
    "evaluation": (evaluation.run, "drawing, features, statistics and the distance, each alone"),
    "curve": (curve.run, "how good images are after so many were seen, for so many minutes"),
    "recipes": (recipes.run, "what each change from Ho's recipe to a fast one does to the images"),
    "memory": (memory.run, "the memory of fit over 10,000 steps"),
    "start": (start.run, "--help, and the first step"),
    "compiled": (start.compiled, "the first step under torch.compile, the first time and again"),
    "growth": (growth.run, "time and memory by batch, size, T, images drawn and judged, data set"),
    "optimizer": (weights.optimizers, "Adam's step alone, fused and not"),
    "average": (weights.averages, "the average of the weights alone, beside diffusers' and torch's"),
    "switches": (
        switches.run,
        "channels_last, an optimizer that is not fused, torch.compile: what each changes of a bare step",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", choices=[*WHATS, "tables"], help="; ".join(f"{n}: {what}" for n, (_, what) in WHATS.items())
    )
    parser.add_argument(
        "--config",
        default="cifar10",
        choices=["cifar10", "digits"],
        help="of training, sampling, growth, switches, optimizer, average, curve: which model",
    )
    parser.add_argument(
        "--precision",
        default="32-true",
        choices=["32-true", "bf16-mixed"],
        help="of training, sampling, switches: of all that are measured",
    )
    parser.add_argument("--compile", action="store_true", help="of training, sampling: ours under torch.compile")
    parser.add_argument(
        "--channels_last", action="store_true", help="of training, sampling: ours with weights laid out so"
    )
    parser.add_argument(
        "--evaluations", type=int, nargs="+", default=[10, 50, 1000], choices=[10, 50, 1000], help="of sampling"
    )
    parser.add_argument("--batch_size", type=int, help="images at a time; default: by the model")
    parser.add_argument("--rounds", type=int, default=11, help="how often each is measured, in turn with the others")
    parser.add_argument(
        "--weights_path",
        type=Path,
        help="of evaluation, curve: Inception's weights; without, evaluation leaves its features out",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="of curve: the folder of its data set, CIFAR-10 as torchvision has it or as pictures; of input: one that "
        "may have CIFAR-10 and MNIST",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=25.0,
        help="of curve: how long it trains; an evaluation at the end comes on top",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results; another leaves the page alone"
    )
    options = parser.parse_args()
    if options.rounds < 3:
        sys.exit(f"--rounds must be at least 3, for a median with a spread, got {options.rounds}")
    if options.what != "tables":
        WHATS[options.what][0](options)
    if options.out == RESULTS:
        report.write_tables(report.PAGE, options.out)


if __name__ == "__main__":
    main()

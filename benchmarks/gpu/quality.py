"""What :mod:`benchmarks.gpu.first_day` measures of images: Inception's features in TF32, and an FID curve."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from benchmarks.curve import configure, interpolate_published, list_evaluations, read_curves
from benchmarks.gpu.variants import Trial, Variants, wait
from lightning_ddpm.metrics import DigitsFeatures, Inception
from lightning_ddpm.metrics.extractors import FeatureExtractor, compute_features
from lightning_ddpm.utils.errors import UserError

BETWEEN = 1000
"""Training steps between FIDs; the config's 3,000 are more than there is time for."""
END = 45
"""Seconds that an evaluation under way and the last checkpoint may take after the time of training."""


def find_weights(given: Path | None) -> Path:
    """Return the file of Inception's weights: the given one, or the one that was downloaded before.

    Raises:
        UserError: there is none; nothing is downloaded here.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        raise UserError(f"there is no file {path} with Inception's weights: give its path as --weights_path")
    return path


def measure_inception(trial: Trial) -> Variants:
    """Yield the time of Inception's features of a batch in float32 and in TF32, and by how much TF32 changes them."""
    n = 4 if trial.tiny else 256
    extractors: list[FeatureExtractor] = []

    def prepare() -> tuple[FeatureExtractor, Tensor]:
        if not extractors:
            extractor = DigitsFeatures() if trial.tiny else Inception(str(find_weights(trial.weights_path)))
            extractor.load()
            extractors.append(extractor.to(trial.device).eval())
        shape = (1, 8) if trial.tiny else (3, 32)
        noise = torch.rand(n, shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
        smooth = functional.interpolate(noise, (shape[1], shape[1]), mode="bilinear")
        return extractors[0], (255 * smooth).to(torch.uint8).to(trial.device)

    @torch.inference_mode()
    def extract(exact: bool) -> Tensor:
        extractor, pixels = prepare()
        if exact:
            return compute_features(extractor, pixels, trial.device)[0]
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        return extractor(pixels)  # type: ignore[no-any-return]

    def measure(exact: bool) -> dict[str, Any]:
        extract(exact)  # chooses the kernels
        wait(trial.device)
        started = time.perf_counter()
        extract(exact)
        wait(trial.device)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "images/s": n / seconds}

    def compare() -> dict[str, Any]:
        exact, rounded = extract(True).double(), extract(False).double()
        return {"relative change of the features": ((rounded - exact).norm() / exact.norm()).item()}

    yield "float32", partial(measure, True)
    yield "TF32", partial(measure, False)
    yield "TF32 and float32", compare


def measure_curve(trial: Trial) -> Variants:
    """Yield training by ``fit`` within the time, with the FID by images seen."""
    name = "digits" if trial.tiny else "cifar10_fast"
    yield name, partial(train, trial, name)


def train(trial: Trial, name: str) -> dict[str, Any]:
    """Return how ``fit`` ended and the Fréchet distances of its evaluations."""
    if trial.seconds < 1:
        return {"skipped": "the other parts left no time for it"}
    if not trial.tiny and trial.data is None:
        return {"skipped": "it needs CIFAR-10: give the folder that holds cifar-10-batches-py, or PNGs, as --data"}
    config = configure(name, trial.data, None if trial.tiny else find_weights(trial.weights_path))
    shorten(config, trial)
    with tempfile.TemporaryDirectory() as folder:
        run, file = Path(folder) / "run", Path(folder) / "config.yaml"
        config["trainer"]["default_root_dir"] = str(run)
        file.write_text(yaml.safe_dump(config))
        limit = time.strftime("00:%H:%M:%S", time.gmtime(trial.seconds))
        command = [sys.executable, "-m", "lightning_ddpm", "fit", "--config", str(file), "--trainer.max_time", limit]
        try:
            status = (
                f"fit ended with status {subprocess.run(command, check=False, timeout=trial.seconds + END).returncode}"
            )
        except subprocess.TimeoutExpired:
            status = f"fit was stopped {END} s after its time"
        found = read_curves(run)
    if not found["step"]:
        return {"status": f"{status}, before its first evaluation"}
    seen = [step * config["data"]["batch_size"] for step in found["step"]]
    curve = {"status": status, "images seen": seen, "minutes": found["minutes"]} | found["metrics"]
    return curve | ({} if trial.tiny else {"tqch/ddpm-torch, FID of 50,000": [*map(interpolate_published, seen)]})


def shorten(config: dict[str, Any], trial: Trial) -> None:
    """Evaluate more often, and not again after training; with a tiny model, make everything small."""
    evaluation, kept = list_evaluations(config)[0], (".ChannelsLast", ".Compile", ".EMA")
    callbacks = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(kept)]
    between = 4 if trial.tiny else BETWEEN
    evaluation["init_args"]["every_n_steps"] = between
    config["trainer"] |= {"callbacks": [*callbacks, evaluation], "val_check_interval": between}
    if trial.tiny:
        config["trainer"] |= {"accelerator": trial.device.type, "max_steps": 8}
        config["model"]["init_args"]["network"]["init_args"] |= {"width": 8, "groups": 4}
        config["data"]["batch_size"] = 16
        evaluation["init_args"] |= {"n": 65, "batch_size": 16}
        evaluation["init_args"]["sampler"]["init_args"]["steps"] = 2

"""What family_tables measures of a run: distances, likelihood, the latent space and back, and the time of sampling."""

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningModule
from torch import Tensor

from benchmarks.cpu_time import read_seconds
from examples.families.flow import LEVELS, Flow
from examples.families.gan import GAN
from examples.families.vae import VAE
from lightning_ddpm import data
from lightning_ddpm.data import ImageDataModule, ImageDataset, MemoryDataset
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.diffusion import FixedLarge
from lightning_ddpm.diffusion.samplers.ode import probability_flow, solve_ode
from lightning_ddpm.metrics import FeatureExtractor, MetricSuite, find_nearest
from lightning_ddpm.metrics.bits_per_dim import measure_bits_per_dim
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate
from lightning_ddpm.models.image_generator import require_generator
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import ImageNoise, make_generator

N, SAMPLED, LIKELIHOOD, SHOWN = 512, 64, 16, 25
"""Images of the metrics, of the timed sampling and of the reconstructions, of DDPM's bits/dim, and in the plot."""
REFERENCE = 2000
"""Training images that a Fréchet distance, precision and recall compare with, at most."""
CPU = torch.device("cpu")


def open_data(folder: Path) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Return a run's training images, those of the reference, and the held-out ones."""
    config = yaml.safe_load((folder.parent / f"{folder.name}.yaml").read_text())["data"]
    kind, root = config["source"]["class_path"].rpartition(".")[2], config.get("root", "data")
    module = ImageDataModule(getattr(data, kind)(), root)
    train = module.train
    reference = MemoryDataset(*train.__getitems__(spread_indices(min(REFERENCE, len(train)), len(train))))
    return train, reference, module.held_out


def show(batches: Any, total: int) -> Any:
    return show_progress(batches, total, show=False)


@torch.no_grad()
def measure(folder: Path, extractor: FeatureExtractor) -> dict[str, Any]:
    """Return all metrics of a finished run."""
    model = load(folder / "last.ckpt", LightningModule)
    train, reference, held_out = open_data(folder)
    seconds = read_seconds(folder)
    found: dict[str, Any] = {
        "parameters": sum(each.numel() for each in model.parameters()),
        "steps": len(seconds),
        "minutes": sum(seconds) / 60,
    }
    generator = require_generator(model)
    generate(generator, 8, batch_size=8)
    began = time.process_time()
    generate(generator, SAMPLED, batch_size=SAMPLED)
    found["sampling"] = time.process_time() - began
    images = generate(generator, N, batch_size=SAMPLED)
    suite = MetricSuite(extractor, CPU, ["fid", "pr"], N)
    suite.set_reference(reference, None, Ranks(), show)
    suite.update(0, images)
    names = {f"{name}_": name for name in ("precision", "recall")}
    for name, each in suite.compute(Ranks()).items():
        found[next((short for start, short in names.items() if name.startswith(start)), "distance")] = each.value
    features = torch.cat([extractor(each) for each in images.split(SAMPLED)])
    found["memorisation"] = find_nearest(extractor, features, 1, train, held_out, Ranks(), show).share
    shown = held_out.__getitems__(spread_indices(SAMPLED, len(held_out)))[0]
    found |= measure_likelihood(model, held_out) | reconstruct(model, shown)
    torch.save(images[:SHOWN], folder / "images.pt")
    return found


def measure_likelihood(model: LightningModule, held_out: ImageDataset) -> dict[str, float]:
    """Return bits/dim of held-out images, nothing for a GAN."""
    if isinstance(model, DDPM):
        estimates = measure_bits_per_dim(
            model, held_out, LIKELIHOOD, FixedLarge(), 0, LIKELIHOOD, Ranks(), torch.no_grad, show
        )
        return {"bits": estimates["bits_per_dim"].mean}
    bits = []
    for start in range(0, min(1000, len(held_out)), SAMPLED):
        pixels, _ = held_out.__getitems__(range(start, min(start + SAMPLED, len(held_out))))
        x = pixels / 127.5 - 1
        if isinstance(model, VAE):
            eps = ImageNoise(0, start, start + len(x), "likelihood")(torch.empty(len(x), model.latent))
            bits.append(sum(model.negative_elbo(x, eps)))
        elif isinstance(model, Flow):
            uniform = torch.rand(x.shape, generator=make_generator(CPU, "likelihood", index=start))
            bits.append(model.bits_per_dim(x, uniform))
    return {"bits": float(torch.cat(bits).mean())} if bits else {}  # type: ignore[arg-type]


def reconstruct(model: LightningModule, pixels: Tensor) -> dict[str, float]:
    """Return the mean error, in gray levels, of images that are mapped to the latent space and back, and its NFE."""
    x, levels, nfe = pixels / 127.5 - 1, pixels, 0
    if isinstance(model, VAE):
        levels = model.values.to_data(model.decode(model.encode(x)[0])[0])
    elif isinstance(model, Flow):
        u = model.decode(model.encode((pixels + 0.5) / LEVELS)[0])
        levels = (u * LEVELS).floor().clamp(0, LEVELS - 1)
    elif isinstance(model, DDPM):
        calls: list[int] = []
        hook = model.network.register_forward_pre_hook(lambda network, inputs: calls.append(1))
        denoise, schedule = model.denoiser.without_clipping(), model.schedule
        ends = schedule.angle_at(torch.tensor([1, schedule.T]))
        for times in (ends, ends.flip(0)):
            (x,) = solve_ode(lambda phi, state: (probability_flow(denoise, state[0], phi),), (x,), times, 1e-3)
        hook.remove()
        levels, nfe = model.values.to_data(x), len(calls) // 2
    elif isinstance(model, GAN):
        return {}
    return {"reconstruction": float((levels.float() - pixels.float()).abs().mean()), "reconstruction_nfe": nfe}

"""What benchmarks/recipe_search.py compares: recipes, networks and samplers for 28x28 images, with the reasons.

The base is what reached 9.6 in raw pixels after 136,000 images without a search: velocity, cosine schedule, one cycle
of the learning rate. Each candidate changes one thing, so that its rank is an answer; what wins is combined afterwards.

- Prediction and schedule. v stays well-conditioned at low SNR (Salimans & Ho 2022), where eps with a linear schedule
  makes the speckles of configs/mnist.yaml; the cosine schedule has fewer steps of pure noise (Nichol & Dhariwal 2021).
- Weights. min-SNR converged 3.4 times as fast on ImageNet (Hang et al. 2023); P2 takes weight from imperceptible noise
  (Choi et al. 2022). With few images seen, the weights decide what is learnt at all.
- Learning rate. A short run needs one that decays to zero, linearly by Defazio et al. 2023 (arXiv:2310.07831); one
  cycle allows rates beyond the stable one (Smith & Topin 2017, arXiv:1708.07120). Ho et al.'s rate, 2e-4, is for
  800,000 steps; here there are 4,000.
- Batch. Below the critical batch size, halving it halves the images for the same loss; a CPU gains little from batches
  over 64. The rate changes with the root of the batch (Malladi et al. 2022, arXiv:2205.10287).
- Adam's beta_2. 0.999 remembers 1,000 steps, a quarter of the whole run.
- EMA. Its best length is a share of the run (Karras et al. 2024, arXiv:2312.02696); a decayed rate needs it less.
- Networks. Cost is in the convolutions at 28x28, quality in the width at 7x7; AMX works on 32 channels at a time, so
  that 24 may cost as much as 32. Networks are compared at equal time, not at equal images.
- Sampler. The same checkpoint at 10 to 50 NFE; DPM-Solver++ needs 20 where DDIM needs 50 (Lu et al. 2022).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_ddpm import diffusion
from lightning_ddpm.diffusion import Sampler

DIFFUSION = "lightning_ddpm.diffusion"


def make_object(name: str, **arguments: Any) -> dict[str, Any]:
    """Return the part of a config that builds an object of lightning_ddpm.diffusion."""
    return {"class_path": f"{DIFFUSION}.{name}", "init_args": arguments}


def make_weighted(name: str, **arguments: Any) -> dict[str, Any]:
    """Return the part of a config for an objective with weights by the SNR."""
    return make_object("SimpleWeighted", weight=make_object(name, **arguments))


@dataclass(frozen=True)
class Recipe:
    """One candidate.

    Attributes:
        parameterization, schedule, objective: parts of the config.
        network: changes of the network's arguments.
        batch_size: images per step.
        lr: the highest learning rate.
        betas: Adam's.
        anneal: how the learning rate rises and falls, "cos" or "linear".
        warm_up: share of the steps over which the rate rises.
        cycle_momentum: whether beta_1 falls while the rate rises, as OneCycleLR does by default.
        average: length of the EMA, 1 / (1 - decay), as a share of the steps.
    """

    parameterization: str = "Velocity"
    schedule: Mapping[str, Any] = field(default_factory=lambda: make_object("Cosine"))
    objective: Mapping[str, Any] = field(default_factory=lambda: make_object("Simple"))
    network: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    lr: float = 0.002
    betas: tuple[float, float] = (0.9, 0.999)
    anneal: str = "cos"
    warm_up: float = 0.3
    cycle_momentum: bool = True
    average: float = 0.05


BASE = Recipe()
LINEAR = make_object("Linear", steps=1000, beta_min=0.0001, beta_max=0.02)
RECIPES = {
    "base": BASE,
    "eps, linear": replace(BASE, parameterization="Epsilon", schedule=LINEAR),
    "eps": replace(BASE, parameterization="Epsilon"),
    "x_0": replace(BASE, parameterization="X0"),
    "linear": replace(BASE, schedule=LINEAR),
    "sigmoid": replace(BASE, schedule=make_object("Sigmoid")),
    "min-SNR": replace(BASE, objective=make_weighted("MinSNR", gamma=5.0)),
    "P2": replace(BASE, objective=make_weighted("P2")),
    "lr 0.001": replace(BASE, lr=0.001),
    "lr 0.004": replace(BASE, lr=0.004),
    "linear decay": replace(BASE, anneal="linear", warm_up=0.05, cycle_momentum=False),
    "warm-up 0.1": replace(BASE, warm_up=0.1),
    "beta_2 0.99": replace(BASE, betas=(0.9, 0.99)),
    "batch 32": replace(BASE, batch_size=32, lr=0.0014),
    "batch 128": replace(BASE, batch_size=128, lr=0.0028),
    "EMA 0.02": replace(BASE, average=0.02),
    "EMA 0.15": replace(BASE, average=0.15),
}
"""Compared at equal numbers of images; all have the same network and cost the same per image, but for the batch."""

NETWORKS: dict[str, dict[str, Any]] = {
    "24 (1 2 2)": {},
    "24 (1 2 2), no attention": {"attention": []},
    "24 (1 2 2), 2 blocks": {"blocks": 2},
    "32 (1 2 2)": {"width": 32},
    "32 (1 1 2)": {"width": 32, "multipliers": [1, 1, 2]},
    "32 (1 2 4)": {"width": 32, "multipliers": [1, 2, 4]},
    "16 (1 2 4)": {"width": 16, "multipliers": [1, 2, 4]},
    "16 (1 4 8)": {"width": 16, "multipliers": [1, 4, 8]},
    "48 (1 2 2)": {"width": 48},
}
"""Changes of the network of configs/mnist.yaml by width and multipliers, compared at equal time."""

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "DDIM": lambda n: diffusion.DDIM(n),
    "DDIM, trailing": lambda n: diffusion.DDIM(n, spacing=diffusion.trailing_spacing),
    "DPM-Solver++": lambda n: diffusion.DPMSolverPP(n),
    "DPM-Solver++, trailing": lambda n: diffusion.DPMSolverPP(n, spacing=diffusion.trailing_spacing),
    "DPM-Solver++ SDE": lambda n: diffusion.DPMSolverPP(n, eta=1),
    "Heun": lambda n: diffusion.Heun((n + 1) // 2),
}
NFES = (10, 20, 30, 50)

"""The candidates of paths_tables: what a network predicts on which path, and the networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_ddpm.diffusion import DDIM, Heun, MeanFlowSampler, Sampler, trailing_spacing, uniform_spacing
from lightning_ddpm.diffusion.samplers.spacing import Spacing

BATCH = 64
PREFIX = "lightning_ddpm.diffusion."


@dataclass(frozen=True)
class Prediction:
    """What a network predicts, on which path, and how it is sampled.

    Attributes:
        title: its name in the table.
        model: the classes of the model's parts.
        spacing: of the steps of its sampler.
        few_steps: whether it is made for few steps.
    """

    title: str
    model: Mapping[str, str]
    spacing: Spacing = uniform_spacing
    few_steps: bool = False

    def build(self, sigma_data: float) -> dict[str, Any]:
        """Return the model's parts for images of this standard deviation, as in a config."""
        parts: dict[str, Any] = {name: {"class_path": PREFIX + each} for name, each in self.model.items()}
        if self.model["parameterization"] == "EDM":
            parts["parameterization"]["init_args"] = {"sigma_data": sigma_data}
        if self.few_steps:
            parts["schedule"]["init_args"] = {"steps": 100}
        return parts


FLOW = {"schedule": "RectifiedFlow", "parameterization": "FlowVelocity", "timesteps": "LogitNormal"}
PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction("noise (Epsilon), Cosine", {"schedule": "Cosine", "parameterization": "Epsilon"}),
    "x_0": Prediction("image (X0), Cosine", {"schedule": "Cosine", "parameterization": "X0"}),
    "v": Prediction("velocity (Velocity), Cosine", {"schedule": "Cosine", "parameterization": "Velocity"}),
    "EDM": Prediction(
        "EDM, VarianceExploding, LogNormal",
        {"schedule": "VarianceExploding", "parameterization": "EDM", "timesteps": "LogNormal"},
    ),
    "flow": Prediction("FlowVelocity, RectifiedFlow, LogitNormal", FLOW, trailing_spacing),
    "MeanFlow": Prediction("MeanFlow", FLOW | {"objective": "MeanFlow"}, trailing_spacing, few_steps=True),
}


FEW = (1, 2, 4)
"""Numbers of steps, beside the 19 NFE of all."""


def list_solvers(prediction: Prediction) -> dict[int, Sampler]:
    """Return the samplers by NFE, the most accurate last: Heun's method, and Euler's few steps of flows."""
    few: dict[int, Sampler] = {}
    if prediction.few_steps:
        few = {n: MeanFlowSampler(n) for n in FEW}
    elif prediction.model["schedule"] == "RectifiedFlow":
        few = {n: DDIM(n, spacing=trailing_spacing) for n in FEW}
    return few | {19: Heun(10, spacing=prediction.spacing)}


NETWORKS = ("U-Net", "DiT")
"""The first one is trained for few steps, too."""


def list_predictions(network: str) -> list[str]:
    """Return the predictions that a network is trained for."""
    return [name for name, each in PREDICTIONS.items() if network == NETWORKS[0] or not each.few_steps]


@dataclass(frozen=True)
class Subject:
    """A dataset, and what is trained on it.

    Attributes:
        source: the class of its source.
        config: the config that a run starts from.
        steps: steps of training, of BATCH images each.
        sigma_data: standard deviation of the images' values in [-1, 1].
        unet, dit: arguments of the networks, of about as many parameters.
        features: config of the classifier whose features are compared; empty for the one that ships.
    """

    source: str
    config: str
    steps: int
    sigma_data: float
    unet: Mapping[str, Any] = field(default_factory=dict)
    dit: Mapping[str, Any] = field(default_factory=dict)
    features: str = ""

    def build_network(self, name: str, few_steps: bool) -> dict[str, Any]:
        """Return a network as in a config."""
        kind, arguments = ("UNet", self.unet) if name == "U-Net" else ("DiT", self.dit)
        more = {"intervals": True} if few_steps else {}
        return {"class_path": f"lightning_ddpm.networks.{kind}", "init_args": {**arguments, **more}}


UNET = {"width": 16, "multipliers": [1, 2], "attention": [4], "blocks": 1, "dropout": 0.0, "groups": 8}
DIT = {
    "patch": 2,
    "width": 48,
    "depth": 4,
    "heads": 4,
    "rotary": True,
    "qk_norm": True,
    "rms_norm": True,
    "swiglu": True,
}
SUBJECTS = {
    "digits": Subject("Digits", "digits", 300, 0.75, UNET, DIT),
    "mnist": Subject(
        *("MNIST", "mnist", 200, 0.62),
        unet=UNET | {"width": 8, "multipliers": [1, 2, 4], "attention": [7], "groups": 4},
        dit=DIT | {"patch": 4},
        features="mnist_features",
    ),
}

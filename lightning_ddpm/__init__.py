"""Denoising Diffusion Probabilistic Models on PyTorch Lightning: exact mathematics and reproducible results.

What a Python program needs first is imported from here::

    import lightning_ddpm

    model = lightning_ddpm.load("digits")  # a path, or the name of one that ships
    images = lightning_ddpm.generate(model, n=8, seed=0)  # (8, 1, 8, 8) uint8

A Lightning ``Trainer`` fits a :class:`DDPM` to an :class:`ImageDataModule`; ``DDPM.generate`` takes a
:class:`SampleRequest`. Schedules, objectives, samplers and guidance are in :mod:`lightning_ddpm.diffusion`, networks in
:mod:`lightning_ddpm.networks`. Nothing is imported before it is used: ``import lightning_ddpm`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_ddpm.data.datamodule import ImageDataModule
    from lightning_ddpm.models.checkpoint import load
    from lightning_ddpm.models.ddpm import DDPM
    from lightning_ddpm.models.generate import generate
    from lightning_ddpm.models.sample_request import SampleRequest

__version__ = "0.1.0"
__all__ = ["DDPM", "ImageDataModule", "SampleRequest", "generate", "load"]

_MODULES = {"DDPM": "models.ddpm", "ImageDataModule": "data.datamodule", "SampleRequest": "models.sample_request"}
_MODULES |= {"generate": "models.generate", "load": "models.checkpoint"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

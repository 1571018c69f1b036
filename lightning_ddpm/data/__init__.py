"""Image sources, datasets and the DataModule that feeds them to a model."""

from lightning_ddpm.data.datamodule import ImageDataModule
from lightning_ddpm.data.datasets import ImageDataset, MemoryDataset
from lightning_ddpm.data.image_folder import ImageFolder
from lightning_ddpm.data.sources import CIFAR10, LSUN, MNIST, CelebA, Digits, FashionMNIST, ImageSource

__all__ = [
    "CIFAR10",
    "LSUN",
    "MNIST",
    "CelebA",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "ImageSource",
    "MemoryDataset",
]

"""Image sources, datasets and the DataModule that feeds them to a model.

Each line exports one name that a config or another folder uses, and shows the file that documents it.
"""

from lightning_ddpm.data.array_sources import ArrayFile as ArrayFile
from lightning_ddpm.data.array_sources import ArrayFolder as ArrayFolder
from lightning_ddpm.data.augmentation import Augmentation as Augmentation
from lightning_ddpm.data.colour_augmentation import ColourAugmentation as ColourAugmentation
from lightning_ddpm.data.condition_table import Described as Described
from lightning_ddpm.data.conditioned import ConditionedDataset as ConditionedDataset
from lightning_ddpm.data.datamodule import ImageDataModule as ImageDataModule
from lightning_ddpm.data.datasets import FileDataset as FileDataset
from lightning_ddpm.data.datasets import ImageDataset as ImageDataset
from lightning_ddpm.data.datasets import MemoryDataset as MemoryDataset
from lightning_ddpm.data.datasets import build_path_dataset as build_path_dataset
from lightning_ddpm.data.geometric_augmentation import GeometricAugmentation as GeometricAugmentation
from lightning_ddpm.data.hugging_face import HuggingFace as HuggingFace
from lightning_ddpm.data.image_folder import ImageFolder as ImageFolder
from lightning_ddpm.data.padded import Padded as Padded
from lightning_ddpm.data.paired import Downscaled as Downscaled
from lightning_ddpm.data.paired import PairedFolders as PairedFolders
from lightning_ddpm.data.shards import Shards as Shards
from lightning_ddpm.data.sources import CIFAR10 as CIFAR10
from lightning_ddpm.data.sources import LSUN as LSUN
from lightning_ddpm.data.sources import MNIST as MNIST
from lightning_ddpm.data.sources import CelebA as CelebA
from lightning_ddpm.data.sources import Digits as Digits
from lightning_ddpm.data.sources import FashionMNIST as FashionMNIST
from lightning_ddpm.data.sources import ImageSource as ImageSource
from lightning_ddpm.data.sources import Split as Split
from lightning_ddpm.data.value_range import ValueRange as ValueRange
from lightning_ddpm.utils.condition import ConditionFormat as ConditionFormat

"""Networks in torch and einops: Ho et al.'s U-Net with variants, its encoder as a classifier, a small classifier.

Each line exports one name that a config or another folder uses, and shows the file that documents it.
"""

from lightning_ddpm.networks.augmentation_embedding import AugmentationEmbedding as AugmentationEmbedding
from lightning_ddpm.networks.augmentation_embedding import EarlyAugmentationEmbedding as EarlyAugmentationEmbedding
from lightning_ddpm.networks.blocks import ResidualBlock as ResidualBlock
from lightning_ddpm.networks.cnn import SmallCNN as SmallCNN
from lightning_ddpm.networks.condition_embeddings import ConcatenatedImage as ConcatenatedImage
from lightning_ddpm.networks.condition_embeddings import ConcatenatedMask as ConcatenatedMask
from lightning_ddpm.networks.condition_embeddings import LabelEmbedding as LabelEmbedding
from lightning_ddpm.networks.condition_embeddings import MultiLabelEmbedding as MultiLabelEmbedding
from lightning_ddpm.networks.condition_embeddings import VectorEmbedding as VectorEmbedding
from lightning_ddpm.networks.conditions import AddedCondition as AddedCondition
from lightning_ddpm.networks.conditions import ConcatenatedCondition as ConcatenatedCondition
from lightning_ddpm.networks.conditions import EarlyCondition as EarlyCondition
from lightning_ddpm.networks.dit import DiT as DiT
from lightning_ddpm.networks.encoder import UNetEncoder as UNetEncoder
from lightning_ddpm.networks.layers import SinusoidalEmbedding as SinusoidalEmbedding
from lightning_ddpm.networks.unet import UNet as UNet
from lightning_ddpm.networks.unet_layers import UNetLayers as UNetLayers

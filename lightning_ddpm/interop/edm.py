"""Read the weights of EDM's U-Nets (Karras et al. 2022, github.com/NVlabs/edm): DDPM++ and ADM with preconditioning.

Their own files are pickles of code, which nothing here reads; ``torch.save(network.state_dict(), FILE)`` in their
program writes one of tensors alone. The network's settings come from a config such as configs/cifar10_edm.yaml.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_ddpm.networks import EarlyAugmentationEmbedding, UNet
from lightning_ddpm.networks.blocks import ResampleBlock
from lightning_ddpm.utils.errors import UserError

PARTS = {"residual.norm1": "norm0", "residual.conv1": "conv0", "residual.step": "affine", "residual.norm2": "norm1"}
PARTS |= {"residual.conv2": "conv1", "residual.skip": "skip", "attention.norm": "norm2", "attention.out": "proj"}
QKV = ("query", "key", "value")
PARTS |= {f"attention.{each}": "qkv" for each in QKV}
FIRST = re.compile(r"enc\.(\d+)x\1_conv\.weight")
FILTER, AUGMENTATION, LABEL_BIAS = "resample_filter", "map_augment.weight", "map_label.bias"


def is_edm(weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the names of EDM's networks."""
    return bool({"map_layer0.weight", "model.map_layer0.weight"} & set(weights))


def has_augmentation(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the network of EDM's weights was given the parameters of augmentation in training."""
    return AUGMENTATION in _strip(weights)


def infer_arguments(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the arguments of the network that the weights alone determine: image channels, size, number of classes.

    Raises:
        UserError: they are not weights of EDM's DDPM++ or ADM.
    """
    weights = _strip(weights)
    found = [(each, FIRST.fullmatch(name)) for name, each in weights.items()]
    first = next(((each, int(name[1])) for each, name in found if name and each.ndim == 4), None)
    if first is None:
        raise UserError("the file has no first convolution, enc.NxN_conv.weight: it is not of EDM's networks")
    classes = weights.get("map_label.weight")
    return {"channels": first[0].shape[1], "size": first[1], "classes": 0 if classes is None else classes.shape[1]}


def map_layer_names(network: UNet) -> dict[str, str]:
    """Return EDM's name of each layer of the network, in which blocks have the resolution; query, key, value are one.

    Raises:
        UserError: the images are not square.
    """
    if not isinstance(network.size, int):
        raise UserError(f"EDM's networks are for square images, and the config's has size {network.size}")
    side, block, blocks = network.size, 0, dict[str, str]()
    for index, layer in enumerate(network.down):
        is_resampling = isinstance(layer, ResampleBlock)
        side, block = (side // 2, 0) if is_resampling else (side, block + 1)
        blocks[f"down.{index}"] = f"enc.{side}x{side}_" + ("down" if is_resampling else f"block{block - 1}")
    blocks |= {"middle1": f"dec.{side}x{side}_in0", "middle2": f"dec.{side}x{side}_in1"}
    block = 0
    for index, layer in enumerate(network.up):
        is_resampling = isinstance(layer, ResampleBlock)
        side, block = (2 * side, 0) if is_resampling else (side, block + 1)
        blocks[f"up.{index}"] = f"dec.{side}x{side}_" + ("up" if is_resampling else f"block{block - 1}")
    names = {"embed.1": "map_layer0", "embed.3": "map_layer1", "first": f"enc.{side}x{side}_conv"}
    ends = (f"dec.{side}x{side}_aux_norm", f"dec.{side}x{side}_aux_conv"), ("out_norm", "out_conv")
    names["norm"], names["last"] = ends[network.layers.scale_shift]
    names["embed_label.vectors"] = "map_label"
    for index, each in enumerate(network.conditions):
        if isinstance(each, EarlyAugmentationEmbedding):
            names[f"conditions.{index}.linear"] = AUGMENTATION.removesuffix(".weight")
    return names | {
        f"{ours}.{part}": f"{theirs}.{name}" for ours, theirs in blocks.items() for part, name in PARTS.items()
    }


def load_weights(network: UNet, weights: Mapping[str, Tensor]) -> None:
    """Load EDM's weights into the network; see :func:`convert_weights` for arguments and errors."""
    network.load_state_dict(convert_weights(network, weights))


def convert_weights(network: UNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's ``state_dict`` from EDM's weights.

    The weights of their augmentation are taken where the network has an ``EarlyAugmentationEmbedding``; its parameters
    are 0 in sampling. In their ADM no class is the zero vector, and so here.

    Args:
        network: as in the config of the model.
        weights: content of the file.

    Raises:
        UserError: the file is of NCSN++, which the network cannot be, or of classes at another layer; or a weight is
            missing, unknown or of another shape.
    """
    weights = _strip(weights)
    _check_kind(network, weights)
    names, unused = map_layer_names(network), {name for name in weights if not name.endswith(FILTER)}
    unused.discard(AUGMENTATION)
    state: dict[str, Tensor] = {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        theirs = f"{names[layer]}.{kind}"
        if theirs not in weights:
            raise UserError(f"the file has no {theirs}; it is of another network than the config's")
        unused.discard(theirs)
        value, part = weights[theirs].float(), layer.rpartition(".")[2]
        if part in QKV:  # the same channel of the three is in rows beside one another
            value = value[QKV.index(part) :: 3]
        if layer == "embed_label.vectors":
            unused.discard(LABEL_BIAS)
            value = _list_vectors(value, weights.get(LABEL_BIAS))
        elif own.ndim == 2:  # their attention's layers are convolutions of size 1
            value = value.flatten(1)
        if value.shape != own.shape:
            raise UserError(f"{theirs} has the shape {list(value.shape)} and the config's network {list(own.shape)}")
        state[name] = value.contiguous()
    if unused:
        raise UserError(f"the file has {min(unused)}, which the config's network has not; check the config")
    return state


def _strip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under their names in the network, without those of its preconditioning around it."""
    return {name.removeprefix("model."): each for name, each in weights.items()}


def _list_vectors(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the vector of each class, and as the last that of no class (n + 1, dim), from a linear layer of classes.

    DDPM++ has the bias, and multiplies one-hot classes by sqrt(n).
    """
    vectors = torch.cat([weight.T, weight.new_zeros(1, len(weight))])
    return vectors if bias is None else vectors * weight.shape[1] ** 0.5 + bias.float()


def _check_kind(network: UNet, weights: Mapping[str, Tensor]) -> None:
    """Check that the file is of a network that UNet can be.

    Raises:
        UserError: it is not.
    """
    filters = [each for name, each in weights.items() if name.endswith(FILTER)]
    if "map_noise.freqs" in weights or any(each.numel() != 4 for each in filters):
        raise UserError("the file is of NCSN++, whose noise features and filters UNet has not; DDPM++ and ADM are read")
    layers = network.layers
    if "map_label.weight" in weights and not layers.scale_shift and not layers.early_label:
        raise UserError(
            "the file is of a DDPM++ with classes, which it adds before the layers that embed the noise level, and the "
            "config's network behind them; set layers.early_label to true"
        )
    if layers.time_offset != 0:
        raise UserError(
            "EDM's networks embed ln(sigma) / 4 as it is, and the config's subtracts "
            f"{layers.time_offset}; set layers.time_offset to 0"
        )

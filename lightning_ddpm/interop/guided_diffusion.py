"""Read the weights of guided-diffusion's U-Nets (Dhariwal & Nichol 2021, github.com/openai/guided-diffusion).

Their files hold nothing but weights. The network's settings come from a config such as configs/adm_64.yaml.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import AttentionBlock, ResampleBlock, UNetBlock
from lightning_ddpm.utils.errors import UserError

RESIDUAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "step": "emb_layers.1", "norm2": "out_layers.0"}
RESIDUAL |= {"conv2": "out_layers.3", "skip": "skip_connection"}
QKV = ("query", "key", "value")


def map_layer_names(network: UNet) -> dict[str, str]:
    """Return guided-diffusion's name of each layer of the network; those of query, key and value are one."""
    names = {"embed.1": "time_embed.0", "embed.3": "time_embed.2", "first": "input_blocks.0.0", "norm": "out.0"}
    names |= {"last": "out.2", "embed_label.vectors": "label_emb"}
    for index, layer in enumerate(network.down):
        names |= _map_module(layer, f"down.{index}", f"input_blocks.{index + 1}", 0)
    names |= _map_module(network.middle1, "middle1", "middle_block", 0)
    names |= _map_module(network.middle2, "middle2", "middle_block", 2)
    block, place = -1, 0  # what doubles the size is the last part of the block before it
    for index, layer in enumerate(network.up):
        if isinstance(layer, UNetBlock):
            block, place = block + 1, 0
        names |= _map_module(layer, f"up.{index}", f"output_blocks.{block}", place)
        place = 2 if isinstance(layer, UNetBlock) and isinstance(layer.attention, AttentionBlock) else 1
    return names


def _map_module(module: nn.Module, ours: str, theirs: str, place: int) -> dict[str, str]:
    if not isinstance(module, UNetBlock | ResampleBlock):
        return {f"{ours}.conv": f"{theirs}.{place}.{'op' if ours.startswith('down') else 'conv'}"}
    names = {f"{ours}.residual.{mine}": f"{theirs}.{place}.{name}" for mine, name in RESIDUAL.items()}
    attention = {"norm": "norm", **dict.fromkeys(QKV, "qkv"), "out": "proj_out"}
    return names | {f"{ours}.attention.{mine}": f"{theirs}.{place + 1}.{name}" for mine, name in attention.items()}


def infer_arguments(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the arguments of the network that the weights alone determine: image channels and number of classes.

    Raises:
        UserError: they are not weights of guided-diffusion's UNetModel.
    """
    first, classes = weights.get("input_blocks.0.0.weight"), weights.get("label_emb.weight")
    if first is None or first.ndim != 4:
        raise UserError("the file has no input_blocks.0.0.weight: it is not of guided-diffusion's UNetModel")
    return {"channels": first.shape[1], "classes": 0 if classes is None else len(classes)}


def load_weights(network: UNet, weights: Mapping[str, Tensor], legacy_attention: bool) -> None:
    """Load guided-diffusion's weights into the network; see :func:`convert_weights` for arguments and errors."""
    network.load_state_dict(convert_weights(network, weights, legacy_attention))


def convert_weights(network: UNet, weights: Mapping[str, Tensor], legacy_attention: bool) -> dict[str, Tensor]:
    """Return the network's ``state_dict`` from guided-diffusion's weights.

    Their class-conditional models have no vector for "no class"; it becomes the mean of the classes' vectors, which was
    not trained: such a model can be guided by a classifier, and without one after fine-tuning.

    Args:
        network: as in the config of the model.
        weights: content of the file.
        legacy_attention: the rows of ``qkv`` are ordered by head first, as without ``--use_new_attention_order True``.

    Raises:
        UserError: a weight is missing, unknown or of another shape: the file is of another network.
    """
    names, unused = map_layer_names(network), set(weights)
    state: dict[str, Tensor] = {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        theirs = f"{names[layer]}.{kind}"
        if theirs not in weights:
            raise UserError(f"the file has no {theirs}; it is of another network than the config's")
        unused.discard(theirs)
        value, part = weights[theirs].float(), layer.rpartition(".")[2]
        if kind == "weight" and value.ndim == 3:  # their attention's layers are convolutions of size 1
            value = value.flatten(1)
        if part in QKV and len(value) == 3 * len(own):
            heads = network.get_submodule(layer.rpartition(".")[0]).heads if legacy_attention else 1
            grouped = rearrange(value, "(heads three c) ... -> three (heads c) ...", heads=heads, three=3)
            value = grouped[QKV.index(part)]
        if layer == "embed_label.vectors" and len(value) == len(own) - 1:
            value = torch.cat([value, value.mean(0, keepdim=True)])
        if value.shape != own.shape:
            raise UserError(f"{theirs} has the shape {list(value.shape)} and the config's network {list(own.shape)}")
        state[name] = value.contiguous()
    if unused:
        raise UserError(f"the file has {min(unused)}, which the config's network has not; check the config")
    return state

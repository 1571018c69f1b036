"""Conversion between UNet and diffusers' UNet2DModel: the same network with other settings and names of weights."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ddpm.interop.diffusers.settings import VERSION, Config, Settings
from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import AttentionBlock, UNetBlock
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import get_sides, is_size, shorten_size

UNET_SETTINGS: Settings = {
    "act_fn": ("silu", ("silu", "swish")),
    "add_attention": (True, (True,)),
    "center_input_sample": (False, (False,)),
    "class_embed_type": (None, (None,)),
    "downsample_padding": (1, (0,)),
    "downsample_type": ("conv", ("conv",)),
    "flip_sin_to_cos": (True, (False,)),
    "freq_shift": (0, (1,)),
    "mid_block_scale_factor": (1, (1,)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "norm_eps": (1e-5, (1e-6,)),
    "num_class_embeds": (None, (None,)),
    "resnet_time_scale_shift": ("default", ("default",)),
    "time_embedding_type": ("positional", ("positional",)),
    "upsample_type": ("conv", ("conv",)),
}
UNET_READ = {
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "down_block_types", "dropout", "in_channels"),
    *("layers_per_block", "norm_num_groups", "num_train_timesteps", "out_channels", "sample_size"),
    *("time_embedding_dim", "up_block_types"),
}
RENAMED_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention's layers in weights saved before diffusers 0.15, and since."""


def make_unet_config(network: nn.Module) -> dict[str, Any]:
    """Return the config.json of the UNet2DModel that computes the same function as ``network``.

    Raises:
        UserError: diffusers has no such network.
    """
    if type(network) is not UNet:
        raise UserError(
            "only lightning_ddpm.networks.UNet can be exported as diffusers' UNet2DModel, and the network is "
            f"{type(network).__module__}.{type(network).__qualname__}"
        )
    if network.classes:
        raise UserError(
            f"diffusers' DDPMPipeline has no class condition, and this network has {network.classes} classes; only "
            "models without classes can be exported"
        )
    if network.pad_to_multiple > 1:
        raise UserError(
            "diffusers' UNet2DModel does not pad its images, and this network does "
            f"(pad_to_multiple={network.pad_to_multiple}); only models that pad nothing can be exported"
        )
    groups = groupby(network.down, lambda layer: isinstance(layer, UNetBlock))
    levels: list[list[Any]] = [list(layers) for are_blocks, layers in groups if are_blocks]
    channels = [blocks[0].residual.conv1.out_channels for blocks in levels]
    if channels[0] != network.first.out_channels:
        raise UserError(
            "diffusers' UNet2DModel has as many channels in its first level as after its first convolution, and this "
            f"network has {channels[0]} and {network.first.out_channels}; only models whose first multiplier is 1 "
            "can be exported"
        )
    attends = [isinstance(blocks[0].attention, AttentionBlock) for blocks in levels]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        # diffusers 0.32 does not have the skipped setting; it always uses its only value
        **{name: values[0] for name, (_, values) in UNET_SETTINGS.items() if name != "mid_block_type"},
        "attention_head_dim": None,  # one head
        "block_out_channels": channels,
        "down_block_types": ["AttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "dropout": levels[0][0].residual.dropout.p,
        "in_channels": network.channels,
        "layers_per_block": len(levels[0]),
        "norm_num_groups": network.norm.num_groups,
        "out_channels": network.last.out_channels,
        "sample_size": network.size if isinstance(network.size, int) else list(network.size),
        "up_block_types": ["AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
    }


def parse_unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the :class:`UNet` that computes the same function as the UNet2DModel of ``config``.

    Raises:
        UserError: a setting is not supported; the message has its name, its value and the supported values.
    """
    settings = Config(config, "the network's config.json")
    settings.check_class(["UNet2DModel"])
    settings.check_settings(UNET_SETTINGS, UNET_READ)
    channels = settings.read_list("block_out_channels", int)
    down, up = (settings.read_list(name, str) for name in ("down_block_types", "up_block_types"))
    for name, blocks, plain in (("down_block_types", down, "DownBlock2D"), ("up_block_types", up, "UpBlock2D")):
        settings.check({*blocks} <= {plain, f"Attn{plain}"}, name, blocks, f"{plain} and Attn{plain}")
        settings.check(len(blocks) == len(channels), name, blocks, f"{len(channels)} blocks, as in block_out_channels")
    attends = [name.startswith("Attn") for name in down]
    mirrored = [name.startswith("Attn") for name in reversed(up)] == attends
    settings.check(mirrored, "up_block_types", up, "attention at the levels at which down_block_types has it")
    width = channels[0]
    multiples = width >= 1 and not any(each % width or each < width for each in channels)
    settings.check(multiples, "block_out_channels", channels, "multiples of the first")
    head = config.get("attention_head_dim", 8)
    attending = {channels[-1], *(each for each, attention in zip(channels, attends, strict=True) if attention)}
    one_head = head is None or attending == {head}
    settings.check(one_head, "attention_head_dim", head, f"one head: null, or all of {sorted(attending)} channels")
    groups = settings.read_positive_int("norm_num_groups", 32)
    norm_groups, embedding = config.get("attn_norm_num_groups"), config.get("time_embedding_dim")
    settings.check(norm_groups in (None, groups), "attn_norm_num_groups", norm_groups, "null or norm_num_groups")
    settings.check(embedding in (None, 4 * width), "time_embedding_dim", embedding, f"null or {4 * width}")
    size: Any = config.get("sample_size")
    settings.check(is_size(size), "sample_size", size, "an integer above 0, or a list of height and width")
    size = shorten_size(size)
    inputs, outputs = (settings.read_positive_int(name, 3) for name in ("in_channels", "out_channels"))
    twofold = f"{inputs}, or {2 * inputs} with a learned variance"
    settings.check(outputs in (inputs, 2 * inputs), "out_channels", outputs, twofold)
    return {
        "channels": inputs,
        "size": size,
        "width": width,
        "multipliers": [each // width for each in channels],
        "attention": [min(get_sides(size)) // 2**level for level, attention in enumerate(attends) if attention],
        "blocks": settings.read_positive_int("layers_per_block", 2),
        "dropout": settings.read_number("dropout", 0.0),
        "groups": groups,
        "outputs": outputs // inputs,
    }


def map_weight_names(network: UNet) -> dict[str, str]:
    """Return diffusers' name of each of the network's weights, by its name in the ``state_dict``."""
    names = {"first": "conv_in", "norm": "conv_norm_out", "last": "conv_out"}
    names |= {"embed.1": "time_embedding.linear_1", "embed.3": "time_embedding.linear_2"}
    for side, layers, sampler in (("down", network.down, "downsamplers"), ("up", network.up, "upsamplers")):
        level, block = 0, 0
        for index, layer in enumerate(layers):
            if isinstance(layer, UNetBlock):
                names |= _map_block_names(f"{side}.{index}", f"{side}_blocks.{level}", block)
                block += 1
            else:
                names[f"{side}.{index}.conv"] = f"{side}_blocks.{level}.{sampler}.0.conv"
                level, block = level + 1, 0
    names |= _map_block_names("middle1", "mid_block", 0) | _map_block_names("middle2", "mid_block", 1)
    keys = (key.rpartition(".") for key in network.state_dict())
    return {f"{layer}.{kind}": f"{names[layer]}.{kind}" for layer, _, kind in keys}


def _map_block_names(ours: str, theirs: str, block: int) -> dict[str, str]:
    residual = {each: each for each in ("norm1", "conv1", "norm2", "conv2")}
    residual |= {"step": "time_emb_proj", "skip": "conv_shortcut"}
    attention = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    return {f"{ours}.residual.{mine}": f"{theirs}.resnets.{block}.{name}" for mine, name in residual.items()} | {
        f"{ours}.attention.{mine}": f"{theirs}.attentions.{block}.{name}" for mine, name in attention.items()
    }


def export_weights(network: UNet) -> dict[str, Tensor]:
    """Return copies of the network's weights in float32 under diffusers' names; UserError if one is not finite."""
    state, names = network.state_dict(), map_weight_names(network)
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"the network's weights are not finite ({broken[0]}), and such a model cannot be exported")
    return {theirs: state[ours].to("cpu", torch.float32, copy=True).contiguous() for ours, theirs in names.items()}


def load_weights(network: UNet, weights: Mapping[str, Tensor]) -> None:
    """Load weights with diffusers' names, including attention's names before diffusers 0.15, into the network.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    given = {_update_name(name): value for name, value in weights.items()}
    state, names = network.state_dict(), map_weight_names(network)
    found = {name: list(weight.shape) for name, weight in given.items()}
    expected = {theirs: list(state[ours].shape) for ours, theirs in names.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            difference = f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such weight')}"
            raise UserError(f"the weights are not those of the network in config.json: {difference}")
    for ours, theirs in names.items():
        state[ours].copy_(given[theirs])


def _update_name(name: str) -> str:
    module, _, rest = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    return f"{parent}.{RENAMED_LAYERS[last]}.{rest}" if ".attentions." in name and last in RENAMED_LAYERS else name

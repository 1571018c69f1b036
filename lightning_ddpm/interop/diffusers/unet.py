"""Conversion between the settings of UNet and of diffusers' UNet2DModel, which is the same network."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from lightning_ddpm.interop.diffusers.settings import VERSION, Config, Settings
from lightning_ddpm.networks import UNet, UNetLayers
from lightning_ddpm.networks.blocks import AttentionBlock, UNetBlock
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import get_sides, is_size, shorten_size

UNET_SETTINGS: Settings = {
    "act_fn": ("silu", ("silu", "swish")),
    "add_attention": (True, (True,)),
    "center_input_sample": (False, (False,)),
    "class_embed_type": (None, (None,)),
    "mid_block_scale_factor": (1, (1,)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "time_embedding_type": ("positional", ("positional",)),
}
UNET_READ = {
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "down_block_types", "dropout", "in_channels"),
    *("layers_per_block", "norm_num_groups", "num_train_timesteps", "out_channels", "sample_size"),
    *("time_embedding_dim", "up_block_types", "downsample_padding", "downsample_type", "flip_sin_to_cos", "freq_shift"),
    *("norm_eps", "num_class_embeds", "resnet_time_scale_shift", "upsample_type"),
}
CLASSES_KEY = "_lightning_ddpm_classes"
"""Key of the number of classes in config.json: one more vector is for no class. diffusers skips it."""
RESAMPLING = {False: "conv", True: "resnet"}
NORMS = {False: "default", True: "scale_shift"}


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
    layers = network.layers
    unknown = {"projected_resampling": False, "skip_scale": 1.0, "sparse_attention": False, "early_label": False}
    for name, default in unknown.items():
        if getattr(layers, name) != default:
            raise UserError(
                f"diffusers' UNet2DModel has no {name}, and this network's layers have {getattr(layers, name)}; only "
                f"layers with {name}={default} can be exported"
            )
    if network.intervals:
        raise UserError(
            "diffusers' UNet2DModel is not given the length of a step, and this network is (intervals: true); only "
            "networks without it can be exported"
        )
    if network.pad_to_multiple > 1:
        raise UserError(
            "diffusers' UNet2DModel does not pad its images, and this network does "
            f"(pad_to_multiple={network.pad_to_multiple}); only models that pad nothing can be exported"
        )
    groups = groupby(network.down, lambda layer: isinstance(layer, UNetBlock))
    if len(network.conditions):
        raise UserError(
            "diffusers' UNet2DModel is conditioned on a class alone, and this network has "
            f"{', '.join(type(each).__name__ for each in network.conditions)}; it cannot be exported"
        )
    levels: list[list[Any]] = [list(layers) for are_blocks, layers in groups if are_blocks]
    channels = [blocks[0].residual.conv1.out_channels for blocks in levels]
    if channels[0] != network.first.out_channels:
        raise UserError(
            "diffusers' UNet2DModel has as many channels in its first level as after its first convolution, and this "
            f"network has {channels[0]} and {network.first.out_channels}; only models whose first multiplier is 1 "
            "can be exported"
        )
    attends = [isinstance(blocks[0].attention, AttentionBlock) for blocks in levels]
    down, up = _name_blocks(attends, layers.residual_resampling)
    condition = {"num_class_embeds": network.classes + 1, CLASSES_KEY: network.classes} if network.classes else {}
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        # diffusers 0.32 does not have the skipped setting; it always uses its only value
        **{name: values[0] for name, (_, values) in UNET_SETTINGS.items() if name != "mid_block_type"},
        "attention_head_dim": _find_head_width(network),
        # without it diffusers leaves out the norm of the middle's attention there
        "attn_norm_num_groups": network.norm.num_groups if layers.scale_shift else None,
        "block_out_channels": channels,
        "down_block_types": down,
        "downsample_padding": int(layers.symmetric_padding),
        "downsample_type": RESAMPLING[layers.residual_resampling],
        "dropout": levels[0][0].residual.dropout.p,
        "flip_sin_to_cos": layers.cosines_first,
        "freq_shift": int(not layers.cosines_first),
        "in_channels": network.channels,
        "layers_per_block": len(levels[0]),
        "norm_eps": layers.eps,
        "norm_num_groups": network.norm.num_groups,
        "num_class_embeds": None,
        "out_channels": network.last.out_channels,
        "resnet_time_scale_shift": NORMS[layers.scale_shift],
        "sample_size": network.size if isinstance(network.size, int) else list(network.size),
        "up_block_types": up,
        "upsample_type": RESAMPLING[layers.residual_resampling],
        **condition,
    }


def _name_blocks(attends: Sequence[bool], residual: bool) -> tuple[list[str], list[str]]:
    """Return diffusers' types of the levels' blocks: down, and up from the last level."""
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    return (
        ["AttnDownBlock2D" if each else down for each in attends],
        ["AttnUpBlock2D" if each else up for each in reversed(attends)],
    )


def _find_head_width(network: UNet) -> int | None:
    """Return the channels of each attention head, ``None`` for one head; UserError if they differ."""
    attention = [each for each in network.modules() if isinstance(each, AttentionBlock)]
    if all(each.heads == 1 for each in attention):
        return None
    widths = {each.out.in_features // each.heads for each in attention}
    if len(widths) > 1:
        raise UserError(
            f"diffusers' UNet2DModel has heads of one width, and this network's have {sorted(widths)}; only layers "
            "with head_width in place of heads can be exported"
        )
    return widths.pop()


def parse_unet_config(config: Mapping[str, Any], time_offset: int = 1) -> dict[str, Any]:
    """Return the arguments of the :class:`UNet` that computes the same function as the UNet2DModel of ``config``.

    Args:
        config: config.json of a UNet2DModel.
        time_offset: what the scheduler's time is below this package's t: diffusers' chains count it from 0.

    Raises:
        UserError: a setting is not supported; the message has its name, its value and the supported values.
    """
    settings = Config(config, "the network's config.json")
    settings.check_class(["UNet2DModel"])
    settings.check_settings(UNET_SETTINGS, UNET_READ)
    channels = settings.read_list("block_out_channels", int)
    down, up = (settings.read_list(name, str) for name in ("down_block_types", "up_block_types"))
    residual = _parse_resampling(settings, len(channels), down, up)
    attends = [name.startswith("Attn") for name in down]
    mirrored = [name.startswith("Attn") for name in reversed(up)] == attends
    settings.check(mirrored, "up_block_types", up, "attention at the levels at which down_block_types has it")
    width = channels[0]
    multiples = width >= 1 and not any(each % width or each < width for each in channels)
    settings.check(multiples, "block_out_channels", channels, "multiples of the first")
    head = config.get("attention_head_dim", 8)
    attending = {channels[-1], *(each for each, attention in zip(channels, attends, strict=True) if attention)}
    divides = head is None or (type(head) is int and head >= 1 and not any(each % head for each in attending))
    settings.check(divides, "attention_head_dim", head, f"null, or a divisor of all of {sorted(attending)} channels")
    groups = settings.read_positive_int("norm_num_groups", 32)
    layers = _parse_layers(settings, residual, time_offset)
    layers |= {"head_width": head} if head is not None and attending != {head} else {}
    norm_groups, embedding = config.get("attn_norm_num_groups"), config.get("time_embedding_dim")
    supported, choices = (groups,) if "scale_shift" in layers else (None, groups), "norm_num_groups"
    choices = choices if "scale_shift" in layers else f"null or {choices}"
    settings.check(norm_groups in supported, "attn_norm_num_groups", norm_groups, choices)
    settings.check(embedding in (None, 4 * width), "time_embedding_dim", embedding, f"null or {4 * width}")
    size: Any = config.get("sample_size")
    settings.check(is_size(size), "sample_size", size, "an integer above 0, or a list of height and width")
    size = shorten_size(size)
    inputs, outputs = (settings.read_positive_int(name, 3) for name in ("in_channels", "out_channels"))
    twofold = f"{inputs}, or {2 * inputs} with a learned variance"
    settings.check(outputs in (inputs, 2 * inputs), "out_channels", outputs, twofold)
    classes = _parse_classes(settings)
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
        **({"classes": classes} if classes else {}),
        **({"layers": {"class_path": "lightning_ddpm.networks.UNetLayers", "init_args": layers}} if layers else {}),
    }


def _parse_resampling(settings: Config, levels: int, down: Sequence[str], up: Sequence[str]) -> bool:
    """Return whether residual blocks halve and double height and width, in place of convolutions."""
    found = set[bool]()
    for side, blocks, resized in (("down", down, "Downsample"), ("up", up, "Upsample")):
        name, kind, residual = f"{side}_block_types", f"{side}sample_type", f"Resnet{resized}Block2D"
        plain = f"{side.capitalize()}Block2D"
        known = f"{plain}, Attn{plain}, {residual}"
        settings.check({*blocks} <= {*known.split(", ")}, name, blocks, known)
        settings.check(len(blocks) == levels, name, blocks, f"{levels} blocks, as in block_out_channels")
        given = settings.values.get(kind) or "conv"
        settings.check(given in RESAMPLING.values(), kind, given, "'conv' and 'resnet'")
        found |= {block == residual or (block.startswith("Attn") and given == "resnet") for block in blocks[:-1]}
        settings.check(len(found) < 2, name, blocks, "convolutions at all levels or residual blocks, down and up")
    return found == {True}


def _parse_layers(settings: Config, residual: bool, time_offset: int) -> dict[str, Any]:
    """Return the arguments of UNetLayers that differ from its defaults, but for attention."""
    norm = settings.values.get("resnet_time_scale_shift", "default")
    settings.check(norm in NORMS.values(), "resnet_time_scale_shift", norm, "'default' and 'scale_shift'")
    first, shift = settings.values.get("flip_sin_to_cos", True), settings.values.get("freq_shift", 0)
    fits = type(first) is bool and shift == int(not first)
    settings.check(fits, "freq_shift", shift, "0 where flip_sin_to_cos is true, 1 where it is false")
    padding = settings.values.get("downsample_padding", 1)
    settings.check(padding in (0, 1), "downsample_padding", padding, "0 and 1")
    eps = settings.read_number("norm_eps", 1e-5)
    settings.check(0 < eps < 1, "norm_eps", eps, "a number between 0 and 1")
    given = {"scale_shift": norm == "scale_shift", "residual_resampling": residual, "cosines_first": first, "eps": eps}
    given |= {"symmetric_padding": padding == 1 and not residual, "time_offset": time_offset}
    defaults = vars(UNetLayers())
    return {name: value for name, value in given.items() if value != defaults[name]}


def _parse_classes(settings: Config) -> int:
    """Return the number of classes, 0 for none."""
    if settings.values.get("num_class_embeds") is None:
        return 0
    vectors = settings.read_positive_int("num_class_embeds", 1)
    ours = settings.values.get(CLASSES_KEY)
    settings.check(ours in (None, vectors - 1), CLASSES_KEY, ours, f"{vectors - 1}, one below num_class_embeds")
    return vectors if ours is None else vectors - 1

"""A model as Hugging Face's diffusers keeps it: a UNet2DModel and a DDPMScheduler, each a JSON file, and named weights.

Pure functions between those and ours, without diffusers itself; its models/unets/unet_2d.py and
schedulers/scheduling_ddpm.py (github.com/huggingface/diffusers, 0.32 and newer) say what a setting means. Its steps run
0..T-1 where ours run 1..T.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ddpm.diffusion import (
    DDIM,
    Ancestral,
    Betas,
    Cosine,
    Data,
    Epsilon,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoiseSchedule,
    Prediction,
    Quadratic,
    ReverseVariance,
    Sampler,
    Sigmoid,
    Velocity,
)
from lightning_ddpm.errors import UserError
from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import AttentionBlock
from lightning_ddpm.networks.unet import Stage

VERSION = "0.32.0"
"""The oldest diffusers that a written folder is for."""

MODEL_INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
"""model_index.json: which pipeline the folder is, and of which classes its parts are."""

PREDICTIONS: dict[type[Prediction], str] = {Epsilon: "epsilon", Data: "sample", Velocity: "v_prediction"}
VARIANCES: dict[type[ReverseVariance], str] = {
    FixedSmall: "fixed_small",
    FixedLarge: "fixed_large",
    LearnedRange: "learned_range",
}

# Of each setting: what diffusers takes where a file does not say, and which values mean what is done here.
Settings = Mapping[str, tuple[object, tuple[object, ...]]]
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
SCHEDULER_SETTINGS: Settings = {
    "clip_sample": (True, (True,)),
    "clip_sample_range": (1.0, (1.0,)),
    "predict_epsilon": (True, (True,)),
    "rescale_betas_zero_snr": (False, (False,)),
    "set_alpha_to_one": (True, (True,)),
    "thresholding": (False, (False,)),
}
UNET_READ = {
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "down_block_types", "dropout", "in_channels"),
    *("layers_per_block", "norm_num_groups", "num_train_timesteps", "out_channels", "sample_size"),
    *("time_embedding_dim", "up_block_types"),
}
# Those of the last two lines say which steps fewer than T would visit, and how thresholding works: not looked at here.
SCHEDULER_READ = {
    *("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type", "trained_betas"),
    "variance_type",
    *("timestep_spacing", "steps_offset"),
    *("dynamic_thresholding_ratio", "sample_max_value", "tensor_format"),
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention's layers in weights saved before diffusers 0.15, and since."""


# ---- the network -------------------------------------------------------------------------------------------------


def unet_config(network: nn.Module) -> dict[str, Any]:
    """config.json of the UNet2DModel that computes what ``network`` does.

    Raises:
        UserError: diffusers has no such network.
    """
    if type(network) is not UNet:
        raise UserError(
            f"diffusers' UNet2DModel can express lightning_ddpm.networks.UNet only, and the network is "
            f"{type(network).__module__}.{type(network).__qualname__}"
        )
    levels = _levels(network.down)
    channels = [stages[0].residual.conv1.out_channels for stages in levels]
    if channels[0] != network.first.out_channels:
        raise UserError(
            "diffusers' UNet2DModel has as many channels in its first level as behind its first convolution, and this "
            f"network has {channels[0]} and {network.first.out_channels}; only models whose first multiplier is 1 "
            "can be exported"
        )
    attends = [isinstance(stages[0].attention, AttentionBlock) for stages in levels]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        # diffusers 0.32 does not know the one left out, and has its only value
        **{name: values[0] for name, (_, values) in UNET_SETTINGS.items() if name != "mid_block_type"},
        "attention_head_dim": None,  # one head
        "block_out_channels": channels,
        "down_block_types": ["AttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "dropout": levels[0][0].residual.dropout.p,
        "in_channels": network.channels,
        "layers_per_block": len(levels[0]),
        "norm_num_groups": network.norm.num_groups,
        "out_channels": network.last.out_channels,
        "sample_size": network.size,
        "up_block_types": ["AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
    }


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the :class:`UNet` that computes what the UNet2DModel of ``config`` does.

    Raises:
        UserError: naming the setting that UNet does not have, its value, and what is supported.
    """
    where = "the network's config.json"
    _check_class(config, ("UNet2DModel",), where)
    _check(config, UNET_SETTINGS, UNET_READ, where)
    channels, down, up = (
        _list(config, name, kind, where)
        for name, kind in (("block_out_channels", int), ("down_block_types", str), ("up_block_types", str))
    )
    if not len(channels) == len(down) == len(up):
        raise UserError(
            f"{where} has {len(channels)} block_out_channels, {len(down)} down_block_types and {len(up)} "
            "up_block_types; it needs as many of each"
        )
    _check_blocks(down, "DownBlock2D", "down_block_types", where)
    _check_blocks(up, "UpBlock2D", "up_block_types", where)
    attends = [name.startswith("Attn") for name in down]
    if [name.startswith("Attn") for name in reversed(up)] != attends:
        raise _unsupported("up_block_types", up, "attention at the levels at which down_block_types has it", where)
    width = channels[0]
    if width < 1 or any(each % width or each < width for each in channels):
        raise _unsupported("block_out_channels", channels, "multiples of the first", where)
    head = config.get("attention_head_dim", 8)
    attending = {channels[-1], *(each for each, attention in zip(channels, attends, strict=True) if attention)}
    if head is not None and attending != {head}:
        raise _unsupported("attention_head_dim", head, f"one head: null, or all of {sorted(attending)} channels", where)
    groups = _whole(config, "norm_num_groups", 32, where)
    if config.get("attn_norm_num_groups") not in (None, groups):
        raise _unsupported("attn_norm_num_groups", config["attn_norm_num_groups"], "null or norm_num_groups", where)
    if config.get("time_embedding_dim") not in (None, 4 * width):
        raise _unsupported("time_embedding_dim", config["time_embedding_dim"], f"null or {4 * width}", where)
    size = config.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int:
        raise _unsupported("sample_size", size, "a whole number, the height and width of square images", where)
    inputs, outputs = _whole(config, "in_channels", 3, where), _whole(config, "out_channels", 3, where)
    if outputs not in (inputs, 2 * inputs):
        raise _unsupported("out_channels", outputs, f"{inputs}, or {2 * inputs} with a learned variance", where)
    return {
        "channels": inputs,
        "size": size,
        "width": width,
        "multipliers": [each // width for each in channels],
        "attention": [size // 2**level for level, attention in enumerate(attends) if attention],
        "blocks": _whole(config, "layers_per_block", 2, where),
        "dropout": _number(config, "dropout", 0.0, where),
        "groups": groups,
        "outputs": outputs // inputs,
    }


def unet_names(network: UNet) -> dict[str, str]:
    """What diffusers calls each of the network's weights: name in our ``state_dict`` -> name in its."""
    names = {"first": "conv_in", "norm": "conv_norm_out", "last": "conv_out"}
    names |= {"embed.1": "time_embedding.linear_1", "embed.3": "time_embedding.linear_2"}
    for side, layers, sampler in (("down", network.down, "downsamplers"), ("up", network.up, "upsamplers")):
        level, block = 0, 0
        for index, layer in enumerate(layers):
            if isinstance(layer, Stage):
                names |= _stage_names(f"{side}.{index}", f"{side}_blocks.{level}", block)
                block += 1
            else:
                names[f"{side}.{index}.conv"] = f"{side}_blocks.{level}.{sampler}.0.conv"
                level, block = level + 1, 0
    names |= _stage_names("middle1", "mid_block", 0) | _stage_names("middle2", "mid_block", 1)
    keys = (key.rpartition(".") for key in network.state_dict())
    return {f"{layer}.{kind}": f"{names[layer]}.{kind}" for layer, _, kind in keys}


def _stage_names(ours: str, theirs: str, block: int) -> dict[str, str]:
    residual = {each: each for each in ("norm1", "conv1", "norm2", "conv2")}
    residual |= {"step": "time_emb_proj", "skip": "conv_shortcut"}
    attention = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    return {f"{ours}.residual.{mine}": f"{theirs}.resnets.{block}.{name}" for mine, name in residual.items()} | {
        f"{ours}.attention.{mine}": f"{theirs}.attentions.{block}.{name}" for mine, name in attention.items()
    }


def unet_weights(network: UNet) -> dict[str, Tensor]:
    """The network's weights in float32 by diffusers' names, each in memory of its own."""
    state = network.state_dict()
    return {
        theirs: state[ours].detach().to("cpu", torch.float32, copy=True).contiguous()
        for ours, theirs in unet_names(network).items()
    }


def load_weights(network: UNet, weights: Mapping[str, Tensor]) -> None:
    """Fill the network with weights of diffusers' names, those of attention before diffusers 0.15 included.

    Raises:
        UserError: a weight too few, too many, or of another shape.
    """
    given = {_new_name(name): value for name, value in weights.items()}
    state, names = network.state_dict(), unet_names(network)
    if odd := sorted(given.keys() ^ set(names.values())):
        what = "lack" if odd[0] not in given else "have"
        raise UserError(
            f"the weights are not those of the network in config.json: they {what} {odd[0]} ({len(odd)} differ in all)"
        )
    for ours, theirs in names.items():
        if given[theirs].shape != state[ours].shape:
            raise UserError(
                f"the weights are not those of the network in config.json: {theirs} is {list(given[theirs].shape)}, "
                f"and {list(state[ours].shape)} is wanted"
            )
        state[ours].copy_(given[theirs])


def _new_name(name: str) -> str:
    module, _, rest = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    return f"{parent}.{OLD_NAMES[last]}.{rest}" if ".attentions." in name and last in OLD_NAMES else name


def _levels(layers: Iterable[nn.Module]) -> list[list[Stage]]:
    """The stages on the way down, level by level."""
    levels: list[list[Stage]] = [[]]
    for layer in layers:
        if isinstance(layer, Stage):
            levels[-1].append(layer)
        else:
            levels.append([])
    return levels


# ---- the chain ---------------------------------------------------------------------------------------------------


def scheduler_config(schedule: NoiseSchedule, prediction: Prediction, variance: ReverseVariance) -> dict[str, Any]:
    """scheduler_config.json of the DDPMScheduler that draws as ``Ancestral(variance)`` does over all T steps.

    Raises:
        UserError: diffusers does not have this prediction or this variance.
    """
    for what, each, known in (("predictions", prediction, PREDICTIONS), ("variances", variance, VARIANCES)):
        if type(each) not in known:
            raise UserError(
                f"of {what}, diffusers' DDPMScheduler can express "
                f"{', '.join(kind.__name__ for kind in known)}, and the checkpoint has {type(each).__name__}"
            )
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.T,
        **_beta_config(schedule),
        "variance_type": VARIANCES[type(variance)],
        "prediction_type": PREDICTIONS[type(prediction)],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "linspace",  # of fewer than T: the nearest to spacing.uniform
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def _beta_config(schedule: NoiseSchedule) -> dict[str, Any]:
    if isinstance(schedule, Linear | Quadratic) and type(schedule) in (Linear, Quadratic):
        name = "linear" if isinstance(schedule, Linear) else "scaled_linear"
        ends = {"beta_start": schedule.beta_min, "beta_end": schedule.beta_max}
        return {"beta_schedule": name, **ends, "trained_betas": None}
    if type(schedule) is Cosine and schedule.offset == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    # ``sigmoid`` is known to diffusers' DDPMScheduler and not to its DDIMScheduler; a list is known to all.
    return {"beta_schedule": "linear", "trained_betas": schedule.beta[1:].tolist()}


def exported_variance(sampler: Sampler, outputs: int) -> ReverseVariance:
    """The variance that stands for ``sampler`` in a DDPMScheduler; for DDIM, which has none there, beta~.

    Args:
        sampler: the checkpoint's.
        outputs: images' worth of channels that the network answers with; with 2, DDPMScheduler must learn its variance.

    Raises:
        UserError: a sampler of another class.
    """
    if type(sampler) is DDIM:
        return FixedSmall() if outputs == 1 else LearnedRange()
    if type(sampler) is Ancestral:
        return sampler.variance
    raise UserError(
        f"diffusers' DDPMScheduler can express Ancestral sampling, and the checkpoint's sampler is {sampler}; give "
        "--variance fixed_small (or fixed_large, or learned_range) to export Ancestral in its place"
    )


def check_outputs(variance: str, outputs: int) -> None:
    """Refuse a network with channels for a variance that its scheduler does not read, and the reverse.

    Raises:
        UserError: ``variance_type`` and the number of output channels do not go together.
    """
    if (variance == "learned_range") != (outputs == 2):
        raise UserError(
            f"the network answers with {outputs} times the images' channels and the variance is {variance}; diffusers "
            "reads 2 times with learned_range and 1 with any other"
        )


def scheduler_arguments(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """Which ``schedule``, ``sampler`` and ``prediction`` a scheduler's configuration means: class_path and init_args.

    How many steps a chain has, and a DDIM's eta, are no part of diffusers' configuration: the sampler visits all T.

    Args:
        config: scheduler_config.json of a DDPMScheduler or a DDIMScheduler.
        outputs: images' worth of channels that the network answers with.

    Raises:
        UserError: naming the setting that is not supported here, its value, and what is.
    """
    where = "scheduler_config.json"
    _check_class(config, ("DDPMScheduler", "DDIMScheduler"), where)
    _check(config, SCHEDULER_SETTINGS, SCHEDULER_READ, where)
    predictions = {name: kind for kind, name in PREDICTIONS.items()}
    prediction = _one_of(config, "prediction_type", "epsilon", predictions, where)
    if config["_class_name"] == "DDIMScheduler":
        sampler = _object(DDIM, steps=None)
        if outputs == 2:
            raise UserError(f"{where} is a DDIMScheduler's, which cannot read the network's learned variance")
    else:
        kinds = {name: kind for kind, name in VARIANCES.items()} | {"fixed_small_log": FixedSmall}
        variance = _one_of(config, "variance_type", "fixed_small", kinds, where)
        check_outputs(VARIANCES[variance], outputs)
        sampler = _object(Ancestral, variance=_object(variance), steps=None)
    return {"schedule": _schedule(config, where), "sampler": sampler, "prediction": _object(prediction)}


def _schedule(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    steps = _whole(config, "num_train_timesteps", 1000, where)
    if config.get("trained_betas") is not None:
        betas = [float(each) for each in _list(config, "trained_betas", (int, float), where)]
        if len(betas) != steps:
            raise _unsupported("num_train_timesteps", steps, f"{len(betas)}, the number of trained_betas", where)
        return _object(Betas, betas=betas)
    known = {"linear": Linear, "scaled_linear": Quadratic, "sigmoid": Sigmoid, "squaredcos_cap_v2": Cosine}
    kind = _one_of(config, "beta_schedule", "linear", known, where)
    if kind is Cosine:
        return _object(Cosine, steps=steps)
    ends = {"beta_min": ("beta_start", 1e-4), "beta_max": ("beta_end", 0.02)}
    return _object(kind, steps=steps, **{ours: _number(config, *each, where) for ours, each in ends.items()})


def _object(kind: type, **arguments: Any) -> dict[str, Any]:
    """How a checkpoint says that there is to be a ``kind(**arguments)``."""
    class_path = f"lightning_ddpm.diffusion.{kind.__name__}"
    return {"class_path": class_path, "init_args": arguments} if arguments else {"class_path": class_path}


# ---- reading settings --------------------------------------------------------------------------------------------


def _unsupported(name: str, value: object, supported: str, where: str) -> UserError:
    return UserError(f"{where} has {name}={value!r}, which cannot be expressed here; supported: {supported}")


def _check_class(config: Mapping[str, Any], supported: Sequence[str], where: str) -> None:
    if config.get("_class_name") not in supported:
        raise _unsupported("_class_name", config.get("_class_name"), " and ".join(supported), where)


def _check(config: Mapping[str, Any], settings: Settings, read: set[str], where: str) -> None:
    """Refuse what the settings do not support, and settings that are not known and not off."""
    for name, (default, supported) in settings.items():
        if config.get(name, default) not in supported:
            raise _unsupported(name, config.get(name, default), " and ".join(map(repr, supported)), where)
    for name in sorted(config.keys() - settings.keys() - read):
        if not name.startswith("_") and config[name] not in (None, False):
            raise _unsupported(name, config[name], "null", where)


def _check_blocks(given: Sequence[str], plain: str, name: str, where: str) -> None:
    if not set(given) <= {plain, f"Attn{plain}"}:
        raise _unsupported(name, list(given), f"{plain} and Attn{plain}", where)


def _one_of(config: Mapping[str, Any], name: str, default: str, known: Mapping[str, Any], where: str) -> Any:
    value = config.get(name, default)
    if value not in known:
        raise _unsupported(name, value, ", ".join(known), where)
    return known[value]


def _list(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> list[Any]:
    value = config.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, kind) for each in value):
        raise _unsupported(name, value, "a list", where)
    return value


def _whole(config: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise _unsupported(name, value, "a whole number of at least 1", where)
    return value


def _number(config: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = config.get(name, default)
    if type(value) not in (int, float):
        raise _unsupported(name, value, "a number", where)
    return float(value)

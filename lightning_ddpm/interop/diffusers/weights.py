"""Conversion between the weights of UNet and of diffusers' UNet2DModel: their names differ."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import ResampleBlock, UNetBlock
from lightning_ddpm.networks.layers import SinusoidalEmbedding
from lightning_ddpm.utils.errors import UserError

RENAMED_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention's layers in weights saved before diffusers 0.15, and since."""
RESIDUAL = {each: each for each in ("norm1", "conv1", "norm2", "conv2")}
RESIDUAL |= {"step": "time_emb_proj", "skip": "conv_shortcut"}
"""diffusers' names of the layers of a residual block."""


def map_weight_names(network: UNet) -> dict[str, str]:
    """Return diffusers' name of each of the network's weights, by its name in the ``state_dict``."""
    names = {"first": "conv_in", "norm": "conv_norm_out", "last": "conv_out"}
    names |= {"embed.1": "time_embedding.linear_1", "embed.3": "time_embedding.linear_2"}
    names |= {"embed_label.vectors": "class_embedding"}
    for side, layers, sampler in (("down", network.down, "downsamplers"), ("up", network.up, "upsamplers")):
        level, block = 0, 0
        for index, layer in enumerate(layers):
            if isinstance(layer, UNetBlock):
                names |= _map_block_names(f"{side}.{index}", f"{side}_blocks.{level}", block)
                block += 1
                continue
            theirs = f"{side}_blocks.{level}.{sampler}.0"
            if isinstance(layer, ResampleBlock):
                names |= {f"{side}.{index}.residual.{mine}": f"{theirs}.{name}" for mine, name in RESIDUAL.items()}
            else:
                names[f"{side}.{index}.conv"] = f"{theirs}.conv"
            level, block = level + 1, 0
    names |= _map_block_names("middle1", "mid_block", 0) | _map_block_names("middle2", "mid_block", 1)
    keys = (key.rpartition(".") for key in network.state_dict())
    return {f"{layer}.{kind}": f"{names[layer]}.{kind}" for layer, _, kind in keys}


def _map_block_names(ours: str, theirs: str, block: int) -> dict[str, str]:
    attention = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    return {f"{ours}.residual.{mine}": f"{theirs}.resnets.{block}.{name}" for mine, name in RESIDUAL.items()} | {
        f"{ours}.attention.{mine}": f"{theirs}.attentions.{block}.{name}" for mine, name in attention.items()
    }


def export_weights(network: UNet, time_offset: int = 1) -> dict[str, Tensor]:
    """Return copies of the network's weights in float32 under diffusers' names; UserError if one is not finite.

    ``time_offset`` is what the scheduler's time is below this package's t. Where the network subtracts another number
    from t before its embedding, the layer behind the embedding makes up for it.
    """
    state, names = network.state_dict(), map_weight_names(network)
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"the network's weights are not finite ({broken[0]}), and such a model cannot be exported")
    if network.layers.time_offset != time_offset:
        state["embed.1.weight"] = _delay(network, network.layers.time_offset - time_offset)
    return {theirs: state[ours].to("cpu", torch.float32, copy=True).contiguous() for ours, theirs in names.items()}


def _delay(network: UNet, by: int) -> Tensor:
    """Return the weight of the layer behind the features of t so that, given those of t, it computes that of t - by.

    Sine and cosine of a difference are linear in those of t.
    """
    features, linear = network.embed[0], network.embed[1]
    assert isinstance(features, SinusoidalEmbedding)
    assert isinstance(linear, nn.Linear)
    halves = linear.weight.detach().double().chunk(2, dim=1)
    of_sines, of_cosines = reversed(halves) if features.cosines_first else halves
    angle = by * features.frequency.double()
    sines = of_sines * angle.cos() + of_cosines * angle.sin()
    cosines = of_cosines * angle.cos() - of_sines * angle.sin()
    return torch.cat([cosines, sines] if features.cosines_first else [sines, cosines], dim=1)


def load_weights(network: UNet, weights: Mapping[str, Tensor]) -> None:
    """Load weights with diffusers' names, including attention's names before diffusers 0.15, into the network.

    Models of other programs have no vector for "no class"; it becomes the mean of the classes', which was not trained.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    given = {_update_name(name): value for name, value in weights.items()}
    vectors = given.get("class_embedding.weight")
    if vectors is not None and vectors.ndim == 2 and len(vectors) == network.classes > 0:
        given["class_embedding.weight"] = torch.cat([vectors, vectors.mean(0, keepdim=True)])
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

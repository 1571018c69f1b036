"""ADM's and DDPM++'s U-Nets: published sizes, the outputs of the authors' code, initialisation, and errors."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from helpers.published_weights import DDPMPP, X_T, T, fill
from torch import Tensor

from lightning_ddpm.interop.diffusers.unet import make_unet_config
from lightning_ddpm.interop.edm import map_layer_names
from lightning_ddpm.networks import EarlyAugmentationEmbedding, UNet, UNetLayers
from lightning_ddpm.networks.blocks import AttentionBlock, UNetBlock
from lightning_ddpm.utils.errors import UserError

ADM: dict[str, Any] = {"scale_shift": True, "head_width": 64, "residual_resampling": True, "zero_outputs": True}
ADM |= {"cosines_first": True, "eps": 1e-5}
SONG: dict[str, Any] = {"residual_resampling": True, "projected_resampling": True, "skip_scale": 0.5**0.5}
SONG |= {"sparse_attention": True}


def count(*arguments: Any, **more: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(*arguments, **more).parameters())


@pytest.mark.parametrize(("classes", "published", "null_class"), [(0, 295_136_454, 0), (1000, 295_904_454, 4 * 192)])
def test_adm_64_has_as_many_parameters_as_guided_diffusions(classes: int, published: int, null_class: int) -> None:
    """Those of their code for the flags of 64x64_diffusion.pt, 296 million; theirs has no vector for "no class"."""
    shape = (3, 64, 192, (1, 2, 3, 4), (32, 16, 8), 3, 0.1)
    assert count(*shape, outputs=2, classes=classes, layers=UNetLayers(**ADM)) == published + null_class
    with torch.device("meta"):  # diffusers builds it independently
        network = UNet(*shape, outputs=2, classes=classes, layers=UNetLayers(**ADM))
        twin = UNet2DModel.from_config(make_unet_config(network))
    assert sum(parameter.numel() for parameter in twin.parameters()) == published + null_class


def test_ddpmpp_has_the_55_7_million_parameters_of_karras_et_al() -> None:
    """NVlabs/edm's SongUNet for CIFAR-10 has 55,733,891, of which 9 x 128 embed the augmentation."""
    conditions = [EarlyAugmentationEmbedding(9)]
    shape = (3, 32, 128, (2, 2, 2), (16,), 4, 0.13)
    assert count(*shape, layers=UNetLayers(**SONG), conditions=conditions) == 55_733_891
    assert count(*shape, layers=UNetLayers(**SONG)) == 55_733_891 - 9 * 128


def build_song(**layers: Any) -> UNet:
    """Return DDPM++ at 16x16 with the weights of the formula; its qkv rows alternate."""
    network = UNet(3, 16, 128, (1, 1), (8,), 1, 0.0, layers=UNetLayers(**SONG | layers)).eval()
    names, state = map_layer_names(network), {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        theirs, shape = f"{names[layer]}.{kind}", tuple(own.shape)
        if names[layer].endswith("qkv"):
            whole = fill(theirs, (3 * shape[0], *([shape[1], 1, 1] if kind == "weight" else [])))
            state[name] = whole[["query", "key", "value"].index(layer.rpartition(".")[2]) :: 3].view(shape)
        else:
            convolution = (1, 1) if names[layer].endswith("proj") and kind == "weight" else ()
            state[name] = fill(theirs, (*shape, *convolution)).view(shape)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def compute(network: UNet) -> Tensor:
    return network(X_T, T).flatten()[::97]


def test_ddpmpp_computes_what_karras_et_als_code_does() -> None:
    torch.testing.assert_close(compute(build_song()), torch.tensor(DDPMPP), rtol=0, atol=3e-5)


@pytest.mark.parametrize("change", [{"skip_scale": 1.0}, {"cosines_first": True}, {"heads": 2}, {"eps": 0.01}])
def test_every_setting_matters(change: dict[str, Any]) -> None:
    assert (compute(build_song(**change)) - torch.tensor(DDPMPP)).abs().max() > 1e-3


def test_zero_outputs_are_zero_at_the_start_and_blocks_the_identity() -> None:
    layers = UNetLayers(**ADM | {"head_width": 16})
    network = UNet(3, 16, 32, (1, 2), (8,), 1, layers=layers)
    x, embedding = torch.randn(2, 32, 16, 16), torch.randn(2, 128)
    assert torch.equal(UNetBlock(32, 32, 128, 32, 0.0, True, layers=layers)(x, embedding), x)
    assert (network(torch.randn(2, 3, 16, 16), T) == 0).all()
    assert network.first.bias is not None
    assert network.first.bias.abs().max() > 0.05  # as torch initialises it: U(-a, a) with a = 1 / sqrt(27)


def test_heads_by_number_and_by_width_are_the_same_where_they_agree() -> None:
    torch.manual_seed(0)
    one = AttentionBlock(64, 32, UNetLayers(heads=4))
    other = AttentionBlock(64, 32, UNetLayers(head_width=16))
    for each in one.parameters():
        each.data = torch.randn_like(each)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(one(x), other(x))
    heads = one.heads
    tokens = one.norm(x).flatten(2).mT
    query, key, value = (layer(tokens).unflatten(2, (heads, 16)) for layer in (one.query, one.key, one.value))
    weights = (torch.einsum("bqhc,bkhc->bhqk", query, key) / 4).softmax(-1)
    mixed = torch.einsum("bhqk,bkhc->bqhc", weights, value).flatten(2)
    torch.testing.assert_close(one(x), x + one.out(mixed).mT.view_as(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 0}, "heads and head_width must be at least 1, got 0 and None"),
        ({"heads": 2, "head_width": 8}, "give the number of heads or their width, got heads=2 and head_width=8"),
        ({"eps": 0.0}, r"eps must lie in \(0, 1\) and skip_scale in \(0, 1\], got 0.0 and 1.0"),
        ({"projected_resampling": True}, "projected_resampling is part of residual_resampling; set both or neither"),
        ({"residual_resampling": True, "symmetric_padding": True}, "residual_resampling has no convolution to pad"),
        ({"head_width": 24}, "attention of 64 channels cannot be divided with head_width=24; give a divisor"),
        ({"heads": 5}, "attention of 64 channels cannot be divided with heads=5; give a divisor"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(3, 16, 32, (1, 2), (8,), 1, layers=UNetLayers(**settings))

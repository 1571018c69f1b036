"""Ho et al.'s U-Net: its output for the weights of diffusers, number of parameters, initialisation and errors."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from lightning_ddpm.interop.diffusers.weights import export_weights
from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import (
    AttentionBlock,
    DownsampleConv,
    ResidualBlock,
    UpsampleConv,
)
from lightning_ddpm.networks.layers import SinusoidalEmbedding
from lightning_ddpm.utils.errors import UserError

HO_256 = {"channels": 3, "size": 256, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (16,), "dropout": 0.0}


# ---- comparison with diffusers ---------------------------------------------------------------------------------------


def diffusers_twin(net: UNet, multipliers: tuple[int, ...], attention: tuple[int, ...], dropout: float) -> UNet2DModel:
    """Build a UNet2DModel with the settings of google/ddpm-cifar10-32 and the sizes and weights of ``net``."""
    width = net.first.out_channels
    attends = [net.size // 2**level in attention for level in range(len(multipliers))]
    twin = UNet2DModel(
        sample_size=net.size,
        in_channels=net.channels,
        out_channels=net.channels,
        center_input_sample=False,
        time_embedding_type="positional",
        freq_shift=1,
        flip_sin_to_cos=False,
        block_out_channels=tuple(width * multiplier for multiplier in multipliers),
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        layers_per_block=2,
        mid_block_scale_factor=1,
        downsample_padding=0,
        act_fn="silu",
        attention_head_dim=None,
        add_attention=True,
        norm_num_groups=32,
        norm_eps=1e-6,
        dropout=dropout,
    )
    twin.load_state_dict(export_weights(net))  # raises if a weight is missing or unknown
    return twin


def randomise(net: nn.Module, seed: int = 0) -> None:
    """Set weights that all affect the output; as initialised, half of the blocks are scaled by 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if isinstance(module, nn.GroupNorm):
                    parameter.copy_((1 if name == "weight" else 0) + 0.2 * noise)
                else:
                    parameter.copy_(noise / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2 * noise)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cifar10": {"channels": 3, "size": 32, "width": 128, "multipliers": (1, 2, 2, 2), "attention": (16,)},
    "six_levels": {"channels": 3, "size": 64, "width": 32, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (4,)},
    "grayscale_digits": {"channels": 1, "size": 8, "width": 32, "multipliers": (1, 2), "attention": (4, 8)},
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def twins(request: pytest.FixtureRequest) -> tuple[UNet, UNet2DModel]:
    settings = CONFIGURATIONS[request.param]
    net = UNet(**settings, dropout=0.3)
    randomise(net)
    return net, diffusers_twin(net, settings["multipliers"], settings["attention"], dropout=0.3)


def share_dropout_masks(net: nn.Module, seed: int) -> None:
    """Give the k-th dropout of a forward pass the k-th mask of ``seed``.

    torch's own masks follow the layout in memory, which attention leaves in another order in diffusers than here.
    """
    generator = torch.Generator().manual_seed(seed)

    def drop(module: nn.Dropout, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept = torch.rand(output.shape, generator=generator) >= module.p
        return inputs[0] * kept / (1 - module.p)

    for module in net.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.register_forward_hook(drop)


@torch.no_grad()
def largest_difference(ours: UNet, theirs: UNet2DModel) -> float:
    t = torch.tensor([1, 400, 1000])
    x_t = torch.randn(3, ours.channels, ours.size, ours.size, generator=torch.Generator().manual_seed(1))
    eps = ours(x_t, t)
    assert 0.3 < eps.std() < 3
    return (eps - theirs(x_t, t - 1).sample).abs().max().item()


def test_the_output_equals_that_of_diffusers_for_the_same_weights(twins: tuple[UNet, UNet2DModel]) -> None:
    ours, theirs = twins
    assert largest_difference(ours.eval(), theirs.eval()) < 1e-5


def test_the_output_in_training_equals_that_of_diffusers_for_the_same_dropout_masks(
    twins: tuple[UNet, UNet2DModel],
) -> None:
    ours, theirs = (copy.deepcopy(each).train() for each in twins)
    share_dropout_masks(ours, seed=2)
    share_dropout_masks(theirs, seed=2)
    assert largest_difference(ours, theirs) < 1e-5


def test_dropout_is_active_in_training_only(twins: tuple[UNet, UNet2DModel]) -> None:
    ours, _ = twins
    x_t, t = torch.randn(1, ours.channels, ours.size, ours.size), torch.tensor([10])
    with torch.no_grad():
        assert torch.equal(ours.eval()(x_t, t), ours(x_t, t))
        assert (ours.train()(x_t, t) - ours(x_t, t)).abs().max() > 0.01


def test_the_comparison_with_diffusers_detects_two_swapped_layers() -> None:
    settings = CONFIGURATIONS["grayscale_digits"]
    net = UNet(**settings, dropout=0.0).eval()
    randomise(net)
    twin = diffusers_twin(net, settings["multipliers"], settings["attention"], 0.0).eval()
    state = twin.state_dict()
    first, second = "mid_block.attentions.0.to_q.weight", "mid_block.attentions.0.to_v.weight"
    twin.load_state_dict(state | {first: state[second].clone(), second: state[first].clone()})
    assert largest_difference(net, twin) > 1e-3


# ---- size --------------------------------------------------------------------------------------------------------


def parameters(**settings: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(**settings).parameters())


def test_cifar10s_model_has_ho_et_als_35_7_million_parameters() -> None:
    assert parameters(channels=3, size=32) == 35_746_307


def test_the_256x256_model_has_ho_et_als_114_million_parameters() -> None:
    assert parameters(**HO_256) == 113_673_219


def test_another_image_channel_adds_the_weights_of_the_first_and_last_convolution() -> None:
    assert parameters(channels=4, size=32) - parameters(channels=3, size=32) == 2 * 9 * 128 + 1


def test_the_state_dict_holds_parameters_only() -> None:
    with torch.device("meta"):
        net = UNet(channels=3, size=32)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(("channels", "size", "multipliers"), [(1, 12, (1, 2, 2)), (5, 6, (1, 1)), (3, 4, (2,))])
def test_any_number_of_channels_and_any_divisible_size_is_accepted(
    channels: int, size: int, multipliers: tuple[int, ...]
) -> None:
    net = UNet(channels, size, width=32, multipliers=multipliers, attention=(), blocks=1)
    randomise(net)
    x_t = torch.randn(2, channels, size, size)
    assert net(x_t, torch.tensor([1, 2])).shape == x_t.shape


def test_self_attention_is_at_the_given_resolutions_and_in_the_middle() -> None:
    with torch.device("meta"):
        net = UNet(**HO_256)
    attending = {name for name, module in net.named_modules() if isinstance(module, AttentionBlock)}
    # level 4 of 0..5 is 16x16. In the encoder it follows four levels of two blocks and a downsampling, in the decoder
    # one level of three blocks and an upsampling.
    down, up = [4 * 3, 4 * 3 + 1], [4, 5, 6]
    assert attending == {
        *(f"down.{i}.attention" for i in down),
        *(f"up.{i}.attention" for i in up),
        "middle1.attention",
    }


# ---- initialisation ----------------------------------------------------------------------------------------------


def list_near_zero_layers(net: UNet) -> set[nn.Module]:
    """Return the layers that Ho et al. initialise with a variance scale of 1e-10."""
    last = {net.last}
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            last.add(module.conv2)
        if isinstance(module, AttentionBlock):
            last.add(module.out)
    return last


def test_weights_are_initialised_uniformly_with_ho_et_als_fan_average_bound() -> None:
    net = UNet(3, 16, width=32, multipliers=(1, 2), attention=(8,))
    quiet = list_near_zero_layers(net)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert quiet < set(layers)
    for layer in layers:
        pixels = math.prod(layer.weight.shape[2:])
        fans = layer.weight.shape[0] * pixels + layer.weight.shape[1] * pixels
        bound = math.sqrt(3 * (1e-10 if layer in quiet else 1.0) / (fans / 2))
        largest, n = layer.weight.abs().max().item(), layer.weight.numel()
        assert bound * (1 - 20 / n) < largest <= bound * (1 + 1e-6)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(n))


def test_biases_are_initialised_to_zero_and_norms_to_the_identity() -> None:
    net = UNet(3, 16, width=32, multipliers=(1, 2), attention=(8,))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm):
            assert (module.bias == 0).all()
        if isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
            assert module.eps == 1e-6
            assert module.num_groups == 32


def test_blocks_start_as_the_identity_and_the_network_at_zero() -> None:
    x, embedding = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    torch.testing.assert_close(ResidualBlock(32, 32, 128, 32, 0.0)(x, embedding), x, rtol=0, atol=1e-3)
    torch.testing.assert_close(AttentionBlock(32, 32)(x), x, rtol=0, atol=1e-3)
    net = UNet(1, 8, width=32, multipliers=(1, 2), attention=())
    assert net(torch.randn(2, 1, 8, 8), torch.tensor([1, 1000])).abs().max() < 1e-3


# ---- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initialised", [True, False], ids=["as_initialised", "randomised"])
def test_a_gradient_reaches_every_parameter(initialised: bool) -> None:
    net = UNet(3, 16, width=32, multipliers=(1, 2), attention=(8,), dropout=0.1)
    if not initialised:
        randomise(net)
    (net(torch.randn(4, 3, 16, 16), torch.tensor([1, 5, 500, 1000])) - 1).square().mean().backward()
    # a bias of the keys adds the same number to all scores of a query, which does not change the softmax
    blind = {name for name, _ in net.named_parameters() if name.endswith("key.bias")}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert name in blind or parameter.grad.abs().max() > 0, name


# ---- parts -------------------------------------------------------------------------------------------------------


def test_the_timestep_embedding_is_ho_et_als_formula_of_the_zero_based_timestep() -> None:
    features = SinusoidalEmbedding(128)(torch.tensor([1, 2, 1000]))
    for row, t in enumerate((1, 2, 1000)):
        angle = [(t - 1) / 10_000 ** (k / 63) for k in range(64)]
        expected = [math.sin(each) for each in angle] + [math.cos(each) for each in angle]
        # an angle of up to 999 has 6e-5 of absolute error in float32
        torch.testing.assert_close(features[row], torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_embedding_of_the_first_timestep_has_sines_0_and_cosines_1() -> None:
    features = SinusoidalEmbedding(8)(torch.tensor([1]))
    assert features.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_the_embedding_of_a_half_precision_model_distinguishes_neighbouring_timesteps() -> None:
    features = SinusoidalEmbedding(128).bfloat16()(torch.tensor([999, 1000]))
    assert features.dtype == torch.float32
    assert (features[0] - features[1]).abs().max() > 0.1


def test_downsampling_pads_right_and_bottom_only() -> None:
    layer = DownsampleConv(1)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = 1, 10
    # the top left pixel meets the kernel's first entry, the bottom right one its middle entry
    assert layer(x).tolist() == [[[[0, 0], [0, 40]]]]


def test_upsampling_repeats_pixels_before_it_convolves() -> None:
    layer = UpsampleConv(1)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 1, 1] = 1
    assert layer(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_attention_is_the_softmax_of_scaled_products_of_all_pixels() -> None:
    block = AttentionBlock(32, 32)
    randomise(block)
    x = torch.randn(2, 32, 4, 3)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    scores = block.query(tokens) @ block.key(tokens).transpose(1, 2) / math.sqrt(32)
    expected = x + block.out(scores.softmax(-1) @ block.value(tokens)).transpose(1, 2).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)


def test_dropout_is_between_the_second_activation_and_the_second_convolution() -> None:
    block = ResidualBlock(32, 32, 16, 32, dropout=1.0)
    randomise(block)
    x = torch.randn(1, 32, 4, 4)
    # with everything dropped, only the convolution's bias remains
    torch.testing.assert_close(block(x, torch.randn(1, 16)) - x, block.conv2.bias.view(1, -1, 1, 1).expand_as(x))


def test_each_image_is_processed_independently_with_its_own_timestep() -> None:
    net = UNet(3, 8, width=32, multipliers=(1, 2), attention=(4,), dropout=0.0)
    randomise(net)
    x_t, t = torch.randn(3, 3, 8, 8), torch.tensor([1, 300, 1000])
    together = net(x_t, t)
    for i in range(3):
        torch.testing.assert_close(together[i], net(x_t[i : i + 1], t[i : i + 1])[0], rtol=0, atol=1e-5)
    assert (net(x_t, t.roll(1)) - together).abs().max() > 0.1


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": None}, "UNet needs the images' channels and size, got channels=3, size=None"),
        ({"channels": None}, "UNet needs the images' channels and size, got channels=None, size=32"),
        (
            {"size": 28},
            "size must be a multiple of 8, because it is halved 3 times; got 28; try size=32",
        ),
        ({"attention": (7,)}, "attention is set for the sizes [7], but the levels have the sizes [32, 16, 8, 4]"),
        ({"attention": (16, 64)}, "attention is set for the sizes [64], but the levels have the sizes [32, 16, 8, 4]"),
        ({"width": 48}, "channels must be a multiple of groups, got 48 and 32; try groups=16"),
        ({"width": 36, "groups": 24}, "channels must be a multiple of groups, got 36 and 24; try groups=12"),
        ({"width": 0}, "must be at least 1 and dropout lie in [0, 1], got 3, 32, 0, 2, 32, [1, 2, 2, 2] and 0.1"),
        ({"groups": 0}, "must be at least 1 and dropout lie in [0, 1], got 3, 32, 128, 2, 0,"),
        ({"multipliers": ()}, "one or more multipliers must be at least 1"),
        ({"outputs": 0}, "outputs must be at least 1, got 0"),
        ({"width": 33, "groups": 1}, "the timestep embedding needs an even width of at least 4, got 33"),
        ({"width": 2, "groups": 1}, "the timestep embedding needs an even width of at least 4, got 2"),
    ],
)
def test_an_invalid_combination_is_refused_with_the_fix(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=re.escape(message)):
        UNet(**({"channels": 3, "size": 32} | settings))


@pytest.mark.parametrize(
    ("wrong", "fixed"),
    [
        ({"size": 28}, {"size": 32}),
        ({"size": 28, "attention": (14,)}, {"size": 28, "multipliers": (1, 2, 2), "attention": (14,)}),
        ({"width": 48}, {"width": 48, "groups": 16}),
    ],
)
def test_the_suggested_fix_works(wrong: dict[str, Any], fixed: dict[str, Any]) -> None:
    with torch.device("meta"):
        with pytest.raises(UserError):
            UNet(**({"channels": 3, "size": 32} | wrong))
        UNet(**({"channels": 3, "size": 32} | fixed))

"""The U-Net is diffusers' UNet2DModel with the same settings, and other networks are refused."""

import pytest
import torch
from helpers.diffusers_models import GOOGLE

from lightning_ddpm.interop.diffusers.unet import make_unet_config, parse_unet_config
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError


def test_the_network_of_google_ddpm_cifar10_32_is_ho_et_al_s():
    google = GOOGLE | {"block_out_channels": [128, 256, 256, 256], "norm_num_groups": 32, "_class_name": "UNet2DModel"}
    arguments = parse_unet_config(google)
    assert arguments == {
        "channels": 3,
        "size": 32,
        "width": 128,
        "multipliers": [1, 2, 2, 2],
        "attention": [16],
        "blocks": 2,
        "dropout": 0.0,
        "groups": 32,
        "outputs": 1,
    }
    with torch.device("meta"):
        written = make_unet_config(UNet(**arguments))
    assert {name: written[name] for name in google} == google


class OwnNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels, self.size = 1, 8


SETTINGS = {"width": 8, "attention": (), "blocks": 1, "groups": 4}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OwnNetwork(), "only lightning_ddpm.networks.UNet can be exported .* is .*OwnNetwork"),
        (
            UNet(1, 8, multipliers=(1, 2), classes=3, **SETTINGS),
            "has no class condition, and this network has 3 classes; only models without classes",
        ),
        (
            UNet(1, 8, multipliers=(2, 2), **SETTINGS),
            "this network has 16 and 8; only models whose first multiplier is 1",
        ),
    ],
    ids=["own", "classes", "first_multiplier"],
)
def test_networks_that_diffusers_lacks_are_refused(network, message):
    with pytest.raises(UserError, match=message):
        make_unet_config(network)

"""The U-Net is diffusers' UNet2DModel with the same settings, and other networks are refused."""

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from helpers.diffusers_models import GOOGLE, import_pipeline, randomise, write_checkpoint

from lightning_ddpm.interop.diffusers.unet import make_unet_config, parse_unet_config
from lightning_ddpm.interop.diffusers.weights import export_weights, load_weights
from lightning_ddpm.networks import UNet, UNetLayers
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


def build(classes: int = 0, **layers: Any) -> UNet:
    """Return a small network with attention at both levels, and weights that all affect the output."""
    shape = (3, 8, 8, (1, 2), (8, 4), 1, 0.0, 4)
    network = UNet(*shape, classes=classes, layers=UNetLayers(**layers)).eval()
    randomise(network)
    return network


def assert_equal_outputs(ours: UNet, theirs: UNet2DModel) -> None:
    """Compare the outputs, with every label and none where there are classes."""
    n = ours.classes + 1
    x_t, t = torch.randn(n, 3, *theirs_size(theirs), generator=torch.Generator().manual_seed(1)), torch.arange(1, n + 1)
    label, vectors = torch.arange(-1, n - 1), theirs.config.num_class_embeds or n
    with torch.no_grad():
        labels = {"class_labels": torch.where(label < 0, n - 1, label)} if ours.classes else {}
        if vectors == ours.classes:  # a model without a vector for no class
            x_t, t, label, labels = x_t[1:], t[1:], label[1:], {"class_labels": labels["class_labels"][1:]}
        output = ours(x_t, t, *([label] if ours.classes else []))
        torch.testing.assert_close(output, theirs(x_t, t - 1, **labels).sample, rtol=0, atol=2e-5)


def theirs_size(model: UNet2DModel) -> tuple[int, int]:
    return (model.config.sample_size, model.config.sample_size)


VARIANTS: dict[str, dict[str, Any]] = {
    "adm": {"classes": 3, "scale_shift": True, "head_width": 4, "residual_resampling": True, "cosines_first": True}
    | {"eps": 1e-5, "zero_outputs": True},
    "diffusers_defaults": {"head_width": 8, "symmetric_padding": True, "cosines_first": True, "eps": 1e-5},
    "classes": {"classes": 5},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_the_same_in_diffusers_and_after_import(name):
    network = build(**VARIANTS[name])
    config = make_unet_config(network)
    theirs = UNet2DModel.from_config(config).eval()
    theirs.load_state_dict(export_weights(network))  # raises if a weight is missing or unknown
    assert_equal_outputs(network, theirs)
    arguments = parse_unet_config(config)
    given = arguments.pop("layers", {"init_args": {}})
    again = UNet(**arguments, layers=UNetLayers(**given["init_args"])).eval()
    load_weights(again, theirs.state_dict())
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    assert_equal_outputs(again, theirs)


def test_a_model_of_diffusers_with_its_default_settings_and_classes_is_imported():
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    theirs = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, num_class_embeds=4, **blocks
    ).eval()
    randomise(theirs)
    arguments = parse_unet_config(json.loads(theirs.to_json_string()))
    assert arguments["classes"] == 4
    ours = UNet(**arguments | {"layers": UNetLayers(**arguments["layers"]["init_args"])}).eval()
    with torch.no_grad():
        load_weights(ours, theirs.state_dict())
    assert_equal_outputs(ours, theirs)
    vectors = ours.embed_label.vectors.weight
    torch.testing.assert_close(vectors[-1], vectors[:-1].mean(0))


def test_scale_shift_without_a_norm_of_the_middles_attention_is_refused():
    with pytest.raises(UserError, match=r"attn_norm_num_groups=None, which is not .*; supported: norm_num_groups"):
        parse_unet_config(GOOGLE | {"_class_name": "UNet2DModel", "resnet_time_scale_shift": "scale_shift"})


def test_a_number_of_classes_that_does_not_fit_the_vectors_is_refused():
    config = GOOGLE | {"_class_name": "UNet2DModel", "num_class_embeds": 10, "_lightning_ddpm_classes": 7}
    with pytest.raises(UserError, match="_lightning_ddpm_classes=7, which is not supported; supported: 9, one below"):
        parse_unet_config(config)


def test_levels_that_are_resized_in_different_ways_are_refused():
    config = GOOGLE | {"_class_name": "UNet2DModel", "downsample_type": "resnet"}
    with pytest.raises(UserError, match="supported: convolutions at all levels or residual blocks, down and up"):
        parse_unet_config(config)


def test_export_of_a_class_conditional_model_prints_how_to_call_it_and_import_reads_it(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt", network={"classes": 3})
    status, out, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 0, err
    assert "its 3 classes need a loop of your own: DDPMPipeline passes none" in out
    assert "class_labels=0..2, or 3 for no class" in out
    model = import_pipeline(tmp_path / "out", command)
    assert model.class_names == ["0", "1", "2"]
    theirs = UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet").eval()
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([4, 9])
    with torch.no_grad():
        ours = model.network(x_t, t, torch.tensor([1, -1]))
        torch.testing.assert_close(ours, theirs(x_t, t - 1, torch.tensor([1, 3])).sample, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OwnNetwork(), "only lightning_ddpm.networks.UNet can be exported .* is .*OwnNetwork"),
        *(
            (build(**{name: value} | more), f"has no {name}, and this network's layers have {value}")
            for name, value, more in (
                ("projected_resampling", True, {"residual_resampling": True}),
                ("skip_scale", 0.5, {}),
                ("sparse_attention", True, {}),
                ("early_label", True, {}),
            )
        ),
        (build(heads=2), r"has heads of one width, and this network's have \[4, 8\]; only layers with head_width"),
        (
            UNet(1, 8, multipliers=(2, 2), **SETTINGS),
            "this network has 16 and 8; only models whose first multiplier is 1",
        ),
    ],
    ids=["own", "projected", "skip_scale", "sparse", "early_label", "heads", "first_multiplier"],
)
def test_networks_that_diffusers_lacks_are_refused(network, message):
    with pytest.raises(UserError, match=message):
        make_unet_config(network)

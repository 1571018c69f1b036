"""EDM's weights: the denoiser computes what the authors' code does, and other files are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import write_yaml
from helpers.published_weights import X_T, fill
from torch import Tensor

from lightning_ddpm.diffusion import EDM, Denoiser, VarianceExploding
from lightning_ddpm.interop.edm import QKV, convert_weights, infer_arguments, map_layer_names
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.networks import UNet, UNetLayers
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError

SIGMA = torch.tensor([0.3, 20.0], dtype=torch.float64)
LABEL, DONE = torch.tensor([2, 0]), fill("augmentation", (2, 9))
SONG = {"residual_resampling": True, "projected_resampling": True, "skip_scale": 0.5**0.5, "sparse_attention": True}
ADM = {"scale_shift": True, "head_width": 64, "residual_resampling": True, "zero_outputs": True}
ADM |= {"cosines_first": True, "eps": 1e-5}
KINDS: dict[str, tuple[dict[str, Any], list[int], int]] = {"ddpmpp": (SONG, [8], 0), "adm": (ADM, [16, 8], 4)}
KINDS["ddpmpp of classes"] = (SONG | {"early_label": True}, [8], 4)
PUBLISHED = {
    "ddpmpp": (
        *(-1.51137, -1.22366, 0.07673, 1.05115, -0.381, -1.36255, 1.21403, 0.92716),
        *(0.26523, 0.48134, 0.49243, -0.45529, -0.38202, -0.43518, -0.13664, -0.17534),
    ),
    "ddpmpp of classes": (
        *(-1.5144, -1.22355, 0.06702, 1.07393, -0.36618, -1.33213, 1.20817, 0.92969),
        *(0.20795, 0.44111, 0.38096, -0.30125, -0.33315, -0.2577, -0.08322, -0.11253),
    ),
    "ddpmpp of classes without a class": (
        *(-1.51274, -1.22578, 0.07028, 1.06493, -0.37334, -1.3557, 1.21375, 0.93015),
        *(0.25025, 0.45027, 0.44118, -0.4347, -0.3787, -0.4241, -0.09454, -0.14164),
    ),
    "ddpmpp augmented": (
        *(-1.50852, -1.20943, 0.06247, 1.05554, -0.36889, -1.34489, 1.21677, 0.92794),
        *(0.23351, 0.58411, 0.44494, -0.24467, -0.31212, -0.23809, -0.17718, -0.19211),
    ),
    "adm": (
        *(-1.55351, -1.22555, -0.0909, 0.87853, -0.33735, -1.31564, 0.70203, 0.75633),
        *(-0.09889, -0.03025, -0.12723, 0.07531, 0.09973, 0.06615, -0.51519, -0.36534),
    ),
    "adm without a class": (
        *(-1.55498, -1.22848, -0.09429, 0.86523, -0.34249, -1.32061, 0.70544, 0.76319),
        *(-0.10732, -0.00443, -0.09337, 0.14437, 0.1263, 0.07667, -0.51011, -0.3651),
    ),
}
"""Every 97th number of D(X_T; SIGMA) by NVlabs/edm, commit 008a4e5, with ``fill``'s weights and augment_dim=9:
EDMPrecond(16, 3, model_type="SongUNet", model_channels=128, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[8]),
the same with label_dim=4, the first with augment_labels=DONE, and "DhariwalUNet" with label_dim=4 and
attn_resolutions=[16, 8]."""


def build(kind: str, **layers: Any) -> UNet:
    given, attention, classes = KINDS[kind]
    settings = UNetLayers(**given | {"time_offset": 0} | layers)
    return UNet(3, 16, 128, (1, 1), attention, 1, 0.0, classes=classes, layers=settings).eval()


def make_weights(network: UNet) -> dict[str, Tensor]:
    """Return EDM's weights for the network, from the formula, with those that it does not need."""
    names, weights = map_layer_names(network), {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        shape, theirs = list(own.shape), f"{names[layer]}.{kind}"
        shape[0] *= 3 if layer.rpartition(".")[2] in QKV else 1
        shape = [shape[1], shape[0] - 1] if theirs == "map_label.weight" else shape
        shape += [1, 1] if theirs.endswith(("qkv.weight", "proj.weight")) else []
        weights[f"model.{theirs}"] = fill(theirs, tuple(shape))
    weights["model.map_augment.weight"] = torch.ones(128, 9)
    if network.layers.early_label:
        weights["model.map_label.bias"] = fill("map_label.bias", (128,))
    return weights | {"model.enc.8x8_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25)}


@torch.no_grad()
def compute(network: UNet, *condition: Condition | Tensor) -> Tensor:
    """Return every 97th number of the denoised X_T, where x = x_0 + sigma eps."""
    path = VarianceExploding()
    denoise = Denoiser(network, path, None, EDM())
    denoise = denoise.conditioned_on(*condition) if condition else denoise
    x_t = X_T / torch.hypot(torch.ones(2), SIGMA.float())[:, None, None, None]
    return denoise(x_t, path.time_at(SIGMA.atan())).x_0.flatten()[::97]


@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_computes_what_karras_et_als_code_does(kind: str) -> None:
    network = build(kind)
    weights = make_weights(network)
    assert infer_arguments(weights) == {"channels": 3, "size": 16, "classes": network.classes}
    network.load_state_dict(convert_weights(network, weights))
    label = [LABEL] if network.classes else []
    torch.testing.assert_close(compute(network, *label), torch.tensor(PUBLISHED[kind]), rtol=0, atol=5e-5)
    if network.classes:
        expected = torch.tensor(PUBLISHED[f"{kind} without a class"])
        torch.testing.assert_close(compute(network), expected, rtol=0, atol=5e-5)
        assert (expected - torch.tensor(PUBLISHED[kind])).abs().max() > 0.05


def make_config(folder: Path, layers: dict[str, Any], embedding: str = "AugmentationEmbedding") -> Path:
    """Write the config of the DDPM++ for augmented CIFAR-10 images, whose size the source states."""
    network = {"width": 128, "multipliers": [1, 1], "attention": [8], "blocks": 1, "dropout": 0.0}
    network["layers"] = {"class_path": "lightning_ddpm.networks.UNetLayers", "init_args": layers}
    conditions = [{"class_path": f"lightning_ddpm.networks.{embedding}", "init_args": {"parameters": 9}}]
    network["conditions"] = conditions
    model: dict[str, Any] = {"network": {"class_path": "lightning_ddpm.networks.UNet", "init_args": network}}
    parts = {"schedule": "VarianceExploding", "parameterization": "EDM", "sampler": "EDMHeun"}
    model |= {name: {"class_path": f"lightning_ddpm.diffusion.{each}"} for name, each in parts.items()}
    model["augmentations"] = [{"class_path": "lightning_ddpm.data.GeometricAugmentation"}]
    model["clipping"] = {"class_path": "lightning_ddpm.diffusion.NoClipping"}
    content = {"model": {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": model}}
    return write_yaml(folder / "edm.yaml", content)


def test_import_writes_a_checkpoint_of_the_denoiser(tmp_path: Path, command: Any) -> None:
    torch.save(make_weights(build("ddpmpp")), tmp_path / "edm.pt")
    config = make_config(tmp_path, SONG | {"time_offset": 0})
    out = tmp_path / "out.ckpt"
    status, _, err = command("import", "--weights", tmp_path / "edm.pt", "--config", config, "--out", out)
    assert status == 0, err
    model = load(out)
    assert model.image_shape == (3, 16, 16)
    torch.testing.assert_close(compute(model.network), torch.tensor(PUBLISHED["ddpmpp"]), rtol=0, atol=5e-5)
    legacy = ("--legacy_attention", "--out", tmp_path / "b.ckpt")
    status, _, err = command("import", "--weights", tmp_path / "edm.pt", "--config", config, *legacy)
    assert status == 2
    assert "--legacy_attention is for weights of guided-diffusion, and these are EDM's" in err


def test_augmentation_is_imported_into_a_network_that_embeds_it_as_theirs(tmp_path: Path, command: Any) -> None:
    weights = make_weights(build("ddpmpp"))
    weights["model.map_augment.weight"] = fill("map_augment.weight", (128, 9))
    torch.save(weights, tmp_path / "edm.pt")
    expected = torch.tensor(PUBLISHED["ddpmpp"])
    models = {}
    for embedding in ("AugmentationEmbedding", "EarlyAugmentationEmbedding"):
        config = make_config(tmp_path, SONG | {"time_offset": 0}, embedding)
        out = tmp_path / f"{embedding}.ckpt"
        status, _, err = command("import", "--weights", tmp_path / "edm.pt", "--config", config, "--out", out)
        assert status == 0, err
        models[embedding] = load(out)
        torch.testing.assert_close(compute(models[embedding].network), expected, rtol=0, atol=5e-5)
    late, early = models.values()
    assert (len(late.network.conditions), late.augmentations) == (0, [])
    assert [type(each).__name__ for each in early.augmentations] == ["GeometricAugmentation"]
    assert str(early.clipping) == "NoClipping"
    found = compute(early.network, Condition(augmentation=DONE))
    torch.testing.assert_close(found, torch.tensor(PUBLISHED["ddpmpp augmented"]), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("change", "layers", "message"),
    [
        ({"model.map_noise.freqs": torch.ones(2)}, {}, r"the file is of NCSN\+\+, whose noise features"),
        ({"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 4, 4)}, {}, r"the file is of NCSN\+\+"),
        ({"model.map_label.weight": torch.ones(128, 4)}, {}, r"DDPM\+\+ with classes, .*; set layers.early_label"),
        (
            {},
            {"time_offset": 1},
            r"embed ln\(sigma\) / 4 as it is, and the config's subtracts 1; set layers.time_offset",
        ),
        ({"model.more": torch.ones(1)}, {}, "the file has more, which the config's network has not"),
        (
            {"model.map_layer0.bias": torch.ones(3)},
            {},
            r"map_layer0.bias has the shape \[3\] and the config's network \[512",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Tensor], layers: dict[str, Any], message: str) -> None:
    network = build("ddpmpp")
    weights = make_weights(network) | change
    with pytest.raises(UserError, match=message):
        convert_weights(build("ddpmpp", **layers), weights)

"""guided-diffusion's weights: the network computes what the authors' code does, and other files are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import write_yaml
from helpers.published_weights import GUIDED_DIFFUSION, LABEL, X_T, T, fill
from torch import Tensor

from lightning_ddpm.interop.guided_diffusion import QKV, convert_weights, map_layer_names
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet, UNetLayers

SHAPE: dict[str, Any] = {"channels": 3, "size": 16, "width": 32, "multipliers": (1, 2), "blocks": 2, "dropout": 0.0}
SHAPE |= {"attention": (16, 8), "outputs": 2}
ADM = {"scale_shift": True, "cosines_first": True, "zero_outputs": True, "eps": 1e-5}
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {  # layers and classes
    "adm": ({"residual_resampling": True, "head_width": 16}, 4),
    "legacy": ({"symmetric_padding": True, "heads": 4}, 0),
}


def build(name: str, **layers: Any) -> UNet:
    given, classes = SETTINGS[name]
    return UNet(**SHAPE, classes=classes, layers=UNetLayers(**ADM | given | layers)).eval()


def make_weights(network: UNet) -> dict[str, Tensor]:
    """Return guided-diffusion's weights for the network, from the formula."""
    names, weights = map_layer_names(network), {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        shape, theirs = list(own.shape), f"{names[layer]}.{kind}"
        shape[0] *= 3 if layer.rpartition(".")[2] in QKV else 1
        shape[0] -= theirs == "label_emb.weight"
        shape += [1] if ("qkv" in theirs or "proj_out" in theirs) and kind == "weight" else []
        weights[theirs] = fill(theirs, tuple(shape))
    return weights


@torch.no_grad()
def compute(network: UNet) -> Tensor:
    return network(X_T, T, *([LABEL] if network.classes else [])).flatten()[::193]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_network_computes_what_dhariwal_and_nichols_code_does(name: str) -> None:
    network = build(name)
    network.load_state_dict(convert_weights(network, make_weights(network), legacy_attention=name == "legacy"))
    torch.testing.assert_close(compute(network), torch.tensor(GUIDED_DIFFUSION[name]), rtol=0, atol=5e-5)


CHANGES = [("adm", {"head_width": 32}), ("adm", {"cosines_first": False}), ("adm", {"eps": 0.01})]
CHANGES += [("legacy", {"symmetric_padding": False}), ("legacy", {"heads": 1})]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_comparison_detects_a_changed_setting(name: str, change: dict[str, Any]) -> None:
    network = build(name, **change)
    network.load_state_dict(convert_weights(network, make_weights(network), legacy_attention=name == "legacy"))
    assert (compute(network) - torch.tensor(GUIDED_DIFFUSION[name])).abs().max() > 1e-3


def test_the_vector_of_no_class_is_the_mean_of_the_classes() -> None:
    network = build("adm")
    weights = make_weights(network)
    state = convert_weights(network, weights, legacy_attention=False)
    torch.testing.assert_close(state["embed_label.vectors.weight"][-1], weights["label_emb.weight"].mean(0))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a file of weights and the config of its model."""
    given, _ = SETTINGS["adm"]
    layers = {"class_path": "lightning_ddpm.networks.UNetLayers", "init_args": ADM | given}
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in SHAPE.items()}
    arguments |= {"channels": None, "size": None, "classes": None, "layers": layers}
    network = {"class_path": "lightning_ddpm.networks.UNet", "init_args": arguments}
    model = {
        "network": network,
        "schedule": {"class_path": "lightning_ddpm.diffusion.Cosine", "init_args": {"steps": 9}},
    }
    variance = {"class_path": "lightning_ddpm.diffusion.LearnedRange"}
    model["sampler"] = {"class_path": "lightning_ddpm.diffusion.Ancestral", "init_args": {"variance": variance}}
    model["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}
    content = {"model": {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": model}}
    content["data"] = {"source": {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"size": 16}}}
    torch.save(make_weights(build("adm")), tmp_path / "adm.pt")
    return tmp_path / "adm.pt", write_yaml(tmp_path / "adm.yaml", content)


def test_import_writes_a_checkpoint_of_the_network_with_their_weights(files: Any, tmp_path: Path, command: Any) -> None:
    weights, config = files
    status, _, err = command("import", "--weights", weights, "--config", config, "--out", tmp_path / "out.ckpt")
    assert status == 0, err
    model = load(tmp_path / "out.ckpt", DDPM)
    assert model.class_names == ["0", "1", "2", "3"]
    torch.testing.assert_close(compute(model.network), torch.tensor(GUIDED_DIFFUSION["adm"]), rtol=0, atol=5e-5)


def change_weights(path: Path, name: str, value: Tensor | None) -> None:
    weights = torch.load(path, weights_only=True) | {name: value}
    torch.save({name: each for name, each in weights.items() if each is not None}, path)


REFUSED: dict[str, tuple[Any, str]] = {
    "no_file": (lambda w, c: w.unlink(), "there is no file of weights "),
    "missing": (lambda w, c: change_weights(w, "out.2.bias", None), "the file has no out.2.bias; it is of another"),
    "unknown": (lambda w, c: change_weights(w, "more", torch.ones(1)), "the file has more, which the config's network"),
    "shape": (
        lambda w, c: change_weights(w, "out.2.bias", torch.ones(3)),
        "out.2.bias has the shape [3] and the config's network [6]",
    ),
    "nan": (lambda w, c: change_weights(w, "out.2.bias", torch.full((6,), torch.nan)), "holds NaN or infinity"),
    "code": (lambda w, c: torch.save({"a": Path("b")}, w), "adm.pt is refused: it holds more than weights"),
    "another_program": (lambda w, c: torch.save({"a": torch.ones(1)}, w), "the file has no input_blocks.0.0.weight"),
    "no_config": (lambda w, c: c.unlink(), "there is no config "),
    "another_config": (lambda w, c: c.write_text("model: 3\n"), "is not a training config of lightning_ddpm.models"),
    "no_yaml": (lambda w, c: c.write_text("a: [\n"), "adm.yaml is no config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_do_not_fit_are_refused(name: str, files: Any, tmp_path: Path, command: Any) -> None:
    damage, message = REFUSED[name]
    damage(*files)
    status, _, err = command("import", "--weights", files[0], "--config", files[1], "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert message in err, err
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("options", [(), ("--weights", "a.pt"), ("--folder", ".", "--legacy_attention")])
def test_import_needs_one_source(options: tuple[str, ...], tmp_path: Path, command: Any) -> None:
    status, _, err = command("import", *options, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert "give either --folder, of a pipeline of diffusers, or --weights, of guided-diffusion or EDM, with" in err

"""The commands with every network: train compiled in bfloat16, resume to the bit, sample, plan and export."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml

from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM

MODERN = {"rotary": True, "qk_norm": True, "rms_norm": True, "swiglu": True, "class_tokens": 2, "class_tokens_from": 1}
LAYERS = {"scale_shift": True, "heads": 2, "residual_resampling": True, "zero_outputs": True, "cosines_first": True}
NETWORKS: dict[str, dict[str, Any]] = {
    "DiT": {"width": 16, "depth": 2, "heads": 2, "classes": None} | MODERN,
    "UNet": {"width": 8, "multipliers": [1, 2], "attention": [4], "blocks": 1, "groups": 4, "classes": None}
    | {"layers": {"class_path": "lightning_ddpm.networks.UNetLayers", "init_args": LAYERS}},
}
CALLBACKS: list[dict[str, Any]] = [
    {"class_path": "lightning_ddpm.callbacks.ChannelsLast"},
    {"class_path": "lightning_ddpm.callbacks.Compile", "init_args": {"backend": "eager"}},
    {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 0.9}},
    {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 2}},
]


def write_config(folder: Path, name: str, steps: int) -> Path:
    made = tiny_digits(folder / f"{name}{steps}")
    made["trainer"].update(max_steps=steps, limit_val_batches=0, precision="bf16-mixed", callbacks=CALLBACKS)
    made["model"]["init_args"]["network"] = {
        "class_path": f"lightning_ddpm.networks.{name}",
        "init_args": NETWORKS[name],
    }
    return write_yaml(folder / f"{name}{steps}.yaml", made)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_compiled_in_bfloat16_and_is_resumed_sampled_and_planned(
    name: str, tmp_path: Path, command: Any
) -> None:
    whole, half = (write_config(tmp_path, name, steps) for steps in (4, 2))
    for config, more in ((whole, ()), (half, ()), (half, ("--trainer.max_steps", "4", "--ckpt_path", "last"))):
        status, _, err = command("fit", "--config", config, *more)
        assert status == 0, err
    once, resumed = (load(tmp_path / f"{name}{steps}" / "last.ckpt", DDPM).state_dict() for steps in (4, 2))
    assert all(torch.equal(once[key], resumed[key]) for key in once)
    ckpt = tmp_path / f"{name}4" / "last.ckpt"
    status, _, err = command(
        "sample", "--ckpt", ckpt, "--n", "4", "--out", tmp_path / "out", "--guidance", "2", "--label", "3"
    )
    assert status == 0, err
    assert len(list((tmp_path / "out").glob("*.png"))) >= 4
    status, out, err = command("plan", "--config", whole, "--gpu", "h100-80gb")
    assert status == 0, err
    assert f"{sum(each.numel() for each in load(ckpt, DDPM).network.parameters()):,} parameters" in out
    if name == "DiT":
        status, _, err = command("export", "--ckpt", ckpt, "--format", "diffusers", "--out", tmp_path / "exported")
        assert status == 2
        assert "only lightning_ddpm.networks.UNet can be exported" in err
        assert "lightning_ddpm.networks.dit.DiT" in err

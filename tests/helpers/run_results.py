"""What a run has left, to be compared with another run's."""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists to one dict of dotted names."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: each for k, v in items for key, each in flat(v, f"{name}.{k}").items()}
    return {name: value}


def trained(run: Path) -> dict[str, Any]:
    """Return the state of training: both weight sets, EMA's counter, optimizer, schedule and place in the data."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    return flat({name: checkpoint[name] for name in (*parts, "global_step", "ImageDataModule")})


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    different = [
        name
        for name, value in one.items()
        if not (torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name])
    ]
    assert different == []


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return all TensorBoard curves except speed and the training losses by quarter of t.

    If no image of a batch has its t in a quarter, Lightning repeats the last value of the epoch, which a process
    that starts in the middle of the epoch does not know.
    """
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "train/loss_t_" not in tag and "per_second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

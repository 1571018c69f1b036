"""Times what is done to all weights once a step: the optimizer's step, and their average."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from benchmarks.models import build_model
from benchmarks.report import time_in_turns, write_result
from benchmarks.switches import PLAIN
from lightning_ddpm.callbacks import EMA
from lightning_ddpm.models.ddpm import DDPM


def run_optimizers(options: Namespace) -> None:
    """Time Adam's step alone, fused and not, with given gradients."""
    contenders: dict[str, Callable[[], object]] = {}
    for name, make in {"Adam, fused": partial(PLAIN, fused=True), "Adam": PLAIN}.items():
        model = build_model(options.config)
        for each in model.parameters():
            each.grad = torch.randn_like(each)
        contenders[name] = make(model.parameters()).step
    _measure(options, "optimizer", model, contenders)


def run_averages(options: Namespace) -> None:
    """Time the EMA callback, diffusers' average, torch's as Lightning uses it, and the same tensor by tensor."""
    model = build_model(options.config)
    weights = list(model.parameters())
    at_once = AveragedModel(model.network, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    one_by_one = AveragedModel(model.network, avg_fn=get_ema_avg_fn(0.9999))
    contenders: dict[str, Callable[[], object]] = {
        "EMA": _make_ema_step(model),
        "diffusers' EMAModel": partial(EMAModel(weights, decay=0.9999, foreach=True).step, weights),
        "torch's AveragedModel": partial(at_once.update_parameters, model.network),
        "torch's AveragedModel, tensor by tensor": partial(one_by_one.update_parameters, model.network),
    }
    _measure(options, "average", model, contenders)


def _measure(options: Namespace, what: str, model: DDPM, contenders: dict[str, Callable[[], object]]) -> None:
    settings = {"parameters": f"{sum(each.numel() for each in model.parameters()):,}", "rounds": options.rounds}
    write_result(options.out, f"{what}_{options.config}", settings, time_in_turns(contenders, options.rounds))


def _make_ema_step(model: DDPM) -> Callable[[], None]:
    """Return what the EMA callback does after a step, with a counter in place of a Trainer."""
    average = EMA()
    trainer: Any = SimpleNamespace(global_step=0)
    average.setup(trainer, model, "fit")
    average.on_fit_start(trainer, model)

    def update() -> None:
        trainer.global_step += 1
        average.on_train_batch_end(trainer, model, None, None, 0)

    return update

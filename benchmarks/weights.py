"""What is done to all weights once a step: the optimizer's, and their average."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from benchmarks.models import model_of
from benchmarks.report import in_turn, write
from benchmarks.switches import PLAIN
from lightning_ddpm.callbacks import EMA
from lightning_ddpm.models.ddpm import DDPM


def optimizers(options: Namespace) -> None:
    """Adam's step alone, of gradients that are there, fused and not."""
    contenders: dict[str, Callable[[], object]] = {}
    for name, make in {"Adam, fused": partial(PLAIN, fused=True), "Adam": PLAIN}.items():
        model = model_of(options.config)
        for each in model.parameters():
            each.grad = torch.randn_like(each)
        contenders[name] = make(model.parameters()).step
    _measure(options, "optimizer", model, contenders)


def averages(options: Namespace) -> None:
    """The average after a step: the callback's, diffusers', torch's as Lightning has it, and that tensor by tensor."""
    model = model_of(options.config)
    weights = list(model.parameters())
    at_once = AveragedModel(model.network, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    one_by_one = AveragedModel(model.network, avg_fn=get_ema_avg_fn(0.9999))
    contenders: dict[str, Callable[[], object]] = {
        "EMA": _callback(model),
        "diffusers' EMAModel": partial(EMAModel(weights, decay=0.9999, foreach=True).step, weights),
        "torch's AveragedModel": partial(at_once.update_parameters, model.network),
        "torch's AveragedModel, tensor by tensor": partial(one_by_one.update_parameters, model.network),
    }
    _measure(options, "average", model, contenders)


def _measure(options: Namespace, what: str, model: DDPM, contenders: dict[str, Callable[[], object]]) -> None:
    settings = {"parameters": f"{sum(each.numel() for each in model.parameters()):,}", "rounds": options.rounds}
    write(options.out, f"{what}_{options.config}", settings, in_turn(contenders, options.rounds))


def _callback(model: DDPM) -> Callable[[], None]:
    """What our callback does after a step, with a count of steps for a Trainer."""
    average, trainer = EMA(), SimpleNamespace(global_step=0)
    told: Any = trainer
    average.setup(told, model, "fit")
    average.on_fit_start(told, model)

    def after_a_step() -> None:
        trainer.global_step += 1
        average.on_train_batch_end(told, model, None, None, 0)

    return after_a_step

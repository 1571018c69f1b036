"""What commands that draw from a checkpoint have in common: its options, the sampler by name, the devices."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_ddpm.commands.option_errors import instantiate, parse
from lightning_ddpm.data.class_labels import parse_labels
from lightning_ddpm.diffusion import DDIM, ClassifierFree, Guidance, Sampler
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.checkpoint_guidance import Autoguidance, ClassifierGuidance
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.compile import compile_in_place
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError, first_line

CONDITIONS = ("labels", "class_names", "guidance", "guidance_interval", "classifier", "weaker")
"""Options that say of which classes images are, and how strongly."""


class Conditions(NamedTuple):
    """The classes that images are conditioned on, and the guidance towards them.

    Attributes:
        guidance: ``None`` for no guidance beyond conditioning the network.
        labels: the classes, repeated in turn; ``None`` for the frequencies of the training data.
        names: what the labels mean; empty for a model without classes.
    """

    guidance: Guidance | None
    labels: list[int] | None
    names: Sequence[str]

    def request(self, n: int, options: Namespace) -> SampleRequest:
        """Return the request for n images under these conditions, with the seed and batch size of the options."""
        return SampleRequest(n, options.seed, options.batch_size, None, self.guidance, self.labels)

    def describe(self) -> dict[str, str]:
        """Return the conditions for a record of how images were generated; empty without conditions."""
        guidance = {"guidance": str(self.guidance)} if self.guidance else {}
        if not self.names:
            return guidance
        requested = [self.names[label] for label in self.labels or ()]
        return {"classes": ", ".join(requested) or "as in the training data"} | guidance


def add_model_options(parser: ArgumentParser, required: bool) -> None:
    """Options that say which images are drawn."""
    add = parser.add_argument
    add("--ckpt", type=Path, required=required, help="the checkpoint; it says which model it is of")
    add("--seed", type=int, default=0, help="of the set: image i of a seed is always the same")
    add("--steps", type=int, help="of the sampler; alone: by DDIM; default: the checkpoint's own sampler")
    parser.add_subclass_arguments(
        Sampler, "sampler", required=False, help="DDIM, DPMSolverPP, Heun, ...; --sampler.help NAME lists its options"
    )
    add("--batch_size", type=int, default=64, help="images at a time on each device")
    add("--raw", action="store_true", help="weights as trained instead of their moving average")
    add("--labels", "--label", type=str, metavar="N,N,...", help="classes by number, in turn; default: as in the data")
    add("--class_names", "--class", type=str, metavar="NAME,NAME,...", help="the same by name")
    add("--guidance", type=float, metavar="W", help="0: without classes, 1: told the class (default), more: further")
    add("--guidance_interval", type=int, nargs=2, metavar=("FROM", "TO"), help="guide at these steps of 1..T alone")
    add("--classifier", type=Path, metavar="CKPT", help="guide by this classifier of noisy images")
    add("--weaker", type=Path, metavar="CKPT", help="guide away from this weaker model")


def add_device_options(parser: ArgumentParser) -> None:
    """Options that say where."""
    add = parser.add_argument
    add("--accelerator", default="auto", help="cpu, cuda, mps; auto: what there is")
    add("--devices", type=int, default=1, help="how many on each node")
    add("--num_nodes", type=int, default=1, help="how many nodes; start each by torchrun or SLURM")
    add("--strategy", help="as the Trainer's; default: ddp for more than one process")
    add("--precision", default="32-true", help="of the network: 32-true, bf16-mixed, 16-mixed")
    add("--compile", action="store_true", help="the network by torch.compile: for many images, as it takes a minute")


def parse_options(parser: ArgumentParser, arguments: Sequence[str], command: str, positive: Iterable[str]) -> Namespace:
    """The options, or a sentence on what is wrong with them.

    Args:
        parser: with the options of this file.
        arguments: the command line.
        command: its name.
        positive: options that must be at least 1, where they are given.
    """
    options = parse(parser, arguments, command)
    for name in (*positive, "batch_size", "devices", "num_nodes", "steps"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {options[name]}")
    if options.sampler and options.steps is not None:
        if "steps" not in options.sampler.init_args:
            raise UserError(f"{options.sampler.class_path} takes no --steps; leave it out")
        options.sampler.init_args.steps = options.steps
    return options


def load_model(parser: ArgumentParser, options: Namespace) -> DDPM:
    """The checkpoint's model with the weights and the sampler asked for."""
    model = load(options.ckpt, DDPM, raw=options.raw)
    T = model.schedule.T
    if options.sampler:
        model.sampler = instantiate(parser, Namespace(sampler=options.sampler)).sampler  # type: ignore[no-untyped-call]
    elif options.steps is not None and options.steps != model.sampler.nfe(T):
        model.sampler = DDIM(options.steps)
    model.sampler.nfe(T)  # refuses more steps than there are
    return model


def read_conditions(options: Namespace, model: DDPM) -> Conditions:
    """The classes and the guidance asked for.

    Raises:
        UserError: the model cannot be given them.
    """
    guidance: Guidance | None = None
    interval = tuple(options.guidance_interval) if options.guidance_interval else None
    scale = 1.0 if options.guidance is None else options.guidance
    if options.classifier and options.weaker:
        raise UserError("--classifier and --weaker are two kinds of guidance; give one of them")
    if options.classifier:
        guidance = ClassifierGuidance(str(options.classifier), scale, interval)
    elif options.weaker and options.guidance is not None:
        guidance = Autoguidance(str(options.weaker), scale, interval)
    elif options.guidance is not None:
        guidance = ClassifierFree(scale, interval)
    elif options.weaker or interval:
        given = "weaker" if options.weaker else "guidance_interval"
        raise UserError(f"--{given} is of guidance; say how strongly by --guidance, or leave it out")
    if guidance:
        guidance.check_model(model)
    names = model.list_class_names(guidance)
    if options.labels is not None and options.class_names is not None:
        raise UserError("--labels and --class_names both name classes; give one of them")
    given = options.class_names if options.labels is None else options.labels
    if given is None:
        return Conditions(guidance, list(range(len(names))) if names and not model.class_names else None, names)
    if not names:
        raise UserError(
            f"{options.ckpt} was trained without classes, so that it cannot be asked for {given}; leave the class out, "
            "guide it by --classifier, or train one with classes, as configs/digits_conditional.yaml does"
        )
    asked = parse_labels([each.strip() for each in given.split(",")], names, by_name=options.labels is None)
    return Conditions(guidance, asked, names)


def describe_generation(model: DDPM, n: int, raw: bool, conditions: Conditions) -> str:
    """What is drawn and what it costs, in words."""
    evaluations, guidance = model.sampler.nfe(model.schedule.T), conditions.guidance
    if evaluations is None:
        cost = "as many network evaluations as they take"
    elif guidance:
        most = "up to " if guidance.interval else ""
        cost = f"{most}{evaluations * guidance.nfe} evaluations each"
    else:
        cost = f"{evaluations} evaluations each"
    of = "".join(f", {name} {what}" for name, what in conditions.describe().items())
    return f"{n} images with {'raw' if raw else 'EMA'} weights by {model.sampler}{of}: {cost}"


def place_model(model: DDPM, options: Namespace, fabric: Fabric) -> list[int]:
    """Bring the model to where it draws, compiled if asked; a list that grows by the images at every network call."""
    model.to(fabric.device)
    counts: list[int] = []

    def count(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]))

    if options.compile:
        compile_in_place(model.network)
        count = torch.compiler.disable(count)  # type: ignore[no-untyped-call]
    model.network.register_forward_pre_hook(count)
    return counts


def launch_fabric(options: Namespace) -> Fabric:
    """The devices asked for, one process on each.

    Raises:
        UserError: there are none such.
    """
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            strategy=options.strategy or ("ddp" if options.devices * options.num_nodes > 1 else "auto"),
            devices=options.devices,
            num_nodes=options.num_nodes,
            precision=options.precision,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(
            f"{first_line(error)} Mend --accelerator, --devices, --strategy or --precision, or leave them out"
        ) from error
    fabric.launch()
    return fabric


def get_ranks(fabric: Fabric) -> Ranks:
    """Return this process's place among Fabric's ranks."""

    def reduce(tensor: Tensor) -> Tensor:
        total: Tensor = fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[assignment]
        return total

    return Ranks(fabric.global_rank, fabric.world_size, reduce)

"""What commands that draw from a checkpoint have in common: its options, the sampler by name, the devices."""

import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from inspect import isabstract
from pathlib import Path
from types import MappingProxyType

from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from lightning_ddpm.checkpoint import load
from lightning_ddpm.diffusion import DDIM, Sampler
from lightning_ddpm.errors import UserError, first_line
from lightning_ddpm.module import DDPM


def add_model(parser: ArgumentParser, required: bool) -> None:
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


def add_devices(parser: ArgumentParser) -> None:
    """Options that say where."""
    add = parser.add_argument
    add("--accelerator", default="auto", help="cpu, cuda, mps; auto: what there is")
    add("--devices", type=int, default=1, help="how many on each node")
    add("--num_nodes", type=int, default=1, help="how many nodes; start each by torchrun or SLURM")
    add("--strategy", help="as the Trainer's; default: ddp for more than one process")
    add("--precision", default="32-true", help="of the network: 32-true, bf16-mixed, 16-mixed")


def parse(
    parser: ArgumentParser,
    arguments: Sequence[str],
    command: str,
    positive: Iterable[str],
    classes: Mapping[str, type] = MappingProxyType({}),
) -> Namespace:
    """The options, or a sentence on what is wrong with them.

    Args:
        parser: with the options of this file.
        arguments: the command line.
        command: its name.
        positive: options that must be at least 1, where they are given.
        classes: what kind of class the command's other options name.
    """
    try:
        options = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(_explain(str(error), command, {"sampler": Sampler, **classes})) from error
    for name in (*positive, "batch_size", "devices", "num_nodes", "steps"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {options[name]}")
    if options.sampler and options.steps is not None:
        if "steps" not in options.sampler.init_args:
            raise UserError(f"{options.sampler.class_path} takes no --steps; leave it out")
        options.sampler.init_args.steps = options.steps
    return options


def _explain(message: str, command: str, classes: Mapping[str, type]) -> str:
    """What the parser found wrong, in a sentence; of a class it tells every way of reading it that failed."""
    for name, kind in classes.items():
        if f'key "{name}' in message:
            missing = re.search(r"arguments are required: (\w+)", message)
            if missing:
                return f"the {name} needs --{name}.{missing[1]}; {command} --{name}.help NAME lists its options"
            what = f"there is no such {name.removesuffix('s')}, or it has no such option"
            return f"{what}; there are {known(kind)}; {command} --help says more"
    return f"{message}; {command} --help lists the options"


def known(kind: type) -> str:
    """The names of this package's classes of this kind, sorted."""
    found: set[type] = set()
    unseen = [kind]
    while unseen:
        children: list[type] = unseen.pop().__subclasses__()
        found.update(children)
        unseen.extend(children)
    ours = (each for each in found if each.__module__.startswith("lightning_ddpm.") and not isabstract(each))
    return ", ".join(sorted(each.__name__ for each in ours))


def model_of(parser: ArgumentParser, options: Namespace) -> DDPM:
    """The checkpoint's model with the weights and the sampler asked for."""
    model = load(options.ckpt, DDPM, raw=options.raw)
    T = model.schedule.T
    if options.sampler:
        model.sampler = parser.instantiate(Namespace(sampler=options.sampler)).sampler  # type: ignore[no-untyped-call]
    elif options.steps is not None and options.steps != model.sampler.evaluations(T):
        model.sampler = DDIM(options.steps)
    model.sampler.evaluations(T)  # refuses more steps than there are
    return model


def described(model: DDPM, n: int, raw: bool) -> str:
    """What is drawn and what it costs, in words."""
    evaluations = model.sampler.evaluations(model.schedule.T)
    cost = "as many network evaluations as they take" if evaluations is None else f"{evaluations} evaluations each"
    return f"{n} images with {'raw' if raw else 'EMA'} weights by {model.sampler}: {cost}"


def count_evaluations(model: DDPM) -> list[int]:
    """A list that grows by the number of images at every call of the network."""
    counts: list[int] = []
    model.network.register_forward_pre_hook(lambda network, inputs: counts.append(len(inputs[0])))
    return counts


def launched(options: Namespace) -> Fabric:
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

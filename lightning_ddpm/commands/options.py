"""Options of the commands that sample from a checkpoint: the model, the sampler, the conditions and the devices."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lightning_ddpm.commands.condition_files import GivenConditions, add_condition_options, read_condition_files
from lightning_ddpm.commands.parsing import instantiate, parse
from lightning_ddpm.commands.trainer_options import check_strategy, explain_options
from lightning_ddpm.data.class_labels import parse_labels
from lightning_ddpm.diffusion import DDIM, ClassifierFree, Guidance, MeanFlowSampler, QuantileThreshold, Sampler
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.checkpoint_guidance import Autoguidance, ClassifierGuidance
from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import (
    ImageGenerator,
    check_sampling,
    count_nfe,
    name_sampler,
    refuse_option,
    require_generator,
)
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.compile import compile_in_place
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import list_child_processes
from lightning_ddpm.utils.signals import end_with_ranks

CONDITIONS = (
    *("labels", "class_names", "condition", "condition_images"),
    *("guidance", "guidance_interval", "classifier", "weaker"),
)
"""Names of the options that condition the images or guide them."""


class Conditions(NamedTuple):
    """What images are conditioned on, and the guidance towards it.

    Attributes:
        guidance: ``None`` for no guidance beyond conditioning the network.
        labels: the classes, repeated in turn; ``None`` for the frequencies of the training data.
        names: what the labels mean; empty for a model without classes.
        given: the conditions in files; ``None`` without any.
    """

    guidance: Guidance | None
    labels: list[int] | None
    names: Sequence[str]
    given: GivenConditions | None = None

    def request(self, n: int, options: Namespace) -> SampleRequest:
        """Return the request for n images under these conditions, with the seed and batch size of the options."""
        read = self.given.read if self.given else None
        return SampleRequest(n, options.seed, options.batch_size, None, self.guidance, self.labels, read)

    def read_image(self, n: int) -> Tensor | None:
        """Return the images that the first n images are generated from, if there are any."""
        return self.given.read(0, n).image if self.given else None

    def describe(self) -> dict[str, str]:
        """Return the conditions for a record of how images were generated; empty without conditions."""
        others = {"guidance": str(self.guidance)} if self.guidance else {}
        others |= self.given.description if self.given else {}
        if not self.names:
            return others
        requested = [_quote(self.names[label]) for label in self.labels or ()]
        return {"classes": ", ".join(requested) or "as in the training data"} | others


def _quote(name: str) -> str:
    """Return a class name as it stands in a list that is separated by commas."""
    return json.dumps(name, ensure_ascii=False) if "," in name or name.startswith('"') else name


def add_model_options(parser: ArgumentParser, required: bool) -> None:
    """Add the options that determine the images."""
    add = parser.add_argument
    add("--ckpt", type=locate_checkpoint, required=required, help="the model: a file, or the name of one that ships")
    add("--seed", type=int, default=0, help="random seed; image i depends on the seed and i only")
    add("--steps", type=int, help="sampler steps, of DDIM without --sampler; default: the checkpoint's sampler")
    parser.add_subclass_arguments(
        Sampler, "sampler", required=False, help="DDIM, DPMSolverPP, Heun, ...; --sampler.help NAME lists its options"
    )
    add(
        "--threshold",
        type=float,
        metavar="Q",
        help="scale predictions down to the data's range by this quantile, such as 0.995, instead of clipping them",
    )
    add("--batch_size", type=int, help="images at a time on each device; default: 64, on a GPU what its memory holds")
    add("--raw", action="store_true", help="use the raw weights instead of their moving average")
    add("--labels", "--label", metavar="N,N,...", help="classes by number from 0, in turn; default: as in the data")
    add("--class_names", "--class", metavar="NAME,NAME,...", help="the same by class name")
    add_condition_options(parser)
    add("--guidance", type=float, metavar="W", help="guidance scale; 0: unconditional, 1: conditional (default)")
    add("--guidance_interval", type=int, nargs=2, metavar=("FROM", "TO"), help="guide only at these steps of 1..T")
    add("--classifier", type=locate_checkpoint, metavar="CKPT", help="guide by this classifier of noisy images")
    add("--weaker", type=locate_checkpoint, metavar="CKPT", help="guide away from this weaker model (autoguidance)")


def add_device_options(parser: ArgumentParser) -> None:
    """Add the options of the devices."""
    add = parser.add_argument
    add("--accelerator", default="auto", help="cpu, cuda or mps; auto: the best that is available")
    add("--devices", type=int, default=1, help="number of devices on each node")
    add("--num_nodes", type=int, default=1, help="number of nodes; start each by torchrun or SLURM")
    add("--strategy", help="strategy of Lightning; default: ddp for more than one process")
    add("--precision", default="32-true", help="precision of the network: 32-true, bf16-mixed or 16-mixed")
    add("--compile", action="store_true", help="compile the network, which takes a minute")


def parse_options(parser: ArgumentParser, arguments: Sequence[str], command: str, positive: Iterable[str]) -> Namespace:
    """Return the options.

    Args:
        parser: with the options of this file.
        arguments: the command line.
        command: its name.
        positive: names of options that must be at least 1 if they are given.

    Raises:
        UserError: an option is wrong.
    """
    options = parse(parser, arguments, command)
    for name in (*positive, "batch_size", "devices", "num_nodes", "steps"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {options[name]}")
    if options.sampler and options.steps is not None:
        if "steps" not in (options.sampler.get("init_args") or ()):  # a class without arguments has none
            raise UserError(f"{options.sampler.class_path} takes no --steps; remove it")
        options.sampler.init_args.steps = options.steps
    return options


def is_given(value: object) -> bool:
    """Return whether an option was given, from its value: 0 is one; ``None``, and ``False`` of a flag, are not."""
    return value is not None and value is not False


def load_model(parser: ArgumentParser, options: Namespace) -> ImageGenerator:
    """Return the checkpoint's model, of any kind that generates images, with the requested weights and sampler.

    Raises:
        UserError: as :func:`load`, or an option needs a DDPM and the model is none.
    """
    module = load(options.ckpt, LightningModule, raw=options.raw)
    if isinstance(module, DDPM):
        _set_sampler(module, parser, options)
        return module
    model = require_generator(module, str(options.ckpt))
    for name in ("sampler", "steps", "threshold", "trajectory", "compile", *CONDITIONS):
        if is_given(options.get(name)):
            refuse_option(model, f"--{name}")
    return model


def _set_sampler(model: DDPM, parser: ArgumentParser, options: Namespace) -> None:
    T = model.schedule.T
    if options.sampler:
        model.sampler = instantiate(parser, Namespace(sampler=options.sampler)).sampler  # type: ignore[no-untyped-call]
    elif options.steps is not None and options.steps != model.sampler.nfe(T):
        few_steps = isinstance(model.sampler, MeanFlowSampler)
        model.sampler = MeanFlowSampler(options.steps) if few_steps else DDIM(options.steps)
    model.sampler.check_denoiser(model.denoiser)
    if options.threshold is not None:
        model.set_clipping(QuantileThreshold(options.threshold))


def read_conditions(options: Namespace, model: ImageGenerator) -> Conditions:
    """Return the requested classes and guidance, which only a DDPM has.

    Raises:
        UserError: the model does not support them.
    """
    if not isinstance(model, DDPM):  # load_model has refused the options
        return Conditions(None, None, ())
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
        raise UserError(f"--{given} needs a guidance scale; add --guidance W, or remove it")
    if guidance:
        check_sampling(model, model.sampler, guidance)
    names = model.list_class_names(guidance)
    if options.labels is not None and options.class_names is not None:
        raise UserError("--labels and --class_names both name classes; give one of them")
    given = options.class_names if options.labels is None else options.labels
    files = read_condition_files(options, model, guidance)
    if files and files.labels is not None and given is not None:
        raise UserError(f"{options.condition} names the classes; remove --labels and --class_names")
    if given is None and files:
        return Conditions(guidance, files.labels if model.condition_kinds == {"label"} else None, names, files)
    if given is None:
        return Conditions(guidance, list(range(len(names))) if names and not model.class_names else None, names)
    if not names:
        raise UserError(
            f"{options.ckpt} was trained without classes and cannot be conditioned on {given}; remove the class, "
            "guide the model by --classifier, or train a conditional one, as configs/digits_conditional.yaml does"
        )
    requested = parse_labels(given, names, by_name=options.labels is None)
    return Conditions(guidance, requested, names, files)


def describe_clipping(model: ImageGenerator) -> dict[str, str]:
    """Return how predictions are clipped, for a record of how images were generated; empty for the default."""
    return {"clipping": str(model.clipping)} if isinstance(model, DDPM) and model.clipping else {}


def describe_generation(model: ImageGenerator, n: int, raw: bool, conditions: Conditions) -> str:
    """Return a line on the images that are sampled and on their cost."""
    images = f"{n} images with {'raw' if raw else 'EMA'} weights by {name_sampler(model)}"
    if not isinstance(model, DDPM):
        return images
    guidance = conditions.guidance
    nfe = count_nfe(model, SampleRequest(n, guidance=guidance))
    if nfe is None:
        cost = "an adaptive number of network evaluations"
    else:
        most = "up to " if guidance and guidance.interval else ""
        cost = f"{most}{nfe} network evaluations each"
    described = describe_clipping(model) | conditions.describe()
    if conditions.names and conditions.labels:
        described["classes"] = ", ".join(f"{conditions.names[label]} (label {label})" for label in conditions.labels)
    settings = "".join(f", {name} {value}" for name, value in described.items())
    return f"{images}{settings}: {cost}"


def place_model(model: ImageGenerator, options: Namespace, fabric: Fabric) -> list[int]:
    """Move the model to its device, and compile its network if requested.

    Returns:
        A list to which every network evaluation of a DDPM appends its number of images.
    """
    counts: list[int] = []
    cast(LightningModule, model).to(fabric.device)
    if not isinstance(model, DDPM):
        return counts

    def count(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]))

    if options.compile:
        if fabric.device.type != "cpu":  # the compiler itself chooses it only where the batch size is fixed
            model.network.to(memory_format=torch.channels_last)
        compile_in_place(model.network)
        count = torch.compiler.disable(count)  # type: ignore[no-untyped-call]
    model.network.register_forward_pre_hook(count)
    return counts


def launch_fabric(options: Namespace) -> Fabric:
    """Start one process on each requested device.

    Raises:
        UserError: the devices do not exist.
    """
    check_strategy(options.strategy, "--strategy")
    if options.precision == "auto":
        raise UserError("--precision auto is for fit only; give 32-true, bf16-mixed or 16-mixed")
    try:
        strategy = options.strategy or ("ddp" if options.devices * options.num_nodes > 1 else "auto")
        settings = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "precision")}
        fabric = Fabric(strategy=strategy, **settings)
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        raise explain_options(error, options, "--") from error
    end_with_ranks(partial(list_child_processes, fabric.strategy))
    fabric.launch()
    return fabric


def get_ranks(fabric: Fabric) -> Ranks:
    """Return this process's place among Fabric's ranks."""
    reduce = partial(fabric.all_reduce, reduce_op="sum")
    return Ranks(fabric.global_rank, fabric.world_size, reduce)  # type: ignore[arg-type]

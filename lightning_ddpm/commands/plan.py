"""``plan``: predict memory, time and disk of a run before its first step, without a GPU and without its memory."""

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser
from torch import nn

from lightning_ddpm.callbacks import PostHocEMA
from lightning_ddpm.commands.data_shape import fill_shape
from lightning_ddpm.commands.fit import PRECISIONS
from lightning_ddpm.commands.list_options import as_list, set_list_options, split_list_options
from lightning_ddpm.commands.parsing import complete_names, instantiate, parse
from lightning_ddpm.commands.plan_report import Generation, RunPlan, print_plan
from lightning_ddpm.commands.precision import AUTO
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import count_nfe
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.models.step_plan import HALF, Settings, trace_network, trace_training
from lightning_ddpm.utils.cards import CARDS, Card, find_card, get_card
from lightning_ddpm.utils.contracts import describe_class, is_ours
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.jsonargparse_internals import accept_value
from lightning_ddpm.utils.trace_internals import use_fake_tensors
from lightning_ddpm.utils.yaml_text import MODE, build_parser

IGNORED = ("seed_everything", "ckpt_path", "optimizer", "lr_scheduler", "weights_only", "verbose")
"""Keys of a training config that a plan does not depend on."""


def run(arguments: Sequence[str]) -> None:
    """Print the plan of the run that ``fit`` would make with these options.

    Raises:
        UserError: an option is wrong, the card is unknown, or not even one image fits.
    """
    parser = _build_parser()
    others, of_lists = split_list_options(complete_names(arguments))
    options = parse(parser, others, "plan")
    set_list_options(options, of_lists, "plan")
    if not 0 < options.share <= 1:
        raise UserError(f"--share must lie in (0, 1], got {options.share:g}")
    cards = _choose_cards(options.gpu)
    _check_trainer(options.trainer)
    if options.model.get("init_args.network.init_args") is None:
        raise UserError(f"plan needs a diffusion model with a network, got {options.model.class_path}; give --config")
    fill_shape(options.model.init_args, options.data)
    model = _build_model(options)
    trainer = options.trainer
    callbacks = [each for each in as_list(trainer.callbacks) if isinstance(each, Namespace)]
    names = [each.class_path.rpartition(".")[2] for each in callbacks]
    lengths, snapshots = _count_lengths(callbacks, trainer.max_steps)
    averages = names.count("EMA") + lengths
    settings = Settings(HALF.get(str(trainer.precision)), bool(trainer.gradient_clip_val), averages)
    try:
        training, network = trace_training(model, settings), trace_network(model, settings)
    except UserError:
        raise
    except Exception as error:
        if is_ours(type(model.network)) and is_ours(type(model.objective)):
            raise
        kinds = " or ".join(describe_class(type(each)) for each in (model.network, model.objective))
        raise UserError(f"{kinds} cannot be traced without values: {first_line(error)}") from error
    generations = [_describe_generation(each, model) for each in callbacks if "n" in (each.get("init_args") or {})]
    print_plan(
        RunPlan(options, model, training, network, [each for each in generations if each], names, settings, snapshots),
        cards,
    )


def _count_lengths(callbacks: Sequence[Namespace], steps: int | None) -> tuple[int, int]:
    """Return the number of averages whose length is chosen after training, and of the snapshots that are kept.

    Raises:
        UserError: an argument of the callback is wrong.
    """
    given = [each.init_args for each in callbacks if each.class_path.endswith(".PostHocEMA")]
    found = [PostHocEMA(each.every_n_steps, each.sigma_rels) for each in given]
    lengths = [len(each.sigma_rels) for each in found]
    times = [-(-max(steps or 0, 0) // (each.interval.steps or 1)) for each in found]
    return sum(lengths), sum(n * each for n, each in zip(lengths, times, strict=True))


def _build_parser() -> LightningArgumentParser:
    """Return the parser, with the options of ``fit`` and this command's own."""
    description = "Predict memory, time and disk of a run. All options of fit may be given."
    parser = LightningArgumentParser(
        prog="lightning-ddpm plan", description=description, exit_on_error=False, parser_mode=MODE
    )
    add: Any = parser.add_argument
    add("--config", action="config", help="a training config; several are merged from left to right")
    add("--gpu", metavar="NAME", help=f"the card: {', '.join(card.name for card in CARDS)}; default: this machine's")
    add("--share", type=float, default=0.5, help="share of the card's peak and bandwidth that is reached")
    parser.add_lightning_class_args(Trainer, "trainer")
    accept_value(parser, "trainer.precision", AUTO)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(ImageDataModule, "data")
    for name in IGNORED:
        add(f"--{name}", type=Any, help="an option of fit; ignored")
    return parser


def _check_trainer(trainer: Namespace) -> None:
    """Check the Trainer's options that the plan reads.

    Raises:
        UserError: one has no meaning, or ``fit`` alone can choose its value.
    """
    if trainer.precision == AUTO:
        raise UserError("trainer.precision auto is measured by fit alone; give 32-true or bf16-mixed")
    if trainer.precision not in PRECISIONS:
        raise UserError(f"plan knows 32-true, bf16-mixed and 16-mixed, got trainer.precision {trainer.precision}")
    for name in ("accumulate_grad_batches", "num_nodes", "devices"):
        value = trainer.get(name)
        if isinstance(value, int) and value < 1 and (name, value) != ("devices", -1):  # -1: all that there are
            raise UserError(f"trainer.{name} must be at least 1, got {value}")


def _choose_cards(name: str | None) -> list[Card]:
    """Return the requested card, or this machine's, or without a GPU all that are known."""
    if name is not None:
        return [get_card(name)]
    if not torch.cuda.is_available():
        return list(CARDS)
    properties = torch.cuda.get_device_properties(0)
    found = find_card(properties.name)
    if found is None:
        known = ", ".join(card.name for card in CARDS)
        raise UserError(f"this machine's {properties.name} is not in the table of cards; give --gpu, one of {known}")
    return [found._replace(memory=properties.total_memory / 1e9)]


def _build_model(options: Namespace) -> DDPM:
    """Build the model with a network without values.

    Raises:
        UserError: it is no diffusion model.
    """
    config, parser = options.model.clone(), build_parser()
    parser.add_subclass_arguments(nn.Module, "network", fail_untyped=False)
    with use_fake_tensors():
        network = instantiate(parser, Namespace(network=config.init_args.network)).network  # type: ignore[no-untyped-call]
    config.init_args.network, parser = network, build_parser()
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    model = instantiate(parser, Namespace(model=config)).model  # type: ignore[no-untyped-call]
    if not isinstance(model, DDPM):
        raise UserError(f"plan needs a diffusion model, got {options.model.class_path}")
    return model


def _describe_generation(callback: Namespace, model: DDPM) -> Generation | None:
    """Return the images that a callback generates, ``None`` if it generates none."""
    given, T = callback.init_args, model.schedule.T
    name = callback.class_path.rpartition(".")[2]
    if name == "BitsPerDim":
        return given.n and Generation(name, given.n, T, None, None, given.batch_size)
    if "sampler" not in given:
        return None
    parser = build_parser()
    parser.add_subclass_arguments(Sampler, "sampler", required=False)
    parser.add_subclass_arguments(Guidance, "guidance", required=False)
    parts = {key: given.get(key) for key in ("sampler", "guidance") if given.get(key) is not None}
    built = instantiate(parser, Namespace(**parts))  # type: ignore[no-untyped-call]
    nfe = count_nfe(model, SampleRequest(1, sampler=built.get("sampler"), guidance=built.get("guidance")))
    interval = given.get("every_n_steps"), given.get("every_n_epochs")
    return Generation(name, given.n, nfe, *interval, min(given.get("batch_size", given.n), given.n))

"""The options of ``demo``, and its start."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from lightning_ddpm.commands import options as model_options
from lightning_ddpm.commands.demo.studio import Studio
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.checkpoint_source import locate_checkpoint, name_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import write_install_command
from lightning_ddpm.utils.signals import release_signals
from lightning_ddpm.utils.yaml_text import build_parser


def run(arguments: Sequence[str]) -> None:
    """Parse the options and serve the page until a signal stops it."""
    parser = _build_parser()
    options = parse(parser, arguments, "demo")
    given = [name for name in ("accelerator", "precision") if options[name] != parser.get_default(name)]
    more = ["--raw"] * options.raw + [word for name in given for word in (f"--{name}", str(options[name]))]
    if options.max_images < 1:
        raise UserError(f"--max_images must be at least 1, got {options.max_images}")
    try:
        from lightning_ddpm.commands.demo import page, server
    except ImportError as error:
        raise UserError(
            f"the demo is a page of gradio, and {first_line(error)}: {write_install_command('demo')}"
        ) from error
    with server.listen(options.host, options.port) as listener:
        model = load(options.ckpt, DDPM, raw=options.raw)
        options.devices, options.num_nodes, options.strategy, options.compile = 1, 1, None, False
        fabric = model_options.launch_fabric(options)
        evaluations = model_options.place_model(model, options, fabric)
        studio = Studio(model, fabric, evaluations, options.max_images)
        app = page.build_app(studio, name_checkpoint(options.ckpt), options.raw, more)
        release_signals("the demo has stopped")
        server.serve(app, listener, _report_address)


def _report_address(address: str, is_local: bool) -> None:
    report(f"the demo is at {address}; Ctrl-C stops it")
    if not is_local:
        report("every machine that reaches this address can use it; without --host, only this machine can")


def _build_parser() -> ArgumentParser:
    parser = build_parser("demo", "Show a model on a page of this machine: generate, inpaint and interpolate images.")
    add = parser.add_argument
    add("--ckpt", type=locate_checkpoint, required=True, help="the model: a file, or the name of one that ships")
    add("--raw", action="store_true", help="use the raw weights instead of their moving average")
    add("--host", default="127.0.0.1", help="address to listen on; only this machine reaches the default")
    add("--port", type=int, default=7860, help="port to listen on; 0: any that is free")
    add("--max_images", type=int, default=64, help="largest number of images of one request")
    add("--accelerator", default="auto", help="cpu, cuda or mps; auto: the best that is available")
    add("--precision", default="32-true", help="precision of the network: 32-true, bf16-mixed or 16-mixed")
    return parser

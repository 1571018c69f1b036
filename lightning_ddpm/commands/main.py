"""The command line. Each command is imported when it runs, so that help appears at once."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning_ddpm import __version__
from lightning_ddpm.utils.command_start import mark_start
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.signals import release_signals, watch_signals
from lightning_ddpm.utils.threads import limit_spinning, limit_threads

USAGE = """usage: lightning-ddpm COMMAND [options]        (or: python -m lightning_ddpm COMMAND [options])

  new         begin your own project:         new my_project
  fit         train a model:                  fit --config digits
  sample      sample images of a checkpoint:  sample --ckpt digits --n 64 --out DIR
  restore     inpaint, upsample, denoise:     restore --task denoise --sigma 0.2 --ckpt RUN/best.ckpt ...
  evaluate    compute FID, KID, ...:          evaluate --ckpt RUN/best.ckpt --n 50000 --out result.json
  reconstruct average the weights anew:       reconstruct --ckpt RUN --sigma_rel 0.05
  tune        find the best such average:     tune --ckpt RUN --n 5000
  plan        predict memory and hours:       plan --config cifar10 --gpu h100-80gb
  check-data  read every image of a dataset:  check-data --config image_folder --data.root DIR
  validate    compute the validation metrics: validate --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  test        compute the test metrics:       test --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  predict     sample images by the Trainer:   predict --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  export      convert or release a model:     export --ckpt RUN/best.ckpt --format release --out DIR
  demo        show a model on a page:         demo --ckpt digits
  push        upload a release to the Hub:    push DIR USER/MODEL
  import      read another program's model:   import --folder DIR --out FILE.ckpt

COMMAND --help lists the options of a command. Every value of a config is an option as well, for example
--trainer.max_steps 1000. --version prints the version."""

TRAINER = dict.fromkeys(("fit", "validate", "test", "predict"), "fit.run")
COMMANDS = TRAINER | {
    "new": "new.run",
    "sample": "sample.run",
    "restore": "restore.run",
    "evaluate": "evaluate.run",
    "reconstruct": "reconstruct.run",
    "tune": "tune.run",
    "plan": "plan.run",
    "check-data": "check_data.run",
    "export": "convert.run_export",
    "import": "convert.run_import",
    "push": "push.run",
    "demo": "demo.command.run",
}
"""The module and the function of each command, in this package."""
MAX_MESSAGE = 8000
"""Longest error in characters: some name what a file holds, and a file may hold a list of a million items."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command and its options; ``None`` for those of this program, which then also handles signals.

    Returns:
        the exit status: 0; 1 where check-data finds a fault; 2 for bad input or a full disk, reported in a sentence.

    Raises:
        Exception: a bug, of this package or in code of the user's; the first line printed is then the user's own.
    """
    if arguments is None:
        return _run_program(sys.argv[1:])
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(f"lightning-ddpm {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            nearest = import_module("difflib").get_close_matches(command, COMMANDS, n=1)
            fix = f"did you mean {nearest[0]}?" if nearest else "--help lists the commands"
            raise UserError(f"there is no command {command}; {fix}")
        printable = import_module("lightning_ddpm.utils.paths").printable
        if wrong := [printable(each) for each in arguments if printable(each) != each]:
            raise UserError(f"{wrong[0]} is not UTF-8, and could not be written into a file; rename what it stands for")
        with mark_start():
            return _load_command(command)(list(arguments if command in TRAINER else arguments[1:])) or 0
    except Exception as error:
        failure = error
    return _report(failure)


def _run_program(arguments: list[str]) -> int:
    """Run one command as this program, in which a signal ends in a sentence and a status at every moment."""
    command = arguments[0] if arguments else "--help"
    again = "run the same command again"
    if command == "fit":
        watch_signals(f"stopped before the first step; {again}", 0)
    else:
        watch_signals(f"{command} stopped before it was done; {again}", None)
    status = main(arguments)
    if not _flush_output() and command != "fit":  # fit's output is only for viewing
        print("error: the output cannot be written; make room, or send it elsewhere", file=sys.stderr)
        status = status or 2
    release_signals("", status)
    return status


def _flush_output() -> bool:
    """Write what is left of the output; return whether all was written. Python itself would print a traceback."""
    console = sys.modules.get("lightning_ddpm.utils.console")
    lost = console is not None and bool(console.lost)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        lost = True
    return not lost


def _load_command(command: str) -> Callable[[Sequence[str]], int | None]:
    """Return the function that runs the command.

    Its imports create half a million objects that stay. The garbage collector is off meanwhile, which saves a tenth of
    the time, and does not search them afterwards, which would take some 0.4 s each time.
    """
    module, _, name = COMMANDS[command].rpartition(".")
    module = f"{__package__}.{module}"
    if module not in sys.modules:
        limit_spinning()
        gc.disable()
        try:
            import_module(module)
        finally:
            gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # Python collects these objects when it ends
    limit_threads()
    function: Callable[[Sequence[str]], int | None] = getattr(sys.modules[module], name)
    console = import_module("lightning_ddpm.utils.console")
    console.silence_pillow()
    console.let_print_any_name()
    return function


def _report(failure: Exception) -> int:
    """Print the user's mistake and return 2, or raise the exception that is none, after the user's line in it."""
    causes = import_module(f"{__package__}.causes")
    make_printable = import_module("lightning_ddpm.utils.console").make_printable
    mistake = causes.find_user_error(failure)
    if mistake is None:
        theirs = causes.find_user_code(failure)
        if theirs is None and (sentence := causes.describe_full_disk(failure)):
            print(f"error: {make_printable(sentence)}", file=sys.stderr)
            return 2
        raised, line = theirs or (failure, None)
        if line:
            print(f"error: {make_printable(line)}", file=sys.stderr)
        raise raised
    # the worker process of a data loader puts its traceback before the message
    sentence = str(mistake).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip()
    sentence = sentence if len(sentence) <= MAX_MESSAGE else f"{sentence[:MAX_MESSAGE]} ..."
    print(f"error: {make_printable(sentence)}", file=sys.stderr)
    return 2

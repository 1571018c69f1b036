"""The command line. What a command needs is imported when it runs, so that help comes at once."""

import atexit
import gc
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning_ddpm.utils.console import silence_pillow
from lightning_ddpm.utils.errors import UserError

USAGE = """usage: lightning-ddpm COMMAND [options]        (or: python -m lightning_ddpm COMMAND [options])

  fit         train a model:                 fit --config configs/digits.yaml
  sample      draw images from a checkpoint: sample --ckpt checkpoints/pretrained/digits.ckpt --n 64 --out DIR
  restore     fill in, enlarge, denoise:     restore --task denoise --sigma 0.2 --ckpt RUN/best.ckpt ...
  evaluate    FID, KID, ... of images:       evaluate --ckpt RUN/best.ckpt --n 50000 --out result.json
  check-data  read every image:              check-data --config configs/image_folder.yaml --data.root DIR
  validate    loss and Fréchet distance:     validate --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  test        the same, on held-out images:  test --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  predict     images through the Trainer:    predict --config RUN/config.yaml --ckpt_path RUN/best.ckpt
  export      a checkpoint for diffusers:    export --ckpt RUN/best.ckpt --format diffusers --out DIR
  import      a checkpoint from diffusers:   import --folder DIR --out FILE.ckpt

COMMAND --help lists its options; any value of a config can be given as an option, as in --trainer.max_steps 1000."""

TRAINER = dict.fromkeys(("fit", "validate", "test", "predict"), "fit.run")
COMMANDS = TRAINER | {
    "sample": "sample.run",
    "restore": "restore.run",
    "evaluate": "evaluate.run",
    "check-data": "check_data.run",
    "export": "convert.run_export",
    "import": "convert.run_import",
}
"""Where each is, in this package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where check-data finds a fault, or 2 for bad input, said in a
    sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if command not in COMMANDS:
            raise UserError(f"there is no command {command!r}; try --help")
        silence_pillow()
        return _load_command(command)(arguments if command in TRAINER else arguments[1:]) or 0
    except Exception as error:
        mistake = _find_user_error(error)
        if mistake is None:
            raise
        # from a data loader's worker it comes with that process's traceback before it
        sentence = str(mistake).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip()
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _load_command(command: str) -> Callable[[Sequence[str]], int | None]:
    """What runs the command. Its imports make half a million objects that stay: meanwhile nothing looks for garbage,
    a tenth of their time, and afterwards nobody looks among them again, some 0.4 s each time."""
    module, _, name = COMMANDS[command].partition(".")
    module = f"{__package__}.{module}"
    if module not in sys.modules:
        gc.disable()
        try:
            import_module(module)
        finally:
            gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # Python's own farewell looks among them
    function: Callable[[Sequence[str]], int | None] = getattr(sys.modules[module], name)
    return function


def _find_user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an exception, if that is what it comes from."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None

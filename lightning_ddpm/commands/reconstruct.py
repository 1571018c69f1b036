"""``reconstruct``: make an average of the weights of another length from a run's snapshots."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.models.checkpoint import build_checkpoint, read_newest_checkpoint
from lightning_ddpm.models.power_average import check_length
from lightning_ddpm.models.snapshots import Reconstruction, format_length, reconstruct
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_output_file, write_atomically
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.torch_files import save_with_digest
from lightning_ddpm.utils.yaml_text import build_parser

VISIBLE = 0.1
"""Error of a profile from which on the average is another one than was requested."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and write the checkpoint."""
    description = "Write the averaged weights of another length, from the snapshots of the callback PostHocEMA."
    parser = build_parser("reconstruct", description)
    add = parser.add_argument
    add("--ckpt", type=resolve_path, required=True, metavar="RUN", help="the run's folder, or a checkpoint in it")
    add("--sigma_rel", type=float, required=True, help="length of the average as a share of training, such as 0.05")
    add("--step", type=int, help="average until this step, after which there is a snapshot; default: the last one")
    add("--out", type=resolve_path, metavar="FILE.ckpt", help="to write; default: RUN/sigma_rel_LENGTH.ckpt")
    options = parse(parser, arguments, "reconstruct")
    check_length(options.sigma_rel)
    folder = find_run(options.ckpt)
    out = options.out or name_checkpoint(folder, options.sigma_rel, options.step)
    check_output_file(out, "--out", [".ckpt"])
    if out.exists():
        raise UserError(f"{out} exists already; choose another name by --out, or delete it")
    found = reconstruct(folder, options.sigma_rel, options.step)
    write_average(out, folder, options.sigma_rel, found)
    report(
        f"wrote {out}: the average of length {options.sigma_rel:g} of {found.step} steps, from {found.snapshots} "
        f"snapshots; its profile differs by {found.error:.2%} from the exact one"
    )
    if found.error > VISIBLE:
        report("that is another average than was requested; more snapshots (PostHocEMA's every_n_steps) come nearer")


def find_run(path: Path) -> Path:
    """Return the folder of a run, which is given itself or by a checkpoint in it.

    Raises:
        UserError: there is none.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / "last.ckpt").exists():
        raise UserError(f"there is no run in {path}: no last.ckpt; give the folder of a run that fit has trained")
    return folder


def name_checkpoint(folder: Path, sigma_rel: float, step: int | None = None) -> Path:
    """Return the path of an average's checkpoint in a run's folder, where evaluate finds the run's config."""
    end = "" if step is None else f"_step_{step}"
    return folder / f"sigma_rel_{format_length(sigma_rel)}{end}.ckpt"


def write_average(out: Path, folder: Path, sigma_rel: float, found: Reconstruction) -> None:
    """Write a checkpoint with these weights; what builds the model comes from the run's last one.

    Raises:
        UserError: the weights are not those of the run's model.
    """
    checkpoint, path = read_newest_checkpoint(folder / "last.ckpt")
    state = checkpoint["state_dict"]
    wrong = [name for name, each in found.weights.items() if name not in state or state[name].shape != each.shape]
    if wrong:
        raise UserError(
            f"the snapshots in {folder} are of another model than {path}: it has no {wrong[0]} of that shape"
        )
    content = build_checkpoint(state | found.weights, checkpoint["hyper_parameters"])
    content["average"] = {"sigma_rel": sigma_rel, "step": found.step, "error": found.error}
    write_atomically(out, partial(save_with_digest, content))

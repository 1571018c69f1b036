"""``tune``: choose the length of the average of the weights by a metric, and report it on other images.

The metric is the first one in evaluate's table.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_ddpm.commands import evaluate
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.commands.reconstruct import find_run, name_checkpoint, write_average
from lightning_ddpm.metrics.suite import is_higher_better
from lightning_ddpm.models.power_average import check_length
from lightning_ddpm.models.snapshots import format_length, reconstruct
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_output_file, write_json
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.text_files import read_json
from lightning_ddpm.utils.yaml_text import build_parser

OWN = ("--ckpt", "--sigma_rels", "--seed", "--report_seed", "--out")
LENGTHS = (0.03, 0.05, 0.07, 0.1, 0.13, 0.17, 0.21)
"""Lengths that are compared by default; Karras et al. 2024 find their best ones between 0.015 and 0.2."""
REFUSED = ("--devices", "--num_nodes", "--strategy", "--images", "--raw", "--save_stats")
"""Options of evaluate that are not for one run's averages on one device."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, evaluate the average of each length, and the best one again on images of another seed."""
    parser = build_parser("tune", "Choose the length of the average of the weights. Other options: those of evaluate.")
    add = parser.add_argument
    add("--ckpt", type=resolve_path, required=True, metavar="RUN", help="the run's folder, or a checkpoint in it")
    add("--sigma_rels", type=float, nargs="+", default=list(LENGTHS), help="lengths to compare, as shares of training")
    add("--seed", type=int, default=0, help="seed of the images by which the length is chosen")
    add("--report_seed", type=int, default=1, help="seed of the other images, of which the best one is reported")
    add("--out", type=resolve_path, metavar="FILE.json", help="write all values to this file")
    own, others = _split(arguments)
    options = parse(parser, own, "tune")
    _check(options, others)
    folder = find_run(options.ckpt)
    if options.out:
        check_output_file(options.out, "--out", [".json"])

    metric, values = "", dict[float, float]()
    with tempfile.TemporaryDirectory(prefix=".tune.", dir=folder) as scratch:
        for sigma_rel in options.sigma_rels:
            path, found = Path(scratch, "average.ckpt"), reconstruct(folder, sigma_rel)
            write_average(path, folder, sigma_rel, found)
            report(f"sigma_rel {sigma_rel:g}, whose profile differs by {found.error:.2%} from the exact one:")
            metric, result = _evaluate(path, folder, sigma_rel, options.seed, others)
            values[sigma_rel] = result["metrics"][metric]["value"]
    known = {each: value for each, value in values.items() if value is not None}
    if not known:
        raise UserError(f"{metric} of no length is finite; evaluate more images")
    best = (max if is_higher_better(metric) else min)(known, key=lambda each: known[each])
    path = name_checkpoint(folder, best)
    write_average(path, folder, best, reconstruct(folder, best))
    report(f"sigma_rel {best:g} has the best {metric}, {known[best]:.5g}, of images of seed {options.seed}")
    _, result = _evaluate(path, folder, best, options.report_seed, others)
    value = result["metrics"][metric]["value"]
    shown = "not finite" if value is None else f"{value:.5g}"
    report(f"wrote {path}: {metric} {shown} of images of seed {options.report_seed}")
    if options.out:
        compared = {format_length(each): value for each, value in values.items()}
        chosen = {"metric": metric, "seed": options.seed, "values": compared, "best": best}
        write_json(options.out, {"chosen": chosen, "reported": result})
        report(f"wrote {options.out}")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of this command's own options, and those of evaluate's."""
    parts: tuple[list[str], list[str]] = [], []
    is_own = True
    for word in arguments:
        if word.startswith("--") or word == "-h":
            is_own = word.partition("=")[0] in (*OWN, "--help", "-h")
        parts[0 if is_own else 1].append(word)
    return parts


def _check(options: Any, others: Sequence[str]) -> None:
    """Check what evaluate does not know.

    Raises:
        UserError: a length does not exist, is given twice, the seeds are equal, or an option is not for this command.
    """
    for each in options.sigma_rels:
        check_length(each)
    if len(options.sigma_rels) != len(set(map(format_length, options.sigma_rels))) or len(options.sigma_rels) < 2:
        raise UserError(f"--sigma_rels compares two or more different lengths, got {options.sigma_rels}")
    if options.seed == options.report_seed:
        raise UserError(
            f"--report_seed must differ from --seed, got {options.seed} twice: the best of several is better by chance "
            "on the images that it was chosen by"
        )
    if given := [each for each in others if each.partition("=")[0] in REFUSED]:
        raise UserError(f"tune evaluates the averages of one run, on one device; remove {given[0]}")


def _evaluate(
    path: Path, folder: Path, sigma_rel: float, seed: int, others: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the name of the first metric in evaluate's table, and what that writes into the run's folder ``tune``."""
    out = folder / "tune" / f"sigma_rel_{format_length(sigma_rel)}_seed_{seed}.json"
    given = any(each.partition("=")[0] == "--reference" for each in others)
    reference = [] if given else ["--reference", str(folder / "config.yaml")]
    evaluate.run([*others, *reference, "--ckpt", str(path), "--seed", str(seed), "--out", str(out)])
    result: dict[str, Any] = read_json(out)
    result["images"]["checkpoint"] = str(name_checkpoint(folder, sigma_rel))  # as reconstruct writes the same file
    write_json(out, result)
    return next(iter(result["metrics"])), result

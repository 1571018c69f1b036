"""``push``: upload a release to Hugging Face's Hub."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lightning_ddpm.commands.model_card import UNNAMED
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.interop import hub
from lightning_ddpm.models.checkpoint import read_checkpoint
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_published, read_utf8, write_atomically
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.yaml_text import build_parser


def run(arguments: Sequence[str]) -> None:
    """Parse the options, check the release and upload it."""
    parser = build_parser("push", "Upload a release to Hugging Face's Hub: `push DIR USER/MODEL`.")
    add = parser.add_argument
    add("--folder", type=resolve_path, required=True, help="a release of `export`; may be the first word")
    add("--repo", type=hub.check_repository, required=True, help="USER/MODEL on the Hub; may be the second word")
    add("--private", action="store_true", help="make a new repository private")
    words = list(arguments)
    positional = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    names = ("--folder", "--repo")[:positional]
    given = [word for pair in zip(names, words, strict=False) for word in pair]
    options = parse(parser, [*given, *words[len(names) :]], "push")
    folder = options.folder
    missing = [name for name in hub.NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}; write a release by `export --format release --out DIR`")
    for path in sorted(folder.iterdir()):
        if path.name not in hub.FILES:
            raise UserError(f"{folder} holds {path.name}, which is no part of a release; move it elsewhere")
        if path.is_symlink() or not path.is_file():  # what it leads to would be uploaded
            raise UserError(f"{path} is a link or a folder; a release holds files alone, as `export` writes them")
    check_published(folder / hub.WEIGHTS)
    _check_weights(folder / hub.WEIGHTS)
    read_checkpoint(folder / hub.CHECKPOINT)  # compares its digest, too, and refuses what is no plain data
    card = read_utf8(folder / hub.CARD).replace(f"{hub.SCHEME}{UNNAMED}", f"{hub.SCHEME}{options.repo}")
    write_atomically(folder / hub.CARD, lambda file: file.write(card.encode()))
    url = hub.upload(folder, options.repo, options.private)
    report(f"uploaded {folder} to {url}; `sample --ckpt {hub.SCHEME}{options.repo}` generates images from it")


def _check_weights(path: Path) -> None:
    """Raise UserError if a file is no safetensors, whatever its name and its digest: a pickle could run code."""
    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except SafetensorError as error:
        raise UserError(f"{path} holds no safetensors ({first_line(error)}); write it again by `export`") from error

"""Models on Hugging Face's Hub, by huggingface_hub: its files are downloaded, and nothing in them is run.

A model is a repository ``USER/MODEL`` with the files of ``export --format release``. The token, the cache and another
endpoint are those of huggingface_hub: ``hf auth login``, ``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT``.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import write_install_command

SCHEME = "hf://"
CHECKPOINT, WEIGHTS, CONFIG = "model.ckpt", "model.safetensors", "config.yaml"
CARD, SAMPLES, DIGESTS = "README.md", "samples.png", "SHA256SUMS"
FILES = (CHECKPOINT, WEIGHTS, CONFIG, CARD, SAMPLES, DIGESTS)
"""All that a release can hold."""
NEEDED = (CHECKPOINT, WEIGHTS, CARD, DIGESTS)
"""What each one holds."""
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?"


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        UserError: it is not ``USER/MODEL`` in the characters that the Hub allows.
    """
    if not re.fullmatch(f"{_NAME}/{_NAME}", name) or "--" in name or ".." in name or name.endswith(".git"):
        raise UserError(f"a model on the Hub is called USER/MODEL, in letters, digits, - _ and ., got {name}")
    return name


def download(address: str) -> Path:
    """Download a model, unless it is in huggingface_hub's cache already.

    Args:
        address: ``hf://USER/MODEL``, or ``hf://USER/MODEL@REVISION`` for a branch, a tag or a commit.

    Returns:
        the path of its checkpoint; the config and the digests lie beside it.

    Raises:
        UserError: the address is wrong, the model cannot be downloaded, or it has no checkpoint of this package.
    """
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    check_repository(repository)
    if "@" in address and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,200}", revision) or ".." in revision):
        raise UserError(f"a revision is a branch, a tag or a commit, got {revision!r} in {address}")
    with _explain(repository):
        from huggingface_hub import errors, hf_hub_download

        path = Path(hf_hub_download(repository, CHECKPOINT, revision=revision or None))
        for name in (CONFIG, DIGESTS):
            with suppress(errors.EntryNotFoundError):
                hf_hub_download(repository, name, revision=path.parent.name)  # the commit
    return path


def find_address(path: Path) -> str | None:
    """Return the address and the commit of a checkpoint in huggingface_hub's cache; ``None`` for any other file."""
    place = "/".join(path.parts[-4:])
    found = re.fullmatch(rf"models--({_NAME})--({_NAME})/snapshots/([0-9a-f]+)/{re.escape(CHECKPOINT)}", place)
    return f"{SCHEME}{found[1]}/{found[2]}@{found[3]}" if found else None


def upload(folder: Path, repository: str, private: bool) -> str:
    """Upload a release, and create its repository unless it exists; return its address on the web.

    Args:
        folder: what ``export --format release`` wrote; other files in it are not uploaded.
        repository: its name, ``USER/MODEL``.
        private: whether a new repository is private.

    Raises:
        UserError: it cannot be uploaded.
    """
    with _explain(check_repository(repository)):
        from huggingface_hub import HfApi

        api = HfApi(library_name="lightning-ddpm")
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload a release"
        )
    return str(url)


@contextmanager
def _explain(repository: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub and of the network in the context into sentences."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"the Hub needs huggingface_hub ({error}): {write_install_command('hub')}") from error
    except Exception as error:  # its own, of its HTTP library, and OSError
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError):
            fix = "it cannot be reached, and is not in the cache; connect to the network"
        elif isinstance(error, errors.EntryNotFoundError):
            fix = f"it has no {CHECKPOINT}, and was not made by `lightning-ddpm export --format release`"
        elif isinstance(error, errors.GatedRepoError):
            fix = "accept its conditions on the web, and log in by `hf auth login`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            fix = "there is none of this name, or it is private: check the name, or log in by `hf auth login`"
        elif isinstance(error, errors.RevisionNotFoundError):
            fix = "it has no such revision"
        elif isinstance(error, errors.HfHubHTTPError | errors.LocalTokenNotFoundError):
            fix = f"the Hub refused: {first_line(error)}; `hf auth login` sets a token, which needs the right to write"
        elif isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "requests"):
            fix = f"it cannot be reached: {first_line(error)}"
        else:
            raise
        raise UserError(f"{SCHEME}{repository}: {fix}") from error

"""Checkpoints are read without running code that is in them; one that cannot be read is an error in one sentence."""

import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY
from helpers.tiny import tiny_model
from jsonargparse import ArgumentParser

from lightning_ddpm.diffusion import DDIM, Cosine
from lightning_ddpm.models.checkpoint import build_hyper_parameters, load, read_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.models.trusted_imports import list_modules_to_trust
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError

CONFIG: dict[str, Any] = {
    "class_path": "lightning_ddpm.models.ddpm.DDPM",
    "init_args": {
        "network": {
            "class_path": "lightning_ddpm.networks.UNet",
            "init_args": {"channels": 1, "size": 8, "width": 8, "multipliers": [1, 2], "attention": [4]}
            | {"blocks": 1, "groups": 4},
        },
        "schedule": {"class_path": "lightning_ddpm.diffusion.Cosine", "init_args": {"steps": 20}},
        "sampler": {"class_path": "lightning_ddpm.diffusion.DDIM", "init_args": {"steps": 3}},
    },
}


class RunsCode:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def content() -> dict[str, Any]:
    """Return the content of a valid checkpoint, whose averaged weights are twice the raw ones."""
    raw = tiny_model().state_dict()
    return {
        "state_dict": {name: 2 * value for name, value in raw.items()},
        "current_model_state": raw,
        "hyper_parameters": build_hyper_parameters(CONFIG),
    }


def read_error(path: Path) -> str:
    """Return the message of reading the file; loading it as a model raises the same."""
    with pytest.raises(UserError) as reading:
        read_checkpoint(path)
    with pytest.raises(UserError) as loading:
        load(path, DDPM)
    assert str(reading.value) == str(loading.value)
    assert str(path) in str(reading.value)
    assert "\n" not in str(reading.value)
    return str(reading.value)


def test_a_model_is_built_and_filled_from_its_checkpoint_alone(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    model, raw = load(tmp_path / "model.ckpt", DDPM), load(tmp_path / "model.ckpt", DDPM, raw=True)
    assert not model.training
    assert model.schedule.T == 20
    assert model.sampler.steps == 3
    for name, value in content["current_model_state"].items():
        assert torch.equal(raw.state_dict()[name], value)
        assert torch.equal(model.state_dict()[name], 2 * value)


def test_a_model_is_built_whatever_optimizer_another_torch_has_saved(tmp_path: Path, content: dict[str, Any]) -> None:
    arguments = {"lr": 0.1, "an_argument_of_the_future": True}
    content["hyper_parameters"]["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": arguments}
    content["hyper_parameters"]["lr_scheduler"] = {"class_path": "torch.optim.lr_scheduler.NotYetKnown"}
    torch.save(content, tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt", DDPM).schedule.T == 20


def test_missing_raw_weights_are_an_error(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["current_model_state"]
    torch.save(content, tmp_path / "model.ckpt")
    load(tmp_path / "model.ckpt", DDPM)
    with pytest.raises(UserError, match=r"no raw weights .* omit --raw"):
        load(tmp_path / "model.ckpt", DDPM, raw=True)


def test_a_missing_file_is_an_error_that_names_the_checkpoints_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    assert f"there is {tmp_path / 'last.ckpt'}" in read_error(tmp_path / "lost.ckpt")
    assert "there is no checkpoint" in read_error(tmp_path / "no folder" / "lost.ckpt")
    message = read_error(tmp_path)
    assert f"there is no checkpoint {tmp_path}, which is a folder; there is {tmp_path / 'last.ckpt'}" in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path: Path, content: dict[str, Any], share: float) -> None:
    path = tmp_path / "half.ckpt"
    torch.save(content, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    read_error(path)


@pytest.mark.parametrize("first", range(0, 256, 3))
def test_any_other_file_is_an_error(tmp_path: Path, first: int) -> None:
    path = tmp_path / "text.ckpt"
    path.write_bytes(bytes([first]) + b"his is a text\nand no checkpoint at all.\n" * 3)
    read_error(path)


@pytest.mark.parametrize(
    "foreign",
    [
        {"model": torch.zeros(3), "epoch": 7},
        {"state_dict": {"weight": torch.zeros(3)}},
        {"state_dict": {}, "hyper_parameters": {"lr": 0.1}},
        {"state_dict": {}, "hyper_parameters": None},
        [torch.zeros(3)],
        torch.zeros(3),
    ],
    ids=["other keys", "bare weights", "other hyper-parameters", "no hyper-parameters", "a list", "a tensor"],
)
def test_a_checkpoint_of_another_program_is_an_error(tmp_path: Path, foreign: object) -> None:
    torch.save(foreign, tmp_path / "foreign.ckpt")
    assert re.search("of another program|does not describe its model", read_error(tmp_path / "foreign.ckpt"))


@pytest.mark.parametrize("how", ["torch.save", "torch's old format", "pickle"])
def test_code_in_a_checkpoint_is_refused_without_running_it(tmp_path: Path, content: dict[str, Any], how: str) -> None:
    path, trace = tmp_path / "code.ckpt", tmp_path / "it ran"
    content["callbacks"] = RunsCode(trace)
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["callbacks"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch.save")
    assert "is refused" in read_error(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert trace.exists(), "the file holds no code, so that this test proves nothing"


def test_a_checkpoint_that_is_not_the_published_one_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    published = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
    assert "digits.ckpt" in (published.parent / "SHA256SUMS").read_text()
    load(published, DDPM)
    shutil.copy(published.parent / "SHA256SUMS", tmp_path)
    torch.save(content, tmp_path / "digits.ckpt")
    assert "its SHA-256 is " in read_error(tmp_path / "digits.ckpt")
    torch.save(content, tmp_path / "another.ckpt")
    load(tmp_path / "another.ckpt", DDPM)


MINE = """
import os
from lightning_ddpm.networks import UNet

os.mkdir("it ran")

class Net(UNet):
    pass

def alpha_bar(time):
    os.mkdir("it ran")
"""


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, which holds the checkpoint and a module that is not trusted."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "network.yaml").write_text("class_path: mine.Net")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_network(named: object) -> dict[str, Any]:
    return {"network": named}


def change_alpha_bar(named: object) -> dict[str, Any]:
    arguments = {"alpha_bar": named, "steps": 20}
    return {"schedule": {"class_path": "lightning_ddpm.diffusion.AlphaBarFunction", "init_args": arguments}}


def change_spacing(named: object) -> dict[str, Any]:
    arguments = {"steps": 3, "spacing": named}
    return {"sampler": {"class_path": "lightning_ddpm.diffusion.DDIM", "init_args": arguments}}


MKDIR = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "it ran"]}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_path": "mine.Net"}, "mine.Net"),
        (change_network({"class_path": "mine.Net"}), "mine.Net"),
        (change_network("mine.Net"), "mine.Net"),
        (change_network('{"class_path": "mine.Net"}'), "mine.Net"),
        (change_network({"class_path": "torch.hub.load"}), "torch.hub.load"),
        (change_alpha_bar("mine.alpha_bar"), "mine.alpha_bar"),
        (change_alpha_bar("os.system"), "os.system"),
        (change_alpha_bar("lightning_ddpm.utils.files.os.system"), "posix.system"),
        (change_alpha_bar(MKDIR), "subprocess.Popen"),
        (change_spacing("builtins.exec"), "builtins.exec"),
        (change_spacing(MKDIR), "subprocess.Popen"),
    ],
)
def test_a_checkpoint_imports_trusted_code_only(
    change: dict[str, Any], named: str, working_folder: Path, content: dict[str, Any]
) -> None:
    content["hyper_parameters"].update(change)
    torch.save(content, "model.ckpt")
    with pytest.raises(UserError) as error:
        load("model.ckpt", DDPM)
    assert str(error.value).startswith(
        f"model.ckpt is refused: it names {named}, which is not part of lightning_ddpm, "
    )
    own = named.split(".")[0] not in (*sys.stdlib_module_names, "torch")
    fix = f"set LIGHTNING_DDPM_TRUST={named.split('.')[0]}" if own else "would run its code; do not use this file"
    assert str(error.value).endswith(fix)
    assert not (working_folder / "it ran").exists()
    assert "mine" not in sys.modules


def test_the_error_names_all_modules_that_must_be_trusted(
    working_folder: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content["hyper_parameters"].update(change_alpha_bar("mine.f") | {"objective": {"class_path": "ours.Loss"}})
    torch.save(content, "model.ckpt")
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "theirs")
    with pytest.raises(UserError, match=r"set LIGHTNING_DDPM_TRUST=theirs,(mine,ours|ours,mine)$"):
        load("model.ckpt", DDPM)
    assert set(list_modules_to_trust(content["hyper_parameters"])) == {"mine", "ours"}


@pytest.mark.parametrize("name", ["os.system", "sys.exit", "subprocess.run", "builtins.eval", "shutil.rmtree"])
def test_no_message_suggests_to_trust_python_itself(
    name: str, working_folder: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content["hyper_parameters"].update(change_alpha_bar("mine.f") | {"objective": {"class_path": name}})
    torch.save(content, "model.ckpt")
    with pytest.raises(UserError, match=f"names {name}, which is not part of .*; do not use this file$"):
        load("model.ckpt", DDPM)


def test_a_trusted_module_that_cannot_be_found_is_named(
    working_folder: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content["hyper_parameters"].update({"objective": {"class_path": "elsewhere.Loss"}})
    torch.save(content, "model.ckpt")
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "elsewhere")
    with pytest.raises(UserError, match=r"names elsewhere.Loss, .*No module named 'elsewhere'.*PYTHONPATH"):
        load("model.ckpt", DDPM)


def test_a_checkpoint_includes_no_other_file(working_folder: Path, content: dict[str, Any]) -> None:
    content["hyper_parameters"].update(change_network("network.yaml"))
    torch.save(content, "model.ckpt")
    with pytest.raises(UserError, match="cannot be built"):
        load("model.ckpt", DDPM)
    assert not (working_folder / "it ran").exists()


def test_modules_that_the_user_trusts_are_imported_and_later_parsers_are_not_restricted(
    working_folder: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = content["hyper_parameters"]["network"]["init_args"]
    content["hyper_parameters"].update(change_network({"class_path": "mine.Net", "init_args": arguments}))
    torch.save(content, "model.ckpt")
    with pytest.raises(UserError, match="is refused"):
        load("model.ckpt", DDPM)
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "other, mine")
    assert type(load("model.ckpt", DDPM).network).__name__ == "Net"
    assert (working_folder / "it ran").exists(), "the module was not run, so that the tests above prove nothing"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--call", type=Callable)
    assert parser.parse_object({"call": "shutil.copyfileobj"}).call is shutil.copyfileobj


def test_a_model_of_another_kind_is_an_error(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="cannot be built as ImageClassifier"):
        load(tmp_path / "model.ckpt", ImageClassifier)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_path": "lightning_ddpm.module.DDPM"}, "lightning_ddpm.module.DDPM"),
        ({"_class_path": "lightning_ddpm.models.ddpm.NoSuchModel"}, "lightning_ddpm.models.ddpm.NoSuchModel"),
        (change_network({"class_path": "lightning_ddpm.networks.HalfUNet"}), "lightning_ddpm.networks.HalfUNet"),
        (change_spacing("lightning_ddpm.diffusion.uniform"), "lightning_ddpm.diffusion.uniform"),
    ],
)
def test_a_name_of_an_older_version_is_an_error_that_leads_to_the_renames(
    change: dict[str, Any], named: str, tmp_path: Path, content: dict[str, Any]
) -> None:
    content["hyper_parameters"].update(change)
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError) as error:
        load(tmp_path / "model.ckpt", DDPM)
    assert str(error.value) == (
        f"{tmp_path / 'model.ckpt'} was written by an older version of lightning_ddpm: it names {named}, which this "
        "version does not have; see the table of renames in CHANGELOG.md"
    )


def test_other_text_with_dots_is_not_taken_for_code(tmp_path: Path, content: dict[str, Any]) -> None:
    """Neither where a model can be built, nor where it fails for another reason."""
    content["hyper_parameters"]["class_names"] = ["os.system", "mr.cat"]
    content["hyper_parameters"]["network"]["init_args"]["classes"] = 2
    model = DDPM(UNet(**content["hyper_parameters"]["network"]["init_args"]), Cosine(steps=20), DDIM(steps=3))
    torch.save(content | {"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt").class_names == ["os.system", "mr.cat"]
    content["hyper_parameters"]["class_names"] = ["st.bernard", "mr.cat"]
    content["hyper_parameters"]["network"]["init_args"]["width"] = "wide"
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"which cannot be built as DDPM: [^$]*wide"):
        load(tmp_path / "model.ckpt")


def test_weights_that_do_not_fit_the_model_are_an_error(tmp_path: Path, content: dict[str, Any]) -> None:
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError):
        load(tmp_path / "model.ckpt", DDPM)

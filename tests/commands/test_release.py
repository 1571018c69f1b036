"""A release holds the averaged weights and a card that is true, goes to a Hub and comes back, and runs no code."""

import json
import pickle
import shutil
import sys

import pytest
import torch
import yaml
from helpers.command_outputs import get_error_sentence, read_files
from helpers.hub_server import serve_hub
from safetensors.torch import load_file

import lightning_ddpm
from lightning_ddpm.commands.condition_files import list_condition_options
from lightning_ddpm.commands.model_card import ModelFacts, write_card
from lightning_ddpm.interop import hub as hub_module
from lightning_ddpm.models.checkpoint import read_checkpoint
from lightning_ddpm.models.checkpoint_source import locate_checkpoint, name_checkpoint
from lightning_ddpm.utils.condition import ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_file

TINY = ("--accelerator", "cpu", "--steps", 2)


@pytest.fixture(scope="module")
def release(digits_run, tmp_path_factory):
    """A release of a run, with metrics: its folder."""
    from lightning_ddpm.commands.main import main

    folder = tmp_path_factory.mktemp("release")
    evaluate = ["evaluate", "--ckpt", digits_run.folder / "best.ckpt", "--n", 70, "--extractor", "DigitsFeatures"]
    evaluate += ["--metrics", "fid", "kid", "--out", folder / "result.json", *TINY]
    export = ["export", "--format", "release", "--ckpt", digits_run.folder / "best.ckpt", "--out", folder / "tiny"]
    export += ["--metrics", folder / "result.json", "--license", "cc-by-4.0", "--samples", 4]
    for arguments in (evaluate, export):
        assert main([str(word) for word in arguments]) == 0
    return folder / "tiny"


def forget_settings(monkeypatch):
    """Let huggingface_hub be imported again: it reads the environment variables of its settings then."""
    for module in [each for each in sys.modules if each.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the Hub, which this process uses, with a token that may write."""
    with serve_hub() as served:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        forget_settings(monkeypatch)
        settings = {"HF_ENDPOINT": served.url, "HF_TOKEN": served.token, "HF_HOME": tmp_path / "hf"}
        settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": 1, "HF_HUB_DISABLE_TELEMETRY": 1, "HF_HUB_OFFLINE": 0}
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        yield served


def test_a_release_holds_the_averaged_weights_twice_and_no_other_pickle(release, digits_run):
    files = read_files(release)
    assert sorted(map(str, files)) == sorted(hub_module.FILES)
    trained = torch.load(digits_run.folder / "best.ckpt", weights_only=True)
    released = torch.load(release / "model.ckpt", weights_only=True)
    assert released["optimizer_states"] == []
    for weights in (released["state_dict"], load_file(release / "model.safetensors")):
        assert weights.keys() == trained["state_dict"].keys()
        assert all(torch.equal(weight, trained["state_dict"][name]) for name, weight in weights.items())
    assert any(not torch.equal(w, trained["state_dict"][n]) for n, w in trained["current_model_state"].items())
    pickles = [name for name, content in files.items() if content[:2] in (b"\x80\x02", b"PK")]
    assert [str(name) for name in pickles] == ["model.ckpt"]
    assert files.keys() >= {release.joinpath("config.yaml").relative_to(release)}
    assert (release / "config.yaml").read_bytes() == (digits_run.folder / "config.yaml").read_bytes()


def test_the_card_states_what_was_measured_and_how(release, digits_run):
    result = json.loads((release.parent / "result.json").read_text())
    front, text = (release / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    for name, metric in result["metrics"].items():
        (line,) = [each for each in text.splitlines() if each.startswith(f"| {name} |")]
        cells = [each.strip() for each in line.strip("|").split("|")]
        assert cells[1] == f"{metric['value']:.5g}"
        assert cells[2] == (f"± {metric['std']:.2g}" if "std" in metric else "")
        assert cells[3] == "70"
    for expected in (result["images"]["sha256"], "after step", "DDIM(steps=2", "seed 0", "compared with 1618 images"):
        assert expected in text
    assert "| dataset | `Digits()` |" in text
    assert "| optimizer | `Adam(lr=0.01" in text
    assert "| EMA | `EMA(decay=0.9" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "--format diffusers" in text


def test_a_card_offers_diffusers_only_where_export_writes_it(release, command, tmp_path):
    content = read_checkpoint(release / "model.ckpt")
    content["hyper_parameters"]["sampler"] = {"class_path": "lightning_ddpm.diffusion.Heun", "init_args": {"steps": 2}}
    torch.save(content, tmp_path / "heun.ckpt")
    export = ("export", "--ckpt", tmp_path / "heun.ckpt", "--out", tmp_path / "out")
    status, _, err = command(*export, "--format", "diffusers")
    assert "has Ancestral sampling only" in get_error_sentence(status, err)
    status, _, err = command(*export, "--format", "release", "--samples", 0)
    assert status == 0, err
    text = (tmp_path / "out" / "README.md").read_text()
    assert "--format diffusers" not in text
    assert "diffusers has no pipeline of this kind" in text


def test_a_card_names_the_package_of_a_class_of_another():
    config = {"data": {"source": {"class_path": "tiles.data.Data", "init_args": {"size": 32}}}}
    config |= {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}}}}
    card = write_card(ModelFacts("tiny", None, {}, config, ("tiles",), False, None, (), "0" * 64, 1, ()), ())
    assert "| dataset | `tiles.data.Data(size=32)` |" in card
    assert "| optimizer | `Adam(lr=0.001)` |" in card


def test_the_command_of_a_card_gives_what_the_model_is_conditioned_on():
    given = list_condition_options(ConditionFormat(("ink",), (), (1, 4, 4)))
    card = write_card(ModelFacts("tiny", None, {}, {}, (), False, None, (), "0" * 64, 1, given), ())
    assert "--out samples --condition FILE.csv --condition_images DIR\n" in card
    assert list_condition_options(ConditionFormat()) == []


def test_a_release_is_sampled_evaluated_and_fine_tuned(release, command, tmp_path):
    status, _, err = command("sample", "--ckpt", release / "model.ckpt", "--n", 2, "--out", tmp_path / "s", *TINY)
    assert status == 0, err
    evaluate = ("evaluate", "--ckpt", release / "model.ckpt", "--n", 70, "--extractor", "DigitsFeatures", *TINY)
    status, _, err = command(*evaluate, "--out", tmp_path / "again.json")  # by the config beside it
    assert status == 0, err
    first, again = (json.loads(path.read_text()) for path in (release.parent / "result.json", tmp_path / "again.json"))
    assert again["metrics"]["fd_digits"]["value"] == first["metrics"]["fd_digits"]["value"]
    tune = ("fit", "--config", release / "config.yaml", "--ckpt_path", release / "model.ckpt")
    status, _, err = command(*tune, "--trainer.default_root_dir", tmp_path / "t", "--trainer.max_steps", 1)
    assert status == 0, err
    assert torch.load(tmp_path / "t" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_release_goes_to_the_hub_and_comes_back(release, hub, command, monkeypatch, tmp_path):
    folder = shutil.copytree(release, tmp_path / "tiny")
    status, out, err = command("push", folder, "someone/tiny", "--private")
    assert status == 0, err
    assert f"{hub.url}/someone/tiny" in out
    uploaded = hub.repositories["someone/tiny"]
    assert {name: uploaded[name] for name in hub_module.FILES} == {
        n: (folder / n).read_bytes() for n in hub_module.FILES
    }
    assert b"hf://someone/tiny" in uploaded["README.md"]
    assert hub.private == {"someone/tiny"}
    assert command("push", folder, "someone/tiny")[0] == 0  # again, into what exists

    commit = hub.revision("someone/tiny")
    for address in ("hf://someone/tiny", "hf://someone/tiny@main", f"hf://someone/tiny@{commit}"):
        model = lightning_ddpm.load(address)
        assert all(torch.equal(w, model.state_dict()[n]) for n, w in load_file(release / "model.safetensors").items())
        assert name_checkpoint(locate_checkpoint(address)) == f"hf://someone/tiny@{commit}"
    status, out, err = command(
        "evaluate", "--ckpt", "hf://someone/tiny", "--n", 70, "--extractor", "DigitsFeatures", *TINY
    )
    assert status == 0, err  # by the config that was downloaded with it
    forget_settings(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command("sample", "--ckpt", "hf://someone/tiny", "--n", 1, "--out", tmp_path / "s", *TINY)[0] == 0  # cached
    read = {each.split("/")[-1] for each in hub.requests if each.startswith("GET /someone")}
    assert read == {"model.ckpt", "config.yaml", "SHA256SUMS"}


def test_what_is_downloaded_is_compared_and_never_run(release, hub, command, tmp_path):
    content = read_checkpoint(release / "model.ckpt")
    content["hyper_parameters"]["network"] = {"class_path": "evil.Network", "init_args": {}}
    torch.save(content, tmp_path / "evil.ckpt")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    files = {name: (release / name).read_bytes() for name in hub_module.FILES}
    hub.repositories["someone/code"] = {"model.ckpt": (tmp_path / "evil.ckpt").read_bytes(), "evil.py": b"raise"}
    hub.repositories["someone/changed"] = files | {"model.ckpt": (tmp_path / "evil.ckpt").read_bytes()}
    hub.repositories["someone/other"] = {"pytorch_model.bin": b""}
    for name, expected in [
        ("someone/code", "evil.Network, which is not part of lightning_ddpm"),
        ("someone/changed", "is not the file that"),
        ("someone/other", "it has no model.ckpt, and was not made by"),
        ("someone/none", "there is none of this name, or it is private"),
        ("someone/code@v2", "it has no such revision"),
        ("someone", "a model on the Hub is called USER/MODEL"),
        ("../../etc/passwd", "a model on the Hub is called USER/MODEL"),
        ("someone/code@../x", "a revision is a branch, a tag or a commit"),
        ("someone/code@main/../../../../../x", "a revision is a branch, a tag or a commit"),  # a path in the cache
    ]:
        status, _, err = command("sample", "--ckpt", f"hf://{name}", "--n", 1, "--out", tmp_path / "out")
        assert expected in get_error_sentence(status, err), name
    assert not (tmp_path / "it ran").exists()
    assert not any("evil.py" in each for each in hub.requests)


def test_a_hub_that_cannot_be_reached_or_refuses_is_a_sentence(release, hub, command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    status, _, err = command("push", release, "someone/tiny")
    message = get_error_sentence(status, err)
    assert "the Hub refused" in message or "log in by" in message
    assert hub.repositories == {}
    forget_settings(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, _, err = command("sample", "--ckpt", "hf://someone/tiny", "--n", 1, "--out", tmp_path)
    assert "it cannot be reached, and is not in the cache" in get_error_sentence(status, err)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    status, _, err = command("sample", "--ckpt", "hf://someone/tiny", "--n", 1, "--out", tmp_path)
    assert "pip install 'huggingface-hub>=0.30'" in get_error_sentence(status, err)


def replace_by_pickle(folder):
    """Write a pickle in place of the safetensors, and its digest into the list."""
    weights, sums = folder / "model.safetensors", folder / "SHA256SUMS"
    before = hash_file(weights)
    weights.write_bytes(pickle.dumps(print))
    sums.write_text(sums.read_text().replace(before, hash_file(weights)))


def replace_by_link(path):
    """Move a file out of its release, and leave a link to it."""
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "notes.txt").touch(), "holds notes.txt, which is no part of a release"),
        (lambda folder: (folder / "model.ckpt").unlink(), "has no model.ckpt; write a release by"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors is not the file that"),
        (lambda folder: (folder / "model.ckpt").write_bytes(b"x"), "model.ckpt is not the file that"),
        (replace_by_pickle, "model.safetensors holds no safetensors"),
        (lambda folder: replace_by_link(folder / "config.yaml"), "config.yaml is a link or a folder"),
        (lambda folder: replace_by_link(folder / "SHA256SUMS"), "SHA256SUMS is a link or a folder"),
    ],
)
def test_only_a_whole_release_is_pushed(change, expected, release, hub, command, tmp_path):
    folder = shutil.copytree(release, tmp_path / "tiny")
    change(folder)
    status, _, err = command("push", folder, "someone/tiny")
    assert expected in get_error_sentence(status, err)
    assert hub.repositories == {}


WRONG = ("", "a", "a/", "a/b/c", "a/..", "../a", "-a/b", "a/b-", "a/b--c", "a/b.git", "a/b\n", "a b/c", "a/b?c")


@pytest.mark.parametrize("name", WRONG)
def test_names_that_the_hub_cannot_have_are_refused(name, release, hub, command):
    with pytest.raises(UserError, match="a model on the Hub is called USER/MODEL, in letters, digits"):
        hub_module.check_repository(name)
    status, _, err = command("push", release, f"--repo={name}")
    assert "a model on the Hub is called USER/MODEL" in get_error_sentence(status, err)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--samples", "-1"), "--samples must be at least 0, got -1"),
        (("--license", "GPL or\nMIT"), "--license is an identifier"),
        (("--variance", "fixed_small"), "--variance is no option of --format release"),
        (("--metrics", "other.json"), "other.json is a result of another checkpoint"),
        (("--metrics", "raw.json"), "raw.json is a result of the raw weights"),
        (("--metrics", "list.json"), "list.json is no result of `evaluate --out FILE.json`"),
    ],
)
def test_a_wrong_release_is_refused_before_anything_is_written(
    options, expected, release, digits_run, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    result = json.loads((release.parent / "result.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(result | {"images": result["images"] | {"sha256": "0" * 64}}))
    (tmp_path / "raw.json").write_text(json.dumps(result | {"images": result["images"] | {"weights": "raw"}}))
    (tmp_path / "list.json").write_text("[]")
    export = ("export", "--format", "release", "--ckpt", digits_run.folder / "best.ckpt", "--out", tmp_path / "out")
    status, _, err = command(*export, *options)
    assert expected in get_error_sentence(status, err)
    assert not (tmp_path / "out").exists()

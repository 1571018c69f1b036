"""Files that are damaged or made to do harm end in a sentence, in seconds and in little memory."""

import json
import pickle
import resource
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from helpers.diffusers_models import DIGITS, WEIGHTS, make_pipeline, write_checkpoint
from safetensors.torch import load_file, save_file

MEMORY = 3 * 2**30
"""How much more address space than it has a command may take: far less than any of these files describes."""


@pytest.fixture
def refuse(command):
    """Runs a command with little memory, which must fail with a sentence; returns it."""

    def call(*arguments: object) -> str:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
        try:
            status, _, err = command(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        sentence = get_error_sentence(status, err)
        assert len(sentence) < 9000
        return sentence

    return call


def change_checkpoint(folder: Path, change: Any) -> Path:
    """Write a checkpoint and change its content."""
    path = write_checkpoint(folder / "model.ckpt")
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def make_loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def multiply() -> list[Any]:
    value: list[Any] = ["lol"] * 10
    for _ in range(12):
        value = [value] * 10
    return value


def set_network(**arguments: Any) -> Any:
    return lambda content: content["hyper_parameters"]["network"]["init_args"].update(arguments)


def set_schedule(**arguments: Any) -> Any:
    return lambda content: content["hyper_parameters"]["schedule"]["init_args"].update(arguments)


LAUGHS = "{a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]" + "".join(
    f", {new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
SPARSE = torch.sparse_coo_tensor(
    torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6), check_invariants=False
)

CHECKPOINTS: dict[str, Any] = {
    "a list in itself": lambda content: content.update(more=make_loop()),
    "a hyper-parameter in itself": lambda content: content["hyper_parameters"].update(class_names=make_loop()),
    "100 levels": lambda content: content.update(more=nest(100)),
    "100 levels of a hyper-parameter": lambda content: content["hyper_parameters"].update(label_dropout=nest(100)),
    "a billion references": lambda content: content.update(more=multiply()),
    "stride 0": lambda content: content.update(more=torch.zeros(1).expand(10**6, 10**6)),
    "stride 0 in the weights": lambda content: content["state_dict"].update(more=torch.zeros(1).expand(10**12)),
    "sparse": lambda content: content.update(more=SPARSE),
    "meta": lambda content: content.update(more=torch.empty(10**12, device="meta")),
    "weights that are none": lambda content: content.update(state_dict=[1]),
    "a huge number": lambda content: content.update(more=1 << 10**5),
    "a width of 20,000": set_network(width=20_000),
    "a million levels": set_network(multipliers=[1] * 10**6),
    "a million blocks": set_network(blocks=10**6),
    "a size of 2^40": set_network(size=2**40, multipliers=[1]),
    "a billion timesteps": set_schedule(steps=10**9),
    "laughs in a text": lambda content: content["hyper_parameters"].update(schedule=LAUGHS + "}"),
    "deep text": lambda content: content["hyper_parameters"].update(schedule="[" * 5000 + "]" * 5000),
    "a billion sampling steps": lambda content: content["hyper_parameters"]["sampler"]["init_args"].update(steps=10**9),
    "no class path": lambda content: content["hyper_parameters"].update(_class_path=[1]),
    "ten thousand betas": lambda content: content["hyper_parameters"].update(
        schedule={"class_path": "lightning_ddpm.diffusion.ExplicitBetas", "init_args": {"betas": [0.1] * 10_000}}
    ),
    "names that are none": lambda content: content["hyper_parameters"].update(class_names=[1.0]),
    "a text that is no module": lambda content: content["hyper_parameters"].update(objective="__main__.x"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_describes_too_much_is_refused(name, refuse, tmp_path):
    path = change_checkpoint(tmp_path, CHECKPOINTS[name])
    assert str(path) in refuse("sample", "--ckpt", path, "--n", "1", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_a_zip_bomb_is_refused(refuse, tmp_path):
    path = write_checkpoint(tmp_path / "model.ckpt")
    with zipfile.ZipFile(path) as archive:
        parts = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + bytes(2**24 if name.endswith("data.pkl") else 0))
    assert "torch.save compresses nothing" in refuse("sample", "--ckpt", path, "--n", "1", "--out", tmp_path / "out")


def test_a_pickle_that_is_no_archive_is_refused(refuse, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": {}}))
    assert "is not a zip archive" in refuse("sample", "--ckpt", path, "--n", "1", "--out", tmp_path / "out")


# configs

CONFIGS = {
    "laughs": "x: " + LAUGHS + "}\n",
    "an alias in itself": "x: &a [*a]\n",
    "deep": "x: " + "[" * 5000 + "]" * 5000 + "\n",
    "a million items": "x: [" + "1," * 10**6 + "]\n",
    "an impossible date": "x: 2024-13-45\ny: {?: 1}\nz: ._\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_describes_too_much_is_refused(name, refuse, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIGS[name])
    refuse("fit", "--config", tmp_path / "config.yaml", "--trainer.default_root_dir", tmp_path / "run")
    path = tmp_path / "config.yaml"
    refuse("evaluate", "--ckpt", write_checkpoint(tmp_path / "model.ckpt"), "--n", "2", "--reference", path)


@pytest.mark.parametrize("change", [{"width": 20_000}, {"blocks": 10**6}, {"multipliers": [1] * 10**5}], ids=str)
def test_a_network_that_does_not_fit_into_the_memory_is_refused(change, refuse, tmp_path):
    config = tiny_digits(tmp_path / "run")
    config["model"]["init_args"]["network"]["init_args"].update(change)
    sentence = refuse("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert "multipliers" in change or "model.network describes a network whose weights" in sentence


# npz files


def write_npz(path: Path, header: dict[str, Any], content: bytes = b"") -> Path:
    """Write an npz file whose array has this header."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False} | header)
        member.write(content)
    return path


def test_an_npz_file_of_terabytes_is_refused(refuse, tmp_path):
    bomb = write_npz(tmp_path / "bomb.npz", {"shape": (300_000, 32, 32, 3)}, bytes(300_000 * 3072))
    assert bomb.stat().st_size < 2**20
    declared = write_npz(tmp_path / "declared.npz", {"shape": (10**12, 32, 32, 3)})
    objects = write_npz(tmp_path / "objects.npz", {"shape": (1,), "descr": "|O"}, bytes(8))
    good = tmp_path / "good.npz"
    np.savez(good, np.zeros((4, 32, 32, 3), np.uint8))
    for path in (bomb, declared, objects):
        assert str(path) in refuse("evaluate", "--images", path, "--reference", good)
        assert str(path) in refuse("evaluate", "--images", good, "--reference", path)


# diffusers


@pytest.fixture
def folder(tmp_path):
    make_pipeline(DIGITS).save_pretrained(tmp_path / "in")
    return tmp_path / "in"


def set_weights(folder: Path, change: Any) -> None:
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    save_file({name: change(name, value) for name, value in load_file(path).items()}, path)


def set_config(folder: Path, **settings: Any) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def write_pickle(folder: Path, content: Any) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch.save(content, folder / "unet" / f"{WEIGHTS}.bin")


MANY = 10**6
FOLDERS: dict[str, tuple[Any, str]] = {
    "a million layers": (
        lambda folder: set_config(
            folder,
            block_out_channels=[8] * MANY,
            down_block_types=["DownBlock2D"] * MANY,
            up_block_types=["UpBlock2D"] * MANY,
        ),
        "config.json has ",
    ),
    "a million layers per block": (lambda folder: set_config(folder, layers_per_block=MANY), "far larger"),
    "width 20,000": (lambda folder: set_config(folder, block_out_channels=[20_000] * 2), "far larger"),
    "deep json": (
        lambda folder: (folder / "unet" / "config.json").write_text("[" * 10**5 + "]" * 10**5),
        "config.json is not JSON",
    ),
    "long json": (
        lambda folder: (folder / "unet" / "config.json").write_text(" " * 2**25),
        "config.json has 33,554,432 bytes",
    ),
    "nan": (
        lambda folder: set_weights(folder, lambda name, value: value.fill_(torch.nan) if "conv_in" in name else value),
        "holds NaN or infinity in conv_in",
    ),
    "too large for float32": (
        lambda folder: set_weights(folder, lambda name, value: value.double() * 1e300),
        "holds NaN or infinity in ",
    ),
    "int8": (lambda folder: set_weights(folder, lambda name, value: value.to(torch.int8)), "holds int8 in "),
    "stride 0": (lambda folder: write_pickle(folder, {"a": torch.zeros(1).expand(10**12)}), "declares a tensor"),
    "sparse": (lambda folder: write_pickle(folder, {"a": SPARSE}), "not dense"),
    "a list in itself": (lambda folder: write_pickle(folder, {"a": make_loop()}), "contain themselves"),
    "a header of gigabytes": (
        lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").write_bytes((2**33).to_bytes(8, "little") + b"{}"),
        "is damaged",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_describes_too_much_is_not_imported(name, refuse, folder, tmp_path):
    change, message = FOLDERS[name]
    change(folder)
    assert message in refuse("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


# LMDB


@pytest.mark.parametrize("kept", [0, 10, 5000, 0.3, 0.9, 0.999])
def test_a_truncated_lmdb_is_refused_before_it_is_mapped(kept, refuse, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for split in ("train", "val"):
        folder = tmp_path / f"church_outdoor_{split}_lmdb"
        with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
            for index in range(30):
                transaction.put(f"{index:08d}".encode(), bytes(5000))
        whole = (folder / "data.mdb").read_bytes()
        (folder / "data.mdb").write_bytes(whole[: int(kept * len(whole) if isinstance(kept, float) else kept)])
    source = ("--data.source", "LSUN", "--data.source.category", "church_outdoor", "--data.source.size", 8)
    assert str(tmp_path / "church_outdoor_train_lmdb") in refuse("check-data", *source, "--data.root", tmp_path)


# damaged images


def test_a_decompression_bomb_is_named(command, tmp_path):
    width = height = 50_000
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    (tmp_path / "images").mkdir()
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(content)
    status, _, err = command("evaluate", "--images", tmp_path / "images", "--reference", tmp_path / "images")
    assert status == 2
    assert "limit against decompression bombs" in err

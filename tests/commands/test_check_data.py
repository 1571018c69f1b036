"""Image files of every kind are read by the stated rules; damaged, missing and forbidden ones are reported."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import ddpm
from PIL import Image

from lightning_ddpm.data import ImageDataModule, ImageFolder, datasets, decode_cache
from lightning_ddpm.data.image_io import read_image
from lightning_ddpm.utils.errors import UserError

# ---- one file of each kind, and the pixel that it must be read as ----------------------------------------------------

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


def palette(*, transparent: bool) -> Image.Image:
    """Return an image with a palette of red and blue, whose pixels are all red."""
    image = plain("P", 0)
    image.putpalette([*RED, *BLUE])
    if transparent:
        image.info["transparency"] = 0
    return image


def pgm16(level: int) -> bytes:
    """Return a 16-bit grayscale PGM file of one level, which old versions of Pillow read but cannot write."""
    height, width = np.asarray(gray16(level)).shape
    return b"P5 %d %d 65535\n" % (width, height) + level.to_bytes(2, "big") * (width * height)


def gray16(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), level, np.uint16))


def png16(colour: tuple[int, ...], colour_type: int, chunks: bytes = b"") -> bytes:
    """Return a PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    line = b"\0" + struct.pack(f">{len(colour)}H", *colour) * 8
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0))
    transparent = chunk(b"tRNS", chunks) if chunks else b""
    return b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(line * 8)) + chunk(b"IEND", b"")


def film(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    frames = [plain("RGB", BLUE), plain("RGB", (0, 255, 0))]
    plain("RGB", RED).save(file, kind, save_all=True, append_images=frames, **options)
    return file.getvalue()


def turned() -> bytes:
    """Return a rotated camera image: its left column, the file's top row, is red."""
    image = plain("RGB", BLUE)
    image.paste(RED, (0, 0, 8, 1))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 8
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


HALF = (255, 0, 0, 128)
FILES: list[tuple[str, bytes, tuple[int, int, int] | str]] = [
    ("rgb.png", saved(plain("RGB", (1, 2, 3)), "PNG"), (1, 2, 3)),
    ("rgb.jpg", saved(plain("RGB", (200, 100, 50)), "JPEG", quality=100), (200, 100, 50)),
    ("rgb.tif", saved(plain("RGB", (1, 2, 3)), "TIFF"), (1, 2, 3)),
    ("rgb.webp", saved(plain("RGB", (1, 2, 3)), "WEBP", lossless=True), (1, 2, 3)),
    ("rgb.bmp", saved(plain("RGB", (1, 2, 3)), "BMP"), (1, 2, 3)),
    ("rgb.ppm", saved(plain("RGB", (1, 2, 3)), "PPM"), (1, 2, 3)),
    ("gray.png", saved(plain("L", 77), "PNG"), (77, 77, 77)),
    ("gray.jpg", saved(plain("L", 77), "JPEG"), (77, 77, 77)),
    ("bits.png", saved(plain("1", 1), "PNG"), (255, 255, 255)),
    ("bits.tif", saved(plain("1", 0), "TIFF"), (0, 0, 0)),
    ("palette.png", saved(palette(transparent=False), "PNG"), RED),
    ("palette.gif", saved(palette(transparent=False), "GIF"), RED),
    ("palette.bmp", saved(palette(transparent=False), "BMP"), RED),
    ("clear palette.png", saved(palette(transparent=True), "PNG", transparency=0), (255, 255, 255)),
    ("clear palette.gif", saved(palette(transparent=True), "GIF", transparency=0), (255, 255, 255)),
    ("half palette.png", saved(palette(transparent=False), "PNG", transparency=bytes([128, 255])), (255, 127, 127)),
    ("rgba.png", saved(plain("RGBA", HALF), "PNG"), (255, 127, 127)),
    ("rgba.tif", saved(plain("RGBA", HALF), "TIFF"), (255, 127, 127)),
    ("rgba.webp", saved(plain("RGBA", HALF), "WEBP", lossless=True), (255, 127, 127)),
    ("gray and alpha.png", saved(plain("LA", (0, 51)), "PNG"), (204, 204, 204)),
    ("clear colour.png", saved(plain("RGB", RED), "PNG", transparency=RED), (255, 255, 255)),
    ("cmyk.jpg", saved(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED),
    ("cmyk.tif", saved(plain("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    ("ycbcr.tif", saved(plain("YCbCr", (76, 85, 255)), "TIFF", compression="jpeg"), RED),
    ("lab.tif", saved(plain("LAB", (128, 128, 128)), "TIFF"), (119, 119, 119)),
    ("gray16.png", saved(gray16(0x12FF), "PNG"), (0x12, 0x12, 0x12)),
    ("gray16.tif", saved(gray16(0x12FF), "TIFF"), (0x12, 0x12, 0x12)),
    ("gray16.pgm", pgm16(0x12FF), (0x12, 0x12, 0x12)),
    ("clear gray16.png", png16((0x12FF,), 0, struct.pack(">H", 0x12FF)), (255, 255, 255)),
    ("rgb16.png", png16((0x01FF, 0x02FF, 0x03FF), 2), (1, 2, 3)),
    ("rgba16.png", png16((0xFFFF, 0, 0, 0x80FF), 6), (255, 127, 127)),
    ("gray and alpha16.png", png16((0, 0x3300), 4), (204, 204, 204)),
    ("film.gif", film("GIF"), RED),
    ("film.png", film("PNG"), RED),
    ("film.webp", film("WEBP", lossless=True), RED),
    ("pages.tif", film("TIFF"), RED),
    ("turned.png", turned(), RED),
    ("whole32.tif", saved(Image.fromarray(np.full((8, 8), 7, np.int32)), "TIFF"), "no defined white level"),
    ("float32.tif", saved(plain("F", 0.5), "TIFF"), "no defined white level"),
    ("small.png", saved(Image.new("L", (8, 7)), "PNG"), "8x7, less than 8x8"),
]


@pytest.mark.parametrize(("name", "content", "golden"), FILES, ids=[name for name, *_ in FILES])
def test_every_kind_of_image_is_read_as_the_rules_state(name: str, content: bytes, golden: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    if isinstance(golden, str):
        with pytest.raises(UserError, match=golden):
            read_image(tmp_path / name, 3, 8)
        return
    near = 3 if name.endswith(".jpg") or name.startswith(("ycbcr", "lab")) else 0
    pixels = read_image(tmp_path / name, 3, 8).pixels
    assert pixels.shape == (3, 8, 8)
    assert pixels[:, 4, 0].tolist() == pytest.approx(golden, abs=near)
    luminance = round(0.299 * golden[0] + 0.587 * golden[1] + 0.114 * golden[2])
    assert int(read_image(tmp_path / name, 1, 8).pixels[0, 4, 0]) == pytest.approx(luminance, abs=near + 1)


def test_a_rotated_image_is_blue_outside_its_red_column(tmp_path: Path) -> None:
    (tmp_path / "turned.png").write_bytes(turned())
    assert read_image(tmp_path / "turned.png", 3, 8).pixels[:, 0, 7].tolist() == list(BLUE)


# ---- check-data ------------------------------------------------------------------------------------------------------


def noise(path: Path, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def check(command: Callable[..., tuple[Any, str, str]], root: Path, *options: object) -> tuple[Any, list[str]]:
    """Return the status of check-data on a folder, and its lines."""
    status, out, err = command(
        "check-data", "--data.source", "ImageFolder", "--data.source.size", 8, "--data.root", root, *options
    )
    assert err == ""
    return status, out.splitlines()


def test_a_good_folder_is_summarized(command, tmp_path: Path) -> None:
    for index in range(3):
        noise(tmp_path / "cats" / f"{index}.png", index)
    noise(tmp_path / "dogs" / "large.jpg", size=(40, 20))
    status, lines = check(command, tmp_path)
    assert status == 0
    assert (
        lines[0] == f"images: 3 to train on in {tmp_path}, 1 held out of the same folder, spread evenly (holdout 0.02)"
    )
    assert lines[-3] == "4 images can be used, 0 cannot"
    assert lines[-2] == "formats and modes: 3 PNG RGB, 1 JPEG RGB"
    assert lines[-1] == "sizes: short sides 16 to 20, long sides 16 to 40 pixels; 3 of 16x16, 1 of 40x20"


def bomb() -> bytes:
    """Return a PNG whose header declares 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\x08IDAT"
    )


@pytest.fixture
def bad_folder(tmp_path: Path) -> Path:
    """Return a folder of two good images and one with each fault, and links to an image and a folder outside."""
    root = tmp_path / "images"
    noise(root / "a" / "good.png")
    noise(root / "b" / "good.gif")
    noise(tmp_path / "outside" / "secret.png")
    (root / "empty.png").touch()
    (root / "text.png").write_text("no image")
    (root / "ghost.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n")
    (root / "bomb.png").write_bytes(bomb())
    (root / "half.png").write_bytes((root / "a" / "good.png").read_bytes()[:300])
    (root / "over.png").write_bytes(saved(Image.new("1", (10000, 9000)), "PNG"))
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "again").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "fine.png").symlink_to(root / "a" / "good.png")
    os.mkfifo(root / "pipe.png")
    noise(root / ".hidden" / "a.png").write_text("ignored")
    (root / ".a.png").write_text("ignored")
    return root


FAULTS = {
    "again": "a link to a folder, which is not followed",
    "bomb.png": "89,478,485 pixels, Pillow's limit against decompression bombs",
    "circle.png": "",
    "empty.png": "the file is empty",
    "folder": "a link that leads out of",
    "ghost.png": "not an image in a supported format",
    "gone.png": "no such file",
    "half.png": "cannot be read: ",
    "out.png": "put a copy in its place",
    "over.png": "89,478,485 pixels, Pillow's limit against decompression bombs",
    "pipe.png": "a pipe or a device",
    "text.png": "not an image in a supported format",
}


def test_every_unusable_file_is_listed_with_its_fault(command, bad_folder: Path) -> None:
    status, lines = check(command, bad_folder)
    assert status == 1
    faults = dict(line.split(": ", 1) for line in lines if line.startswith(str(bad_folder)))
    assert sorted(faults) == [str(bad_folder / name) for name in FAULTS]
    for name, fault in FAULTS.items():
        assert fault in faults[str(bad_folder / name)], name
    assert "3 images can be used, 12 cannot" in lines


def test_data_of_a_config_is_checked_and_arrays_are_counted(command, bad_folder: Path) -> None:
    options = ("--data.root", bad_folder, "--data.source.size", "8")
    status, out, _ = command("check-data", "--config", "configs/image_folder.yaml", *options)
    assert (status, "12 cannot" in out) == (1, True)
    status, out, _ = command("check-data", "--config", "configs/digits.yaml")
    assert (status, out) == (0, "1618 training images of 1x8x8 and 179 held out, stored as arrays\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "data.source"),
        (("--data.source", "ImageFolder", "--data.root", "no/such"), "there is no folder no/such"),
        (("--data.source", "ImageFolder", "--data.source.on_error", "ignore"), "ignore"),
        (("--config", "no.yaml"), "no.yaml"),
    ],
)
def test_bad_options_are_refused(options: tuple[str, ...], message: str, command) -> None:
    status, _, err = command("check-data", *options)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err


def damage(whole: bytes, seed: int) -> bytes:
    """Flip some bits of a file, or cut off its end, or both."""
    random = np.random.default_rng(seed)
    content = bytearray(whole)
    if seed % 3 != 1:
        for place in random.integers(0, len(content) * 8, random.integers(1, 30)):
            content[place // 8] ^= 1 << (place % 8)
    return bytes(content[: random.integers(0, len(content))] if seed % 3 else content)


def test_each_of_a_hundred_damaged_images_is_decoded_or_reported(tmp_path: Path) -> None:
    readable = [(name, content) for name, content, golden in FILES if not isinstance(golden, str)]
    root = tmp_path / "damaged"
    root.mkdir()
    for seed in range(100):
        name, content = readable[seed % len(readable)]
        (root / f"{seed:03d} {name}").write_bytes(damage(content, seed))
    options = ("--data.source", "ImageFolder", "--data.source.size", "8", "--data.root", root)
    ended = ddpm("check-data", *options)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    named = {line.split(": ")[0] for line in ended.stdout.splitlines() if line.startswith(str(root))}
    assert named < {str(path) for path in root.iterdir()}
    assert f"{100 - len(named)} images can be used, {len(named)} cannot" in ended.stdout
    assert 20 < len(named) < 98, "some must decode and some not, or this test shows little"


# ---- what training does ----------------------------------------------------------------------------------------------


@pytest.fixture
def some_bad(tmp_path: Path) -> Path:
    """Return a folder of forty images, of which 3 and 7 are broken."""
    root = tmp_path / "images"
    for index in range(40):
        noise(root / f"{index:02d}.png", index, (8, 8))
    for index in (3, 7):
        (root / f"{index:02d}.png").write_bytes(b"broken")
    return root


def test_bad_images_are_refused_before_training_with_the_fix(some_bad: Path) -> None:
    with pytest.raises(UserError, match=r"2 of the 40 images(.|\n)*03\.png(.|\n)*07\.png(.|\n)*on_error skip"):
        ImageFolder(size=8).prepare(some_bad)


def test_skipped_images_are_counted_and_the_others_keep_their_split(
    some_bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ImageFolder(size=8, holdout=0.25, on_error="skip", max_skipped=0.05)
    source.prepare(some_bad)
    assert f"skipped 2 of the 40 images in {some_bad}" in (printed := capsys.readouterr().out)
    assert "03.png" in printed
    train, test = source.open(some_bad, "train"), source.open(some_bad, "test")
    assert (len(train), len(test)) == (30, 8)  # 3 and 7 belong to the held-out images and are not replaced
    kept = [index for index in range(40) if index not in (3, 7) and index % 4 == 3]
    assert [bytes(test[i][0].numpy()) for i in range(8)] == [
        bytes(read_image(some_bad / f"{index:02d}.png", 3, 8).pixels.numpy()) for index in kept
    ]


def test_skipping_more_than_max_skipped_is_an_error(some_bad: Path) -> None:
    with pytest.raises(UserError, match=r"2 of the 40 images .* more than max_skipped=0\.04 of them"):
        ImageFolder(size=8, on_error="skip", max_skipped=0.04).prepare(some_bad)


def test_images_are_checked_once_until_a_file_changes(some_bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolder(size=8, on_error="skip", max_skipped=0.1)
    source.prepare(some_bad)
    opened: list[str] = []

    def spy(file: Path, channels: int, size: int) -> Any:
        opened.append(file.name)
        return read_image(file, channels, size)

    monkeypatch.setattr(datasets, "read_image", spy)
    source.prepare(some_bad)
    assert sorted(opened) == ["03.png", "07.png"], "the bad ones might have been fixed"
    (some_bad / "05.png").write_bytes(b"broken now")
    with pytest.raises(UserError, match=r"3 of the 40(.|\n)*05\.png"):
        ImageFolder(size=8).prepare(some_bad)


def test_max_skipped_is_a_fraction() -> None:
    with pytest.raises(UserError, match=r"max_skipped is a fraction .* got 3"):
        ImageFolder(max_skipped=3)


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_an_image_damaged_during_training_is_reported_without_a_traceback(
    policy: str, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    for index in range(12):
        noise(root / f"{index:02d}.png", index, (8, 8))
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", 0)  # read while training, as large sets are
    open_part = ImageFolder.open

    def open_then_spoil(self: ImageFolder, folder: Path, split: Any) -> Any:
        data = open_part(self, folder, split)
        if split == "test":  # every file is open: now they are cut
            for index in range(12):
                (root / f"{index:02d}.png").write_bytes((root / f"{index:02d}.png").read_bytes()[:80])
        return data

    monkeypatch.setattr(ImageFolder, "open", open_then_spoil)
    source = ("--data.source", "ImageFolder", "--data.source.channels", 1, "--data.source.on_error", policy)
    status, _, err = command(
        *("fit", "--config", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.callbacks", "null"),
        *("--trainer.log_every_n_steps", 1),
        *(
            "--trainer.max_steps",
            2,
            "--trainer.num_sanity_val_steps",
            0,
            "--trainer.default_root_dir",
            tmp_path / "run",
        ),
        *(*source, "--data.source.size", 8, "--data.root", root, "--data.batch_size", 4, "--data.num_workers", 1),
    )
    assert status == 2, err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{root}/" in line
    assert "cannot be used: the image cannot be read" in line


def test_data_module_refuses_files_outside_its_folder(bad_folder: Path) -> None:
    data = ImageDataModule(ImageFolder(size=8), str(bad_folder))
    with pytest.raises(UserError, match=r"12 of the 15 images(.|\n)*and 2 more"):
        data.prepare_data()

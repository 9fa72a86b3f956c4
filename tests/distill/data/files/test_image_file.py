"""What becomes of each kind of image file: the table of docs/how-to/images.md, row by row."""

import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from distill.data.files.image_file import open_image, square
from distill.data.pixels import load_pixels
from distill.data.splits import scan_split
from distill.errors import UnreadableImages

RED, BLUE = (220, 30, 30), (30, 30, 220)
UPSIDE = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
          6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip


def red_above_blue(size: tuple[int, int] = (64, 48)) -> Image.Image:
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, size[1] // 2, *size))
    return image


def as_stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The pixels that a camera stores for that image, and the EXIF data that turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if orientation == 1:
        return red_above_blue(), exif
    return red_above_blue().transpose(Image.Transpose[UPSIDE[orientation]]), exif


def colours(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The mean colours of the upper and the lower quarter."""
    pixels = np.asarray(image)
    height = len(pixels)
    return tuple(
        tuple(int(x) for x in part.reshape(-1, 3).mean(axis=0).round())
        for part in (pixels[: height // 4], pixels[-height // 4 :])
    )


def is_upright(image: Image.Image) -> bool:
    return (
        image.mode == "RGB"
        and image.size == (64, 48)
        and all(
            np.allclose(found, wanted, atol=12)
            for found, wanted in zip(colours(image), (RED, BLUE), strict=True)
        )
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_a_photo_is_upright_whatever_its_exif_orientation(tmp_path, suffix, orientation):
    stored, exif = as_stored(orientation)
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif)
    assert is_upright(open_image(path))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["photo.heic", "renamed.jpg"])
def test_heic_is_read_upright_under_any_name(tmp_path, name, orientation):
    pytest.importorskip("pillow_heif")
    stored, exif = as_stored(orientation)
    path = tmp_path / name
    with path.open("wb") as file:
        stored.save(file, "HEIF", exif=exif.tobytes())
    assert is_upright(open_image(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_photo_as_it_is_stored(tmp_path):
    red_above_blue().save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert is_upright(open_image(tmp_path / "photo.jpg"))


GREY = np.linspace(0, 65535, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("16.png", lambda path: Image.fromarray(GREY.astype(np.uint16)).save(path)),
        ("16.tif", lambda path: Image.fromarray(GREY.astype(np.uint16)).save(path)),
        ("big-endian.ppm", lambda path: path.write_bytes(
            b"P5 64 48 65535\n" + GREY.astype(">u2").tobytes())),
        ("32.tif", lambda path: Image.fromarray((GREY * 1000).astype(np.int32)).save(path)),
        ("unit.tif", lambda path: Image.fromarray((GREY / 65535).astype(np.float32)).save(path)),
        ("8.tif", lambda path: Image.fromarray((GREY / 257).astype(np.float32)).save(path)),
        ("signed.tif", lambda path: Image.fromarray((GREY - 32768).astype(np.float32)).save(path)),
    ],
)  # fmt: skip
def test_deep_pixels_are_scaled_to_8_bit(tmp_path, name, write):
    write(tmp_path / name)
    pixels = np.asarray(open_image(tmp_path / name))
    assert np.allclose(pixels[..., 0], GREY / 257, atol=1)


def half_transparent(mode: str) -> Image.Image:
    image = red_above_blue().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 48)).point(lambda x: 255 * (x > 127)))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGBA"), ("webp", "RGBA"), ("png", "LA"), ("png", "PA")]
)
def test_transparent_pixels_are_white(tmp_path, suffix, mode):
    path = tmp_path / f"clear.{suffix}"
    image = half_transparent("RGBA" if mode == "PA" else mode)
    if mode == "PA":  # a palette with an alpha value of each colour
        image = image.quantize(8)
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    above, below = colours(open_image(path))
    assert above == (255, 255, 255)
    assert np.allclose(below, (30, 30, 220) if mode != "LA" else (52,) * 3, atol=4)


def test_a_colour_marked_as_transparent_becomes_white(tmp_path):
    path = tmp_path / "key.png"
    red_above_blue().save(path, transparency=RED)
    assert colours(open_image(path)) == ((255, 255, 255), BLUE)


def test_cmyk_becomes_rgb(tmp_path):
    red_above_blue().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert is_upright(open_image(tmp_path / "print.jpg"))


def wide_profile() -> bytes:
    """sRGB's ICC profile with red and green exchanged, as a colour space far from sRGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_an_icc_profile_is_converted_to_srgb(tmp_path, suffix):
    path = tmp_path / f"wide.{suffix}"
    red_above_blue().save(path, icc_profile=wide_profile())
    above, below = colours(open_image(path))
    assert np.allclose(above, (30, 220, 30), atol=6) and np.allclose(below, BLUE, atol=6)


@pytest.mark.parametrize("profile", [b"no profile", wide_profile()[:200]])
def test_a_damaged_icc_profile_is_ignored(tmp_path, profile):
    red_above_blue().save(tmp_path / "photo.png", icc_profile=profile)
    assert is_upright(open_image(tmp_path / "photo.png"))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_of_several_frames_the_first_is_read(tmp_path, suffix):
    frames = [red_above_blue(), Image.new("RGB", (64, 48), "green")]
    path = tmp_path / f"film.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as film:
        assert film.n_frames == 2
    assert is_upright(open_image(path))


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG, with its width and height."""
    body = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return header + (9).to_bytes(4) + b"IDAT"


def cut_off(suffix: str) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, suffix)
    return content.getvalue()[: len(content.getvalue()) // 2]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.touch(), "it is empty"),
    "text.jpg": (lambda path: path.write_text("no image"), "it is not an image"),
    "bomb.png": (lambda path: path.write_bytes(png_header(20_000, 20_000)), "178 megapixels"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "a link to a missing file"),
    "loop.jpg": (lambda path: path.symlink_to("loop.jpg"), "symbolic links"),
    "pipe.jpg": (os.mkfifo, "it is a named pipe"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "folder.jpg": (lambda path: path.mkdir(), "it is a folder"),
    **{
        f"cut.{suffix}": (lambda path, s=suffix: path.write_bytes(cut_off(s)), "")
        for suffix in ("jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm", "avif")
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_a_one_line_error(tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UnreadableImages) as error:
        open_image(tmp_path / name)
    (line,) = error.value.images
    assert line.startswith(f"{tmp_path / name} (") and reason in line and "\n" not in line
    assert "0x" not in line and len(line) > len(f"{tmp_path / name} (a)")


def test_all_of_them_are_named_together(image_folder, tmp_path):
    root = image_folder({"val": {"n1": 2}})
    for name, (make, _) in BAD.items():
        make(root / "val" / "n1" / name)
    with pytest.raises(UnreadableImages) as error:
        load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache")
    named = {Path(line.partition(" (")[0]).name for line in error.value.images}
    assert named == set(BAD)


def test_without_pillow_heif_the_error_of_a_heic_file_names_the_package(tmp_path):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from pathlib import Path\nfrom distill.data.files.image_file import open_image\n"
        f"open_image(Path({str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEIC needs pillow-heif: pip install 'enrich-distill[heif]'" in done.stderr


def test_a_rotated_photo_is_trained_on_as_its_upright_twin(tmp_path):
    """The same pixels reach the student, and those that the teacher sees."""
    folder = tmp_path / "val" / "n1"
    folder.mkdir(parents=True)
    red_above_blue().save(folder / "a.png")
    stored, exif = as_stored(6)
    stored.save(folder / "b.png", exif=exif)
    upright, turned = load_pixels(scan_split(tmp_path, "unseen"), 32, tmp_path / "cache")
    assert np.array_equal(upright, turned)


@pytest.mark.parametrize("sides", [(30, 500), (601, 37), (1, 64), (3, 401), (999, 40)])
@pytest.mark.parametrize("size", [32, 33])
def test_an_elongated_image_keeps_the_pixels_of_its_centre(sides, size):
    """Those of the whole image, resized and then cropped."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(sides, Image.Resampling.BICUBIC)
    width, height = (size * side // min(sides) for side in sides)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    expected = np.asarray(whole.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    np.testing.assert_allclose(square(image, size).astype(int), expected, atol=2)


@pytest.mark.parametrize("sides", [(1, 400_000), (12_000_000, 1)])
def test_a_strip_is_resized_in_little_memory(tmp_path, sides):
    """A PNG of 855 bytes; all of it in 224 pixels across would take 80 GB, or overflow."""
    path = tmp_path / "strip.png"
    Image.new("RGB", sides, RED).save(path)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from distill.data.files.image_file import open_image, square\n"
        "image = open_image(Path(sys.argv[1]))\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "print(square(image, 224).mean(axis=(1, 2)).tolist())\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{[float(x) for x in RED]}\n"

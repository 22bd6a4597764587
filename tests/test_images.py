import contextlib
import io
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from jclnf.errors import ImageError
from jclnf.images import Folder, check_grey, kind_of, read_image, read_image_file
from jclnf.outputs import RECORD, claim


@pytest.fixture(scope="module")
def colour():
    """A smooth RGB image without symmetry, so that JPEG loses little and every turn shows."""
    y, x = np.mgrid[0:48, 0:80]
    planes = (x * 3, y * 5, 128 + 100 * np.sin(x / 9) * np.cos(y / 13))
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def opencv_grey(rgb):
    return cv2.cvtColor(np.ascontiguousarray(rgb[..., ::-1]), cv2.COLOR_BGR2GRAY)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_has_opencv_weights(tmp_path, colour, kind):
    path = write(tmp_path, "photo", encoded(colour, kind))
    image = read_image_file(path)
    np.testing.assert_array_equal(image.grey, opencv_grey(colour))
    np.testing.assert_array_equal(image.colour, colour[..., ::-1])
    assert image.path == path
    np.testing.assert_array_equal(read_image(str(path)), image.grey)


def test_jpeg_equals_imread(tmp_path, colour):
    for options in ({"quality": 60}, {"progressive": True}, {"subsampling": 0}):
        path = write(tmp_path, "a.jpg", encoded(colour, "JPEG", **options))
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(read_image_file(path).colour, expected)
        np.testing.assert_array_equal(read_image(path), cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(tmp_path, colour, kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path, "photo", encoded(colour, kind, exif=exif, **options))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert upright.shape[:2] == ((48, 80) if orientation < 5 else (80, 48))
    found = read_image(path)
    assert found.shape == upright.shape[:2]
    # A JPEG is decoded by two libraries, which differ by a few levels.
    assert np.abs(found.astype(int) - opencv_grey(upright)).max() <= (6 if kind == "JPEG" else 0)


def test_grey_file_is_kept(tmp_path, colour):
    grey = colour[..., 2]
    image = read_image_file(write(tmp_path, "g.png", encoded(grey, "PNG")))
    np.testing.assert_array_equal(image.grey, grey)
    np.testing.assert_array_equal(image.colour, np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped(tmp_path, colour):
    alpha = np.zeros_like(colour[..., :1])
    for rgba, expected in (
        (np.concatenate([colour, alpha], axis=2), opencv_grey(colour)),
        (np.concatenate([colour[..., :1], alpha], axis=2), colour[..., 0]),
    ):
        path = write(tmp_path, "a.png", encoded(rgba, "PNG"))
        np.testing.assert_array_equal(read_image(path), expected)


def test_cmyk_jpeg(tmp_path, colour):
    image = Image.fromarray(colour).convert("CMYK")
    path = write(tmp_path, "a.jpg", encoded(image, "JPEG", quality=95))
    expected = opencv_grey(np.asarray(Image.open(path).convert("RGB")))
    assert np.abs(read_image(path).astype(int) - expected).mean() < 3


@pytest.mark.parametrize(
    ("bits", "suffix"), [(16, ".png"), (16, ".tif"), (12, ".png"), (10, ".tif")]
)
def test_more_than_8_bits(tmp_path, colour, bits, suffix):
    top = 2**bits - 1
    deep = np.rint(colour[..., 2] / 255.0 * top).astype(np.uint16)
    deep[0, 0] = top
    path = write(tmp_path, "a" + suffix, cv2.imencode(suffix, deep)[1].tobytes())
    expected = colour[..., 2].copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read_image(path), expected)


def test_16_bit_colour(tmp_path, colour):
    path = write(
        tmp_path, "a.png", cv2.imencode(".png", colour.astype(np.uint16) * 257)[1].tobytes()
    )
    image = read_image_file(path)
    np.testing.assert_array_equal(image.colour, colour)
    np.testing.assert_array_equal(image.grey, opencv_grey(colour[..., ::-1]))


def test_float_tiff(tmp_path, colour):
    grey = colour[..., 2].astype(np.float32)
    for scale in (1, 1 / 255):
        path = write(tmp_path, "a.tif", encoded(grey * np.float32(scale), "TIFF"))
        np.testing.assert_array_equal(read_image(path), colour[..., 2])
    for bad in (grey * 100, grey - 1000, np.where(grey == grey.max(), np.float32(np.nan), grey)):
        with pytest.raises(ImageError, match="8 or 16 bits"):
            read_image(write(tmp_path, "bad.tif", encoded(bad, "TIFF")))


def test_int_tiff_is_refused(tmp_path, colour):
    with pytest.raises(ImageError, match="int32"):
        read_image(write(tmp_path, "a.tif", encoded(colour[..., 0].astype(np.int32), "TIFF")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_one_pixel(tmp_path, kind):
    path = write(tmp_path, "a", encoded(np.full((1, 1), 90, np.uint8), kind))
    np.testing.assert_array_equal(read_image(path), [[90]])


@pytest.mark.parametrize("name", ["süße Ελένη 写真.png", "two  spaces .jpg", "#;'%s{}.png"])
def test_names(tmp_path, colour, name):
    path = write(tmp_path, name, encoded(colour, "PNG"))
    assert read_image(path).shape == (48, 80)


KINDS = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", {}),
    "WEBP": ("WEBP", {}),
    "GIF": ("GIF", {}),
    "PPM": ("PPM", {}),
}


@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path, capfd, colour, kind, options, part):
    data = encoded(colour, kind, **options)
    path = write(tmp_path, "a", data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=r"a: .*export it as PNG or JPEG"):
        read_image(path)
    assert capfd.readouterr().err == ""


def jpeg_with_preview(colour, complete):
    """A JPEG whose EXIF holds a complete JPEG preview, as cameras write."""
    preview = encoded(colour[::4, ::4], "JPEG")
    segment = b"Exif\0\0" + preview
    data = encoded(colour, "JPEG", quality=95)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    return data if complete else data[: len(data) - 200]


def test_preview_does_not_hide_a_truncated_jpeg(tmp_path, colour):
    assert read_image(write(tmp_path, "a.jpg", jpeg_with_preview(colour, True))).shape == (48, 80)
    with pytest.raises(ImageError, match="truncated"):
        read_image(write(tmp_path, "b.jpg", jpeg_with_preview(colour, False)))


def test_bytes_after_the_end_are_allowed(tmp_path, colour):
    for kind in ("JPEG", "PNG"):
        path = write(tmp_path, "a", encoded(colour, kind) + b"\0" * 5000)
        assert read_image(path).shape == (48, 80)


def chunk(tag, body):
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def huge(kind):
    side = 100_000 if kind in ("PNG", "TIFF") else 65_000
    if kind == "PNG":
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
        return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    if kind == "TIFF":
        tags = ((256, 4, side), (257, 4, side), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 9))
        body = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(40)
    data = bytearray(encoded(np.zeros((16, 16), np.uint8), kind))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_huge_header_is_refused_before_decoding(tmp_path, monkeypatch, kind):
    path = write(tmp_path, "a", huge(kind))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"\d+ x \d+ pixels"):
        read_image(path)


def test_files_that_are_no_images(tmp_path, capfd):
    cases = {
        "": "empty",
        "hello": "not an image",
        "\x00" * 1000: "not an image",
    }
    for text, message in cases.items():
        with pytest.raises(ImageError, match=message):
            read_image(write(tmp_path, "a.jpg", text.encode()))
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "a.jpg" / "b.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("nul\0.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / ("x" * 5000))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(ImageError, match="not a file"):
            read_image(path)


def test_unreadable(tmp_path, monkeypatch, colour):
    path = write(tmp_path, "a.png", encoded(colour, "PNG"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    # Not by chmod: a test run as root may read everything.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: Permission denied$"):
        read_image(path)


def test_damaged_files_raise_or_decode(tmp_path, colour):
    rng = np.random.default_rng(0)
    for kind, options in KINDS.values():
        data = encoded(colour, kind, **options)
        for _ in range(20):
            bad = bytearray(data)
            for at in rng.integers(0, len(bad), 8):
                bad[at] = rng.integers(256)
            try:
                found = read_image(write(tmp_path, "a", bytes(bad)))
            except ImageError:
                continue
            assert found.ndim == 2
            assert found.dtype == np.uint8


def test_opencv_log_level_is_restored(tmp_path):
    log = cv2.utils.logging
    before = log.getLogLevel()
    with pytest.raises(ImageError):
        read_image(write(tmp_path, "a.jpg", b"no"))
    assert log.getLogLevel() == before


GOOD = {
    "uint8": np.zeros((3, 4), np.uint8),
    "uint16 in range": np.full((3, 4), 255, np.uint16),
    "int64": np.full((3, 4), 200),
    "float overshoot": np.array([[-5.0, 262.0]], np.float32),
    "black float": np.zeros((2, 2)),
    "half": np.full((2, 2), 100, np.float16),
    "view": np.full((6, 8), 9, np.uint8)[::2, ::-1],
}


@pytest.mark.parametrize("image", GOOD.values(), ids=GOOD)
def test_good_arrays_pass_unchanged(image):
    assert check_grey(image) is image


BAD = {
    "rgb": (np.zeros((5, 6, 3), np.uint8), "COLOR_RGB2GRAY"),
    "rgba": (np.zeros((5, 6, 4), np.uint8), "COLOR_RGB2GRAY"),
    "last axis": (np.zeros((5, 6, 1), np.uint8), r"squeeze\(2\)"),
    "first axis": (np.zeros((1, 5, 6), np.uint8), r"squeeze\(0\)"),
    "stack": (np.zeros((7, 5, 6), np.uint8), r"\(7, 5, 6\)"),
    "row": (np.zeros(5, np.uint8), r"\(5,\)"),
    "nothing": (None, "was not read"),
    "path": ("face.png", r"jclnf\.images\.read_image\(path\)"),
    "empty": (np.zeros((0, 5), np.uint8), "no pixels"),
    "nan": (np.array([[np.nan, 100.0]]), "finite"),
    "infinite": (np.array([[np.inf, 100.0]]), "finite"),
    "0..1": (np.array([[0.2, 0.9]], np.float32), "multiply by 255"),
    "-1..1": (np.array([[-0.5, 0.9]], np.float32), "-1..1"),
    "16 bits": (np.array([[5, 60000]], np.uint16), "257"),
    "negative": (np.array([[-5, 100]]), "0-255"),
    "far out": (np.array([[0.0, 60000.0]]), "0-255"),
    "booleans": (np.ones((3, 3), bool), "booleans"),
    "complex": (np.ones((3, 3), complex), "complex"),
    "objects": (np.full((3, 3), "a"), "type"),
}


@pytest.mark.parametrize(("image", "message"), BAD.values(), ids=BAD)
def test_bad_arrays_are_refused_with_the_remedy(image, message):
    with pytest.raises(ImageError, match=message):
        check_grey(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_it_says(tmp_path, colour, orientation):
    """Pillow writes the orientation as a rotation and a mirroring, and turns by them."""
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(colour, "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    path = write(tmp_path, "a.avif", data)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))[..., ::-1]
    np.testing.assert_allclose(read_image_file(path).colour, expected, atol=2)
    assert kind_of(path) == "image"


@pytest.mark.parametrize("where", ["meta", "pitm", "ipma", "irot"])
def test_a_damaged_avif_is_an_error_or_an_image(tmp_path, colour, where):
    exif = Image.Exif()
    exif[0x112] = 6
    whole = encoded(colour, "AVIF", exif=exif)
    at = whole.index(where.encode())
    for k in range(-4, 12):
        for value in (0x00, 0x7F, 0xFF):
            data = bytearray(whole)
            data[at + k] = value
            path = write(tmp_path, "a.avif", bytes(data))
            with contextlib.suppress(ImageError):  # anything else would come through
                assert read_image(path).dtype == np.uint8


def test_heic_is_read_upright_or_says_what_it_needs(tmp_path, colour, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x112] = 6
    data = encoded(colour, "HEIF", exif=exif, quality=100)
    path = write(tmp_path, "IMG_0001.HEIC", data)
    found = read_image_file(path).colour
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))[..., ::-1]
    np.testing.assert_array_equal(found, expected)
    assert kind_of(path) == kind_of(path.rename(tmp_path / "noending")) == "image"
    for count in (40, 200, len(data) // 2):
        with pytest.raises(ImageError, match=r"IMG_0001\.HEIC: cannot be decoded"):
            read_image(write(tmp_path, "IMG_0001.HEIC", data[:count]))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC image, which needs pillow-heif: pip install"):
        read_image(write(tmp_path, "IMG_0001.HEIC", data))


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "bmp", "tiff", "webp", "ppm", "pgm", "jp2", "gif", "avif"]
)
def test_images_are_known_by_their_contents(tmp_path, colour, kind):
    image = colour[..., 0] if kind == "pgm" else colour
    path = write(tmp_path, "noending", cv2.imencode(f".{kind}", image)[1].tobytes())
    assert kind_of(path) == "image"
    assert kind_of(path.rename(tmp_path / "a.txt")) == "image"


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *(("mp4", "mpeg4"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("matroska", "mpeg4")),
        *(("webm", "libvpx"), ("mpegts", "mpeg2video"), ("vob", "mpeg2video"), ("flv", "flv1")),
        *(("asf", "msmpeg4v3"), ("ogg", "theora"), ("mxf", "mpeg2video"), ("h264", "libx264")),
        *(("hevc", "libx265"), ("mpeg2video", "mpeg2video"), ("dv", "dvvideo"), ("3gp", "mpeg4")),
    ],
)
def test_videos_are_known_by_their_contents(tmp_path, container, codec):
    pyav = pytest.importorskip("av")
    path = tmp_path / "noending"
    try:
        out = pyav.open(str(path), "w", format=container)
        stream = out.add_stream(codec, rate=25)
    except (ValueError, pyav.error.FFmpegError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    with out:
        stream.width, stream.height = (720, 576) if codec == "dvvideo" else (176, 144)
        stream.pix_fmt = "yuv420p"
        for level in (0, 90, 180):
            shape = (stream.height, stream.width, 3)
            frame = pyav.VideoFrame.from_ndarray(np.full(shape, level, np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    assert kind_of(path) == "video"


def test_other_files_are_neither(tmp_path, colour):
    sound = b"RIFF\x24\0\0\0WAVEfmt " + bytes(24)
    tiff = encoded(colour, "TIFF")
    for name, data in (
        *(("a", b""), ("b.txt", b"hello"), ("c.pts", b"version: 1\n"), ("d.wav", sound)),
        *(("e.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42"), ("f.nef", tiff), ("g.csv", b"P,1\n")),
        *(("h.py", b"BM = 1\n"), ("i.zip", b"PK\3\4" + bytes(30)), ("j.pdf", b"%PDF-1.7\n")),
    ):
        assert kind_of(write(tmp_path, name, data)) == ""
    for name in ("model.mod", "program.ts"):
        assert kind_of(write(tmp_path, name, b"import { a } from 'b';\n")) == ""
    # A usual ending is believed: reading says what is wrong.
    assert kind_of(write(tmp_path, "k.jpg", b"hello")) == "image"
    assert kind_of(write(tmp_path, "l.WMV", b"")) == "video"
    jpeg = encoded(colour, "JPEG")
    assert kind_of(write(tmp_path, "m.mjpeg", jpeg + jpeg)) == "video"


def test_a_folder_is_looked_through(tmp_path, colour):
    (tmp_path / "deep" / "out").mkdir(parents=True)
    for name in ("b.png", "a", "deep/c.txt", ".hidden.png", "deep/drawn.png", "deep/out/d.png"):
        write(tmp_path, name, encoded(colour, "PNG"))
    write(tmp_path, "notes.txt", b"hello")
    claim(tmp_path / "deep", "fit", fixed=["drawn.png.csv"])
    record = {"outputs": {name: ["fit", "", ""] for name in ("drawn.png", "out")}}
    write(tmp_path, f"deep/{RECORD}", json.dumps(record).encode())

    def shown(folder):
        kinds = (folder.images, folder.others, folder.outputs, folder.folders)
        return [[path.relative_to(tmp_path).as_posix() for path in paths] for paths in kinds]

    flat, deep = Folder.of(tmp_path), Folder.of(tmp_path, deep=True)
    assert shown(flat) == [["a", "b.png"], ["notes.txt"], [], ["deep"]]
    assert shown(deep) == [["a", "b.png", "deep/c.txt"], ["notes.txt"], ["deep/drawn.png"], []]
    (line,) = deep.left_out("images")
    drawn = Path("deep", "drawn.png")
    assert line == f"{tmp_path}: 2 left out (no images: notes.txt; written by jclnf: {drawn})"

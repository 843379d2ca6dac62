"""Files of every type of value, page and band: read right, or refused with the name and the way out."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

import datamodules.decode as decoding
from datamodules.decode import MOST_PIXELS, decode, read_drawn, stored_size, turned
from datamodules.files import read_image, read_mask, to_rgb, upright_mask

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
DEEP[0, 0] = 65535
ORIENTATION = 0x0112


def png(path, pixels, depth, kind, size=None):
    """A PNG written by hand: Pillow writes no 16-bit colours and no 2-bit grey."""
    height, width = pixels.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        bits = (pixels[..., None] >> np.arange(depth)[::-1] & 1).reshape(height, -1).astype(np.uint8)
        rows = [np.packbits(row).tobytes() for row in bits]
    width, height = size or (width, height)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )
    return path


def tiff(path, array, **how):
    tifffile.imwrite(path, array, **how)
    return path


def refused(path, *words, call=read_image):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
        call(path)
    missing = [word for word in (path, *words) if str(word) not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + bytes(26)])
def test_postscript_under_the_name_of_a_picture_is_not_run(start, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    path = tmp_path / "a.jpg"
    path.write_bytes(start + b"%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    for call in (read_image, stored_size):
        refused(path, "PostScript", call=call)


# What is read ------------------------------------------------------------------------------------------------------

BYTES = RNG.integers(0, 256, (6, 9, 3), np.uint8)
READ = {
    "8-bit RGB": lambda path: tiff(path, BYTES),
    "8-bit RGB in planes": lambda path: tiff(
        path, BYTES.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    ),
    "8-bit RGB, deflated": lambda path: tiff(path, BYTES, compression="zlib", predictor=True),
    "BigTIFF": lambda path: tiff(path, BYTES, bigtiff=True),
    "big-endian": lambda path: tiff(path, BYTES, byteorder=">"),
    "RGB and transparency": lambda path: tiff(
        path, np.dstack([BYTES, np.full((6, 9), 255, np.uint8)]), extrasamples=["unassalpha"]
    ),
    "16-bit RGB": lambda path: tiff(path, BYTES.astype(np.uint16) * 257, photometric="rgb"),
    "16-bit RGB in planes": lambda path: tiff(
        path, (BYTES.astype(np.uint16) * 257).transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    ),
    "16-bit RGB PNG": lambda path: png(path.with_suffix(".png"), BYTES.astype(np.uint16) * 257, 16, 2),
    "a smaller copy as a second page": lambda path: with_overview(path, BYTES),
    "a smaller copy as the first page": lambda path: with_overview(path, BYTES, first=True),
    "a smaller copy of 16 bits": lambda path: with_overview(path, BYTES.astype(np.uint16) * 257, first=True),
    "LZW": lambda path: (Image.fromarray(BYTES).save(path, compression="tiff_lzw"), path)[1],
}  # fmt: skip


def with_overview(path, pixels, first=False):
    with tifffile.TiffWriter(path) as file:
        for small in (True, False) if first else (False, True):
            file.write(pixels[::2, ::2] if small else pixels, photometric="rgb", subfiletype=int(small))
    return path


@pytest.mark.parametrize("kind", READ)
def test_files_that_are_read_exactly(tmp_path, kind):
    path = READ[kind](tmp_path / "a.tif")
    assert read_image(path).tolist() == BYTES.tolist()
    assert stored_size(path) == ((6, 9), 1)


@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
def test_one_bit_and_grey_tiffs(tmp_path, white):
    grey = BYTES[..., 0]
    expected = grey if white == "minisblack" else 255 - grey
    assert (read_image(tiff(tmp_path / "a.tif", grey, photometric=white)) == expected[..., None]).all()
    bits = grey > 128
    expected = np.where(bits == (white == "minisblack"), 255, 0)
    assert (read_image(tiff(tmp_path / "b.tif", bits, photometric=white)) == expected[..., None]).all()


@pytest.mark.parametrize("values", [None, {0: 0, 255: 1}])
def test_masks_whose_0_is_white_are_refused_and_not_inverted(tmp_path, values):
    path = tiff(tmp_path / "a.tif", np.uint8([[0, 255]]), photometric="miniswhite")  # as ImageJ saves particles
    refused(path, "white-is-0 TIFF", "PNG of class ids", call=lambda path: read_mask(path, 2, None, values))
    path = tiff(tmp_path / "b.tif", np.uint8([[0, 255]]), photometric="minisblack")
    assert read_mask(path, 2, None, {0: 0, 255: 1}).tolist() == [[0, 1]]


def test_full_range_16_bits_are_divided_by_257(tmp_path):
    for path in (
        tiff(tmp_path / "a.tif", DEEP[..., 0]),
        tiff(tmp_path / "z.tif", DEEP[..., 0], compression="zlib"),
        png(tmp_path / "a.png", DEEP[..., 0], 16, 0),
    ):
        assert (read_image(path) == (DEEP[..., :1] // 257)).all()
    alpha = np.dstack([DEEP, DEEP[..., 0]])
    assert (read_image(png(tmp_path / "b.png", alpha, 16, 6)) == DEEP // 257).all()
    assert (to_rgb(Image.fromarray(DEEP[..., 0])) == DEEP[..., :1] // 257).all()


def test_an_all_black_16_bit_picture_is_black_in_any_range(tmp_path):
    assert not read_image(png(tmp_path / "a.png", np.zeros((2, 3)), 16, 0)).any()


def test_a_jpeg_with_a_preview_as_its_second_picture_is_read(tmp_path):
    photo = Image.fromarray(BYTES)
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo.resize((4, 3))])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert read_image(tmp_path / "a.jpg").shape == (6, 9, 3)


# What needs a range ------------------------------------------------------------------------------------------------

NEED_A_RANGE = {
    "float 0..1": (RNG.random((6, 9)).astype(np.float32), "float32", [0, 1]),
    "float64 0..255": (RNG.random((6, 9)) * 200 + 2, "float64", [0, 255]),
    "float RGB": (RNG.random((6, 9, 3)).astype(np.float32), "float32", [0, 1]),
    "8 bits in 16": (RNG.integers(0, 256, (6, 9), np.uint16), "uint16", [0, 255]),
    "10 bits in 16": (RNG.integers(400, 1024, (6, 9), np.uint16), "uint16", [0, 1023]),
    "12 bits in 16": (RNG.integers(2000, 4096, (6, 9), np.uint16), "uint16", [0, 4095]),
    "12 bits in 16, RGB": (RNG.integers(2000, 4096, (6, 9, 3), np.uint16), "uint16", [0, 4095]),
    "14 bits in 16": (RNG.integers(9000, 16384, (6, 9), np.uint16), "uint16", [0, 16383]),
    "elevations": (RNG.integers(-30, 900, (6, 9), np.int16), "int16", None),
    "int8": (RNG.integers(-128, 128, (6, 9), np.int8), "int8", None),
    "int32": (RNG.integers(0, 256, (6, 9), np.int32), "int32", [0, 255]),
    "uint32": (RNG.integers(0, 2**31, (6, 9), np.uint32), "uint32", None),
}


@pytest.mark.parametrize("kind", NEED_A_RANGE)
def test_values_without_a_fixed_brightness_are_refused_or_mapped(tmp_path, kind):
    values, name, suggested = NEED_A_RANGE[kind]
    path = tiff(tmp_path / "a.tif", values, **({"photometric": "rgb"} if values.ndim == 3 else {}))
    low, high = values.min(), values.max()
    refused(path, name, f"{low:.6g}", f"{high:.6g}", "data.value_range", f"[{', '.join(map(str, suggested or []))}")
    middle = (float(low) + float(high)) / 2
    expected = ((values.astype(np.float64) - low) / (middle - low) * 255).round().clip(0, 255)
    found = read_image(path, [float(low), middle])
    expected = expected if values.ndim == 3 else expected[..., None]
    assert np.abs(found - expected).max() <= 1  # half a value may be rounded either way
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize("kind", ["12 bits in 16", "12 bits in 16, RGB"])
def test_16_bit_pngs_too(tmp_path, kind):
    values, *_ = NEED_A_RANGE[kind]
    path = png(tmp_path / "a.png", values, 16, 2 if values.ndim == 3 else 0)
    refused(path, "uint16", "[0, 4095]")
    assert (
        np.abs(read_image(path, [0, 4095]).astype(int)[..., 0] - values.reshape(6, 9, -1)[..., 0] / 4095 * 255).max()
        < 1
    )


def test_8_bit_pictures_keep_their_values_whatever_the_range(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", [0, 4095]) == BYTES).all()


def test_pixels_that_are_no_numbers_are_counted(tmp_path):
    values = np.ones((4, 5), np.float32)
    values[1, 1:3] = np.nan
    values[0, 0] = np.inf
    refused(tiff(tmp_path / "a.tif", values), "3 values that are no numbers", "fill")
    with pytest.raises(ValueError, match="3 values"):
        read_image(tmp_path / "a.tif", [0, 1])
    refused(tiff(tmp_path / "c.tif", values.astype(np.complex64)), "complex64")


# Pages and bands ---------------------------------------------------------------------------------------------------

FOUR = RNG.integers(0, 256, (40, 50, 4), np.uint8)
PARTS = {
    "pages": (lambda p: tiff(p, BYTES[None].repeat(3, 0), photometric="rgb"), ["3 pages", "a file of its own"]),
    "pages of grey": (lambda p: tiff(p, BYTES[..., 0][None].repeat(7, 0), photometric="minisblack"), ["7 pages"]),
    "an ImageJ stack": (lambda p: tiff(p, BYTES[..., 0][None].repeat(5, 0), imagej=True), ["5 pages"]),
    "four bands": (lambda p: tiff(p, FOUR, photometric="rgb", extrasamples=["unspecified"]), ["4 bands", "only 3"]),
    "near infrared called alpha": (lambda p: tiff(p, FOUR, photometric="rgb", extrasamples=[2]), ["4 bands", "only 3"]),
    "a fourth band of two values called alpha": (
        lambda p: tiff(p, np.dstack([FOUR[..., :3], FOUR[..., 3] // 128 * 200 + 20]), extrasamples=["unassalpha"]),
        ["4 bands", "only 3"],
    ),
    "two bands": (lambda p: tiff(p, FOUR[..., :2], photometric="minisblack", planarconfig="contig"), ["2 bands"]),
    "six bands": (
        lambda p: tiff(p, np.dstack([FOUR, FOUR[..., :2]]), photometric="minisblack", planarconfig="contig"),
        ["6 bands", "save those"],
    ),
    "13 bands of 16 bits": (
        lambda p: tiff(p, np.zeros((13, 8, 9), np.uint16), photometric="minisblack", planarconfig="separate"),
        ["13 bands"],
    ),
    "a volume": (
        lambda p: tiff(p, np.zeros((4, 16, 16)), photometric="minisblack", volumetric=True, tile=(4, 16, 16)),
        ["axes ZYX"],
    ),
    "a filter mosaic": (lambda p: tiff(p, BYTES[..., 0], photometric="cfa"), ["CFA"]),
    "an animation": (lambda p: animation(p.with_suffix(".png")), ["3 frames", "a file of its own"]),
    "an animated WebP": (lambda p: animation(p.with_suffix(".webp")), ["3 frames"]),
}  # fmt: skip


def animation(path):
    frames = [Image.fromarray(np.roll(BYTES, shift)) for shift in (1, 2, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


@pytest.mark.parametrize("kind", PARTS)
def test_further_pages_and_bands_are_refused(tmp_path, kind):
    draw, words = PARTS[kind]
    path = draw(tmp_path / "a.tif")
    refused(path, *words)
    refused(path, *words, call=lambda path: read_mask(path, 2, None))


def test_a_compression_without_its_decoder_names_the_package(tmp_path, monkeypatch):
    path = tiff(tmp_path / "a.tif", BYTES.astype(np.float32), photometric="rgb")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["Compression"].valueoffset
    content[at : at + 2] = struct.pack("<H", 34887)  # LERC
    path.write_bytes(content)
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        refused(path, ".[images]", "without compression")
    else:
        refused(path, "cannot be read")


# Broken files ------------------------------------------------------------------------------------------------------


def test_the_size_is_checked_before_anything_is_decoded(tmp_path):
    for width, height in ((10**6, 10**6), (MOST_PIXELS, 2)):
        path = png(tmp_path / "a.png", np.zeros((1, 1), np.uint8), 8, 0, size=(width, height))
        refused(path, f"{width} x {height} pixels", "268 million", "tiles")
    path = tiff(tmp_path / "a.tif", np.zeros((16, 16), np.float32), tile=(16, 16))
    content = path.read_bytes()
    for tag in (b"\x00\x01", b"\x01\x01"):
        at = content.index(tag + struct.pack("<HI", 4 if content.find(tag + b"\x04\x00") > 0 else 3, 1)) + 8
        content = content[:at] + struct.pack("<I", 10**6 if tag == b"\x00\x01" else 10**5) + content[at + 4 :]
    path.write_bytes(content)
    refused(path, "1000000 x 100000 pixels", "tiles")


def test_a_tiff_holds_no_more_than_its_size_says(tmp_path):
    path = tiff(tmp_path / "a.tif", np.zeros((8, 8), np.float32), compression="zlib")
    bomb, content = zlib.compress(bytes(10**7)), bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = (file.pages[0].tags[name] for name in ("StripOffsets", "StripByteCounts"))
        for tag, value in ((offset, len(content)), (count, len(bomb))):
            struct.pack_into("<HII", content, tag.offset + 2, 4, 1, value)
    path.write_bytes(content + bomb)
    refused(path, "more than its size says")


def test_a_picture_beyond_pillows_limit_is_read_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (6, 9, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_drawn_mask_beyond_pillows_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    mask = RNG.integers(0, 256, (6, 9), np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert (read_drawn(tmp_path / "a.png") == mask).all()


def broken(kind, path):
    picture = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), np.uint8))
    match kind:
        case "EXIF that is none":
            picture.save(path := path.with_suffix(".jpg"), exif=b"Exif\0\0MM\0\x99garbage that is no TIFF header")
        case "EXIF that is cut":
            picture.save(path := path.with_suffix(".jpg"), exif=b"Exif\0\0II*\0\x08\0\0\0\x40\0\x12\x01")
        case "EXIF with an orientation that is no number":
            tag = struct.pack("<HHII", ORIENTATION, 7, 4, 0x20202020)
            exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + b"\0" * 4
            picture.save(path := path.with_suffix(".jpg"), exif=exif)
        case "TIFF without a page":
            path.write_bytes(b"II*\0\x08\0\0\0")
        case "TIFF that ends in its tags":
            content = tiff(path, BYTES).read_bytes()
            path.write_bytes(content[:60])
        case "TIFF that ends in its pixels":
            content = tiff(path, np.zeros((50, 50), np.float32)).read_bytes()
            path.write_bytes(content[:2000])
        case "TIFF whose pages lead back":
            content = bytearray(tiff(path, BYTES).read_bytes())
            tags = struct.unpack_from("<H", content, 8)[0]
            struct.pack_into("<I", content, 10 + 12 * tags, 8)
            path.write_bytes(content)
            return path
        case "TIFF of nonsense":
            path.write_bytes(b"II*\0\x08\0\0\0" + bytes(range(256)) * 4)
        case "a folder":
            path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("EXIF that is none", "EXIF that is cut", "EXIF with an orientation that is no number"),
        *("TIFF without a page", "TIFF that ends in its tags"),
        *("TIFF that ends in its pixels", "TIFF of nonsense", "a folder"),
    ],
)
def test_broken_files_end_in_one_line(tmp_path, kind, capfd):
    path = broken(kind, tmp_path / "a.tif")
    refused(path, "cannot be read as an image", "replace it, or remove it")
    if kind.startswith("EXIF with"):
        refused(path, "EXIF orientation", call=lambda path: upright_mask(BYTES[..., 0], path))
    assert capfd.readouterr() == ("", "")


def test_bytes_at_random_never_end_in_another_error(tmp_path):
    """Files with some bytes changed are read or refused, whatever was hit."""
    rng = np.random.default_rng(3)
    for number in range(60):
        path = tiff(tmp_path / f"{number}.tif", BYTES.astype(np.float32) / 255, photometric="rgb")
        content = bytearray(path.read_bytes())
        for at in rng.integers(0, 260, 3):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert read_image(path, [0, 1]).shape[2] == 3
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_broken_colour_profile_does_not_matter(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "a.png", icc_profile=b"no profile")
    assert (read_image(tmp_path / "a.png") == BYTES).all()


# Orientation -------------------------------------------------------------------------------------------------------


def oriented(path, array, turn):
    picture = Image.fromarray(array)
    exif = picture.getexif()
    exif[ORIENTATION] = turn
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, turn, suffix):
    path = oriented(tmp_path / f"a{suffix}", BYTES, turn)
    exif = Image.new("L", (1, 1)).getexif()
    exif[ORIENTATION] = turn
    plain = Image.fromarray(BYTES)
    plain.getexif()[ORIENTATION] = turn
    expected = np.asarray(ImageOps.exif_transpose(plain))
    assert read_image(path).tolist() == expected.tolist()
    assert turned(BYTES, turn).tolist() == expected.tolist()
    assert stored_size(path) == ((6, 9), turn)
    float_tiff = tiff(tmp_path / "f.tif", BYTES.astype(np.float32), photometric="rgb", extratags=[(274, "H", 1, turn)])
    assert read_image(float_tiff, [0, 255]).tolist() == expected.tolist()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_of_the_stored_size_is_turned_with_its_image(tmp_path, turn):
    image = oriented(tmp_path / "a.jpg", BYTES, turn)
    stored = RNG.integers(0, 3, (6, 9), np.uint8)
    upright = turned(stored, turn)
    if turn < 5:  # the sizes do not tell
        assert upright_mask(stored, image)[0] is stored
        assert upright_mask(stored, image)[1] == (turn > 1)
        return
    found, unclear = upright_mask(stored, image)
    assert found.tolist() == upright.tolist()
    assert not unclear
    assert upright_mask(upright, image)[0].tolist() == upright.tolist()
    assert upright_mask(stored[:5], image)[0].shape == (5, 9)  # told of where sizes are checked
    square = oriented(tmp_path / "b.jpg", BYTES[:6, :6], turn)
    assert upright_mask(stored[:6, :6], square)[0].tolist() == stored[:6, :6].tolist()
    assert upright_mask(stored[:6, :6], square)[1]


def test_a_masks_own_orientation_counts(tmp_path):
    ids = RNG.integers(0, 3, (6, 9), np.uint8)
    assert read_mask(oriented(tmp_path / "a.png", ids, 6), 3, None).tolist() == turned(ids, 6).tolist()


def test_greys_of_few_bits_are_ids_in_masks_and_brightness_in_images(tmp_path):
    ids = np.array([[0, 1, 2, 3]], np.uint8)
    path = png(tmp_path / "a.png", ids, 2, 0)
    assert read_mask(path, 4, None).tolist() == ids.tolist()
    assert read_image(path)[0, :, 0].tolist() == [0, 85, 170, 255]
    assert decode(path).step == 85
    path = png(tmp_path / "b.png", np.array([[0, 7, 15, 3]], np.uint8), 4, 0)
    assert read_mask(path, 16, None).tolist() == [[0, 7, 15, 3]]


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_a_large_picture_is_read_band_by_band_as_at_once(mode, tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 20, 3), np.uint8)).convert(mode)
    picture.save(tmp_path / "a.png")
    once = decode(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "BANDED", 100)
    bands = decode(tmp_path / "a.png")
    assert bands.pixels.dtype == np.uint8
    assert (bands.pixels == once.pixels).all()
    assert (bands.opacity == once.opacity) if bands.opacity is None else (bands.opacity == once.opacity).all()

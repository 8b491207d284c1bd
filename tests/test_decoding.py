"""One image file to pixels: depth, transparency, orientation, size."""

import struct
import threading
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
from conftest import first_quick, slow_on_jax

from ddim_keras.data import decoding, load_dataset, read_images

pytestmark = slow_on_jax

MAGENTA, WHITE = (255, 0, 255), (255, 255, 255)


def write_png(path, values, depth=16, key=None, significant=None):
    """Write uint16 values (height, width) or (height, width, 2 to 4) as a PNG, which Pillow
    cannot.
    """
    values = np.asarray(values)
    channels = 1 if values.ndim == 2 else values.shape[2]
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    )
    if significant:
        content += chunk(b"sBIT", bytes([significant] * channels))
    if key is not None:
        content += chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    path.write_bytes(content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def as_bytes(images):
    return np.rint(np.asarray(images) * 255).astype(int)


def only_image(folder, size, **options):
    train, _ = load_dataset(folder, size, 1, split=0.0, **options)
    return as_bytes(next(iter(train)))[0]


def half_hidden(path, colour=MAGENTA, mode="RGBA"):
    """The left half black and opaque, the right half of a colour that is invisible."""
    image = PIL.Image.new("RGBA", (8, 8), (*colour, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.quantize(4)
    image.convert(mode).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


class TestTransparency:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [
            ("a.png", "RGBA"),
            ("a.png", "LA"),
            ("a.png", "P"),
            ("a.gif", "RGBA"),
            ("a.webp", "RGBA"),
            ("a.tif", "RGBA"),
        ],
    )
    def test_what_is_invisible_becomes_the_background(self, tmp_path, name, mode):
        half_hidden(tmp_path / name, mode=mode)
        with pytest.warns(UserWarning, match=rf"1 of 1 images in .* transparent in parts.*{name}"):
            image = only_image(tmp_path, 8, channels=3)
        np.testing.assert_array_equal(image[:, :4], 0)
        np.testing.assert_array_equal(image[:, 4:], 255)
        with pytest.warns(UserWarning, match="laid on the background .*0, 128, 255"):
            image = read_images([tmp_path / name], 8, 3, background=(0, 128, 255))[0]
        np.testing.assert_array_equal(as_bytes(image)[0, 6], (0, 128, 255))

    @pytest.mark.parametrize("mode", ["L", "RGB", "1", "L;2"])
    def test_one_transparent_colour_of_a_png(self, tmp_path, mode):
        path = tmp_path / "a.png"
        if mode == "L;2":  # two bits a pixel: 0, 1, 2, 3, of which 1 is transparent
            write_png(path, np.array([[0b00011011]]), depth=8, key=(1,))
            content = path.read_bytes().replace(
                struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
                struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0),
            )
            path.write_bytes(
                content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
            )
            expected = [0, 255, 170, 255]
        else:
            image = PIL.Image.new(mode, (4, 1), 0)
            colour = {"L": 10, "RGB": (10, 20, 30), "1": 0}[mode]
            image.putpixel((1, 0), colour)
            image.save(path, transparency=colour)
            expected = [255] * 4 if mode == "1" else [0, 255, 0, 0]
        with pytest.warns(UserWarning, match="transparent in parts"):
            image = as_bytes(read_images([path], (1, 4), 1))[0]
        np.testing.assert_array_equal(image[0, :, 0], expected)

    def test_partial_alpha_is_mixed_in(self, tmp_path):
        PIL.Image.new("RGBA", (4, 4), (200, 0, 0, 51)).save(tmp_path / "a.png")
        with pytest.warns(UserWarning):
            image = only_image(tmp_path, 4, background="#0000ff")
        np.testing.assert_array_equal(
            image[0, 0], (40, 0, 204)
        )  # a fifth of red over four fifths of blue

    def test_sixteen_bit_alpha(self, tmp_path):
        grey = np.full((2, 2), 65535 // 4, "uint16")
        write_png(tmp_path / "grey.png", np.stack([grey, np.array([[0, 65535]] * 2)], axis=-1))
        write_png(tmp_path / "key.png", np.array([[300, 301]] * 2), key=(300,))
        write_png(
            tmp_path / "colours.png", np.array([[[1, 2, 3], [65535, 0, 257]]] * 2), key=(1, 2, 3)
        )
        with pytest.warns(UserWarning, match="3 of 3 images"):
            names = ("grey.png", "key.png", "colours.png")
            images = as_bytes(read_images([tmp_path / name for name in names], 2, 3, bits=16))
        np.testing.assert_array_equal(images[0, 0, :, 0], [255, 64])
        np.testing.assert_array_equal(images[1, 0, :, 0], [255, 1])
        np.testing.assert_array_equal(images[2, 0], [(255, 255, 255), (255, 0, 1)])
        assert decoding.examine(tmp_path / "grey.png").grey

    def test_with_four_channels_a_disc_keeps_its_colour_to_the_edge(self, tmp_path):
        rows, columns = np.mgrid[:128, :128] - 63.5
        disc = np.hypot(rows, columns) < 50
        pixels = np.where(disc[..., None], 255, 0).astype("uint8").repeat(4, axis=-1)
        PIL.Image.fromarray(pixels).save(tmp_path / "disc.png")
        for fit in ("crop", "pad"):
            image = only_image(tmp_path, 32, channels=4, fit=fit)
            alpha = image[..., 3]
            assert ((alpha > 0) & (alpha < 255)).any()
            np.testing.assert_array_equal(image[alpha > 0][:, :3], 255)
            np.testing.assert_array_equal(image[alpha == 0], 0)

    def test_padding_is_transparent_with_four_channels_and_black_with_three(self, tmp_path):
        PIL.Image.new("RGB", (4, 8), WHITE).save(tmp_path / "a.png")
        assert [only_image(tmp_path, 8, channels=n, fit="pad")[0, 0].tolist() for n in (3, 4)] == [
            [0] * 3,
            [0] * 4,
        ]
        assert only_image(tmp_path, 8, channels=4, fit="pad")[0, 4].tolist() == [255] * 4

    def test_opaque_images_with_alpha_are_no_matter_for_a_warning(self, tmp_path):
        PIL.Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            np.testing.assert_array_equal(
                only_image(tmp_path, 4), np.broadcast_to((1, 2, 3), (4, 4, 3))
            )

    def test_four_channels_of_tfds_are_laid_on_the_background(self, tmp_path):
        images = np.zeros((2, 4, 4, 4), "uint8")
        images[..., :3], images[:, :, :2, 3] = MAGENTA, 255
        builder = tfds_of(tmp_path, images)
        with pytest.warns(UserWarning, match="is laid on the background"):
            train, _ = load_dataset(
                builder, 4, 2, split=("train", None), channels=3, background="lime"
            )
        image = as_bytes(next(iter(train)))[0]
        assert image[0, 0].tolist() == list(MAGENTA) and image[0, 3].tolist() == [0, 255, 0]
        assert load_dataset(builder, 4, 2, split=("train", None))[0].element_spec.shape[-1] == 4

    @pytest.mark.parametrize(
        "background", ["no colour", (1, 2), (0, 0, 256), (0.5, 0.5, 0.5), 7, "#00000080"]
    )
    def test_backgrounds_that_are_no_colour(self, background):
        with pytest.raises(ValueError, match="background must be a colour"):
            read_images([], 8, 3, background=background)


def tfds_of(folder, images):
    """A prepared TFDS data set of these images."""
    import tensorflow_datasets as tfds

    class Deep(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            feature = tfds.features.Image(shape=images.shape[1:], dtype=images.dtype)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": feature})
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((index, {"image": image}) for index, image in enumerate(images))

    builder = Deep(data_dir=folder / "tfds")
    builder.download_and_prepare()
    return builder


class TestDepth:
    RAMP = np.array([[0, 1365, 2730, 4095]] * 4, "uint16")

    def save(self, path, values, kind):
        if kind == "colours":
            write_png(path.with_suffix(".png"), values[..., None].repeat(3, axis=-1))
        elif kind == "png":
            PIL.Image.fromarray(values).save(path.with_suffix(".png"))
        else:
            PIL.Image.fromarray(values.astype(kind)).save(path.with_suffix(".tif"))

    @pytest.mark.parametrize("kind", ["png", "uint16", "int32", "colours"])
    @pytest.mark.parametrize("bits", first_quick([12, 8, 10, 14]))
    def test_fewer_bits_in_sixteen_are_told_by_the_largest_value_of_all(self, tmp_path, kind, bits):
        white = 2**bits - 1
        self.save(
            tmp_path / "a", np.array([[0, white // 3, 2 * white // 3, white]] * 4, "uint16"), kind
        )
        self.save(tmp_path / "dark", np.full((4, 4), white // 5, "uint16"), kind)
        with pytest.warns(
            UserWarning, match=rf"largest value is {white}, so they are read as {bits} bits"
        ):
            train, _ = load_dataset(tmp_path, 4, 2, split=0.0, channels=1, drop_remainder=False)
        images = sorted(as_bytes(next(iter(train)))[:, 0, :, 0].tolist(), key=sum)
        np.testing.assert_allclose(images, [[51] * 4, [0, 85, 170, 255]], atol=1)
        with pytest.warns(UserWarning, match=f"read as {bits} bits"):
            paths = sorted(tmp_path.iterdir())
            np.testing.assert_allclose(
                as_bytes(read_images(paths, 4, 1))[:, 0, :, 0], images[::-1], atol=1
            )

    def test_a_dark_image_beside_a_bright_one_stays_dark(self, tmp_path):
        PIL.Image.fromarray(self.RAMP).save(tmp_path / "dark.png")
        PIL.Image.fromarray(self.RAMP * 16).save(tmp_path / "bright.png")
        images = as_bytes(read_images([tmp_path / "dark.png", tmp_path / "bright.png"], 4, 1))[
            :, 0, :, 0
        ]
        np.testing.assert_allclose(images, [[0, 5, 11, 16], [0, 85, 170, 255]], atol=1)

    def test_bits_can_be_said(self, tmp_path):
        PIL.Image.fromarray(self.RAMP).save(tmp_path / "a.png")
        PIL.Image.fromarray((self.RAMP // 16).astype("float32")).save(tmp_path / "b.tif")
        assert as_bytes(read_images([tmp_path / "a.png"], 4, 1, bits=16)).max() == 16
        np.testing.assert_array_equal(only_image_of(tmp_path / "a.png", bits=12), [0, 85, 170, 255])
        np.testing.assert_array_equal(only_image_of(tmp_path / "b.tif", bits=8), [0, 85, 170, 255])
        with pytest.raises(
            ValueError, match="its largest value is 4095, but bits=10 has 1023 as white"
        ):
            read_images([tmp_path / "a.png"], 4, 1, bits=10)
        with pytest.raises(ValueError, match="bits must be an integer from 1 to 32"):
            read_images([tmp_path / "a.png"], 4, 1, bits="12")

    def test_what_a_file_says_of_its_depth_is_believed(self, tmp_path):
        dark = self.RAMP // 8
        PIL.Image.fromarray(dark).save(tmp_path / "a.tif", tiffinfo={281: 4095})
        write_png(tmp_path / "a.png", dark, significant=12)
        write_png(tmp_path / "colours.png", dark[..., None].repeat(3, axis=-1), significant=12)
        (tmp_path / "a.pgm").write_bytes(b"P5 4 4 4095\n" + dark.astype(">u2").tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for name in ("a.tif", "a.png", "colours.png", "a.pgm"):
                np.testing.assert_allclose(
                    only_image_of(tmp_path / name), [0, 11, 21, 32], atol=1, err_msg=name
                )
            # As the standard of PNG has it: scaled to 16 bits, with 12 that count.
            write_png(tmp_path / "scaled.png", self.RAMP * 16, significant=12)
            np.testing.assert_allclose(
                only_image_of(tmp_path / "scaled.png"), [0, 85, 170, 255], atol=1
            )

    def test_twelve_bits_a_pixel(self, tmp_path):
        packed = bytes.fromhex("000555aaafff") * 4
        PIL.Image.new("L", (6, 4)).save(tmp_path / "a.tif", compression=None)
        content = bytearray((tmp_path / "a.tif").read_bytes())
        entries = struct.unpack_from("<H", content, struct.unpack_from("<I", content, 4)[0])[0]
        start = struct.unpack_from("<I", content, 4)[0] + 2
        for entry in range(start, start + 12 * entries, 12):
            tag = struct.unpack_from("<H", content, entry)[0]
            if tag in (256, 258, 273):
                kind = struct.unpack_from("<H", content, entry + 2)[0]
                value = {256: 4, 258: 12, 273: len(content)}[tag]
                struct.pack_into("<H" if kind == 3 else "<I", content, entry + 8, value)
        (tmp_path / "a.tif").write_bytes(bytes(content) + packed)
        np.testing.assert_array_equal(only_image_of(tmp_path / "a.tif"), [0, 85, 170, 255])

    def test_white_may_be_zero(self, tmp_path):
        PIL.Image.fromarray(self.RAMP * 16).save(tmp_path / "a.tif", tiffinfo={262: 0})
        np.testing.assert_allclose(only_image_of(tmp_path / "a.tif"), [255, 170, 85, 0], atol=1)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("compression", ["none", "tiff_lzw", "tiff_adobe_deflate"])
    def test_colour_tiffs_give_all_their_bits(self, tmp_path, order, compression):
        write_rgb_tiff(tmp_path / "a.tif", self.RAMP, order, compression)
        with pytest.warns(UserWarning, match="read as 12 bits"):
            np.testing.assert_array_equal(only_image_of(tmp_path / "a.tif"), [0, 85, 170, 255])
        write_rgb_tiff(tmp_path / "a.tif", self.RAMP * 16 + 15, order, compression)
        np.testing.assert_allclose(only_image_of(tmp_path / "a.tif"), [0, 85, 170, 255], atol=1)

    def test_colours_of_which_only_half_the_bits_can_be_read_are_refused_in_words(self, tmp_path):
        write_rgb_tiff(tmp_path / "full.tif", self.RAMP * 16, kind=5)  # CMYK
        np.testing.assert_allclose(only_image_of(tmp_path / "full.tif"), [255, 115, 29, 0], atol=2)
        write_rgb_tiff(tmp_path / "few.tif", self.RAMP, kind=5)
        with pytest.raises(
            ValueError, match="only the upper 8 bits of such a file can be read: save them as PNG"
        ):
            read_images([tmp_path / "few.tif"], 4, 3)
        read_images([tmp_path / "few.tif"], 4, 3, bits=16)

    def test_floats_in_the_unit_interval_and_others(self, tmp_path):
        ramp = np.array([[0, 1 / 3, 2 / 3, 1]] * 4, "float32")
        PIL.Image.fromarray(ramp).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(only_image_of(tmp_path / "a.tif"), [0, 85, 170, 255])
        np.testing.assert_array_equal(only_image(tmp_path, 4)[0, :, 0], [0, 85, 170, 255])
        for values, words in (
            (ramp * 255, "run from 0 to 255"),
            (ramp - 1, "from -1 to 0"),
            (ramp * np.nan, "NaN"),
        ):
            PIL.Image.fromarray(values).save(tmp_path / "a.tif")
            with pytest.raises(ValueError, match=f"a.tif.*floats .*{words}"):
                load_dataset(tmp_path, 4, 1, split=0.0)
            with pytest.raises(ValueError, match=f"a.tif.*floats .*{words}"):
                read_images([tmp_path / "a.tif"], 4, 1)

    def test_integers_without_a_meaning_are_refused(self, tmp_path):
        PIL.Image.fromarray(np.array([[0, 70000]], "int32")).save(tmp_path / "a.tif")
        with pytest.raises(
            ValueError, match="values up to 70000, and do not say which is white.*bits=17"
        ):
            load_dataset(tmp_path, 4, 1, split=0.0)
        np.testing.assert_array_equal(only_image_of(tmp_path / "a.tif", (1, 2), bits=17), [0, 136])
        PIL.Image.fromarray(np.array([[-1, 7]], "int32")).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match="values run from -1 to 7, expected none below 0"):
            read_images([tmp_path / "a.tif"], 4, 1)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
    def test_every_mode_gives_its_own_colours(self, tmp_path, mode):
        import PIL.ImageCms

        grey = mode in ("1", "L", "LA")
        colours = [WHITE, (0, 0, 0)] if grey else [WHITE, (0, 0, 0), (255, 0, 0), (0, 0, 255)]
        image = PIL.Image.fromarray(
            np.repeat(np.array([colours], "uint8"), 16, axis=0).repeat(16, axis=1)
        )
        if mode == "LAB":
            profiles = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
            image = PIL.ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
        image = image.convert(mode, dither=PIL.Image.Dither.NONE)
        image.save(tmp_path / "a.tif", compression="jpeg" if mode == "YCbCr" else "tiff_lzw")
        pixels = decoding.read_image(tmp_path / "a.tif", 3)[8, 8::16]
        np.testing.assert_allclose(pixels.astype(int), colours, atol=25 if mode == "LAB" else 3)
        assert decoding.examine(tmp_path / "a.tif").grey == grey

    @pytest.mark.parametrize("bits", [12, 16])
    def test_tfds_of_sixteen_bits(self, tmp_path, bits):
        images = (self.RAMP * 2 ** (bits - 12))[None, ..., None].repeat(2, axis=0)
        images[0] //= 3
        builder = tfds_of(tmp_path, images)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train, _ = load_dataset(builder, 4, 2, split=("train", None))
        said = [str(warning.message) for warning in caught if "read as" in str(warning.message)]
        assert len(said) == (bits < 16)
        found = sorted(as_bytes(next(iter(train)))[:, 0, :, 0].tolist())
        np.testing.assert_allclose(found, [[0, 28, 57, 85], [0, 85, 170, 255]], atol=1)
        if bits == 12:
            assert (
                as_bytes(
                    next(iter(load_dataset(builder, 4, 2, split=("train", None), bits=16)[0]))
                ).max()
                == 16
            )
            with pytest.raises(
                ValueError,
                match="images of deep cannot be used: its largest value is 4095, but bits=10",
            ):
                load_dataset(builder, 4, 2, split=("train", None), bits=10)

    def test_tfds_of_floats(self, tmp_path):
        images = np.linspace(0, 1, 16, dtype="float32").reshape(1, 4, 4, 1)
        train, _ = load_dataset(tfds_of(tmp_path / "a", images), 4, 1, split=("train", None))
        np.testing.assert_allclose(
            as_bytes(next(iter(train)))[0].ravel(), np.arange(16) * 17, atol=1
        )
        with pytest.raises(
            ValueError, match="images of deep cannot be used: its floats run from 0 to 2"
        ):
            load_dataset(tfds_of(tmp_path / "b", images * 2), 4, 1, split=("train", None))


def only_image_of(path, size=4, **options):
    return as_bytes(read_images([path], size, 1, **options))[0, 0, :, 0]


def write_rgb_tiff(path, values, order="<", compression="none", kind=2):
    """Write uint16 values (height, width) as a TIFF of 16 bits a colour, RGB or, of kind 5,
    CMYK.
    """
    height, width = values.shape
    channels = 4 if kind == 5 else 3
    pixels = values[..., None].repeat(channels, axis=-1).astype(f"{order}u2").tobytes()
    if compression == "tiff_lzw":  # as Pillow compresses just these bytes
        PIL.Image.frombytes("L", (width * channels * 2, height), pixels).save(
            path, compression=compression
        )
        with PIL.Image.open(path) as image:
            (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
        pixels = path.read_bytes()[start : start + length]
    elif compression == "tiff_adobe_deflate":
        pixels = zlib.compress(pixels)
    number = {"none": 1, "tiff_lzw": 5, "tiff_adobe_deflate": 8}[compression]
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8),
        (259, 3, 1, number),
        (262, 3, 1, kind),
    ]
    tags += [(273, 4, 1, 16), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(pixels))]
    start = 16 + len(pixels)
    magic = b"II" if order == "<" else b"MM"
    content = (
        struct.pack(f"{order}2sHI4H", magic, 42, start, 16, 16, 16, 16)
        + pixels
        + struct.pack(f"{order}H", len(tags))
    )
    for tag, form, count, value in tags:
        short = form == 3 and count == 1
        content += struct.pack(
            f"{order}HHIHH" if short else f"{order}HHII",
            tag,
            form,
            count,
            value,
            *([0] if short else []),
        )
    path.write_bytes(content + bytes(4))


class TestOwnChannels:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "F", "P"])
    def test_a_folder_of_grey_files_is_grey(self, tmp_path, mode):
        if mode == "I;16":
            image = PIL.Image.fromarray(np.full((4, 4), 65535, "uint16"))
        elif mode == "F":
            image = PIL.Image.fromarray(np.ones((4, 4), "float32"))
        else:
            image = PIL.Image.new("L", (4, 4), 255).convert(mode)
        image.save(tmp_path / "a.tif")
        PIL.Image.new("L", (4, 4), 255).save(tmp_path / "b.jpg")
        assert load_dataset(tmp_path, 4, 2, split=0.0)[0].element_spec.shape[-1] == 1
        assert load_dataset(tmp_path, 4, 2, split=0.0, channels=3)[0].element_spec.shape[-1] == 3

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
    def test_one_file_with_colours_makes_it_colour(self, tmp_path, mode):
        PIL.Image.new("L", (4, 4), 255).save(tmp_path / "a.png")
        PIL.Image.new(mode, (4, 4)).convert(mode).save(tmp_path / "b.tif")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert load_dataset(tmp_path, 4, 2, split=0.5)[0].element_spec.shape[-1] == 3

    def test_grey_on_a_colour_is_colour(self, tmp_path):
        PIL.Image.new("LA", (4, 4), (9, 0)).save(tmp_path / "a.png")
        with pytest.warns(UserWarning, match="transparent in parts"):
            assert only_image(tmp_path, 4, background="red")[0, 0].tolist() == [255, 0, 0]
        with pytest.warns(UserWarning, match="transparent in parts"):
            assert only_image(tmp_path, 4, background="grey")[0, 0].tolist() == [128]


class TestLargeImages:
    def test_beyond_pillows_limit_they_are_shrunk_while_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        monkeypatch.setattr(decoding, "SHRUNK_ABOVE_PIXELS", 2000)
        monkeypatch.setattr(decoding, "_SHRUNK_TO_PIXELS", 1500)
        draws = np.random.default_rng(0).integers(0, 256, (71, 90, 3), dtype="uint8")
        for name in ("a.png", "a.jpg", "a.tif"):
            PIL.Image.fromarray(draws).resize((90, 71)).save(tmp_path / name)
            pixels = decoding.read_image(tmp_path / name, 3)
            assert pixels.shape == (
                (24, 30, 3) if name != "a.jpg" else (36, 45, 3)
            )  # a third; JPEG has only a half
            if name != "a.jpg":
                np.testing.assert_array_equal(
                    pixels[3, 5], np.rint(draws[9:12, 15:18].mean(axis=(0, 1)))
                )
                np.testing.assert_array_equal(
                    pixels[23, 29], np.rint(draws[69:, 87:].mean(axis=(0, 1)))
                )
        assert (
            PIL.Image.MAX_IMAGE_PIXELS == 1000
        )  # for the rest of the program, Pillow's limit stands

    def test_with_alpha_they_are_shrunk_by_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "SHRUNK_ABOVE_PIXELS", 10)
        monkeypatch.setattr(decoding, "_SHRUNK_TO_PIXELS", 4)
        pixels = np.zeros((4, 4, 4), "uint8")
        pixels[:, ::2] = 255
        PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
        assert (
            decoding.read_image(tmp_path / "a.png", 4).tolist() == [[[255, 255, 255, 128]] * 2] * 2
        )

    def test_beyond_ours_they_are_refused_with_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "LARGEST_PIXELS", 2_000_000)
        PIL.Image.new("1", (2000, 1500)).save(tmp_path / "a.png")
        with pytest.raises(
            ValueError,
            match="it is 2000 x 1500 pixels, 3 megapixels: more than the 2 that are read. Shr",
        ):
            read_images([tmp_path / "a.png"], 8, 1)

    def test_pillows_limit_is_back_after_many_threads(self, tmp_path):
        PIL.Image.new("L", (40, 40)).save(tmp_path / "a.png")
        before = PIL.Image.MAX_IMAGE_PIXELS

        def read_often():
            for _ in range(50):
                decoding.read_image(tmp_path / "a.png", 1)

        threads = [threading.Thread(target=read_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert PIL.Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize("paths", ["photo.png", []])
def test_read_images_takes_a_list(paths):
    with pytest.raises(ValueError, match="paths must be a list of at least one path"):
        read_images(paths, 8, 3)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_resizing_stays_in_the_unit_interval(tmp_path, fit):
    checks = (np.indices((40, 40)).sum(axis=0) // 7 % 2 * 255).astype("uint8")
    PIL.Image.fromarray(checks).save(tmp_path / "a.png")
    for channels in (1, 3, 4):
        train, _ = load_dataset(tmp_path, 23, 1, split=0.0, channels=channels, fit=fit)
        image = next(iter(train)).numpy()
        assert image.min() == 0.0 and image.max() == 1.0

import pathlib
import time

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import first_quick, make_small_model, random_images, slow_on_jax

from ddim_keras.data import load_dataset

pytestmark = slow_on_jax


def write_image(path: pathlib.Path, colour, size=(20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size[::-1], colour).save(path)


def images_of(dataset):
    return np.concatenate([batch.numpy() for batch in dataset])


@pytest.fixture(scope="module")
def embedded():
    return load_dataset("embedded", image_size=28, batch_size=100, labels=True)


def test_embedded_images_are_balanced_real_clothes(embedded):
    train, validation = embedded
    for dataset, count in ((train, 10_000), (validation, 1_000)):
        pairs = list(dataset)
        images = np.concatenate([images.numpy() for images, _ in pairs])
        labels = np.concatenate([labels.numpy() for _, labels in pairs])
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.float32
        assert images.min() == 0.0 and images.max() == 1.0
        np.testing.assert_array_equal(np.bincount(labels), [count // 10] * 10)
    assert train.class_names[0] == "T-shirt/top" and len(train.class_names) == 10
    # Fashion-MNIST's own mean and standard deviation are 0.286 and 0.353.
    assert abs(images.mean() - 0.286) < 0.01 and abs(images.std() - 0.353) < 0.01


def test_embedded_images_take_at_most_6_megabytes():
    folder = pathlib.Path(load_dataset.__code__.co_filename).parent / "fashion_mnist_subset"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6e6


@pytest.mark.slow
def test_training_order_is_new_each_epoch_and_fixed_by_the_seed():
    def first_two_epochs(seed):
        train, _ = load_dataset("embedded", 28, 1000, seed=seed)
        return images_of(train.take(1)), images_of(train.take(1))

    first, second = first_two_epochs(1)
    again = first_two_epochs(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert (first != second).any() and (first != first_two_epochs(2)[0]).any()


def test_validation_order_is_fixed_and_keeps_the_smaller_last_batch(embedded):
    _, validation = load_dataset("embedded", 28, 300)
    assert [len(batch) for batch in validation] == [300, 300, 300, 100]
    np.testing.assert_array_equal(images_of(validation), images_of(validation))


def test_training_drops_a_smaller_last_batch_unless_it_is_the_only_one():
    assert load_dataset("embedded", 28, 300)[0].element_spec.shape[0] == 300
    assert len(load_dataset("embedded", 28, 300)[0]) == 33
    assert len(load_dataset("embedded", 28, 300, drop_remainder=False)[0]) == 34
    assert len(load_dataset("embedded", 28, 20_000)[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_training_can_go_on_from_any_step(tmp_path, flip):
    for index in range(13):
        image = np.full((4, 4), 20 * index, "uint8")
        image[:, 0] += 10  # a side of its own, to see flips
        PIL.Image.fromarray(image).save(tmp_path / f"{index}.png")

    def load():
        return load_dataset(tmp_path, 4, 4, split=0.0, channels=1, flip=flip, seed=3)[0]

    whole = [
        batch.numpy() for batch in load().from_step(0).take(7)
    ]  # three batches an epoch, the remainder dropped
    for step in (1, 3, 5):
        part = [batch.numpy() for batch in load().from_step(step).take(2)]
        np.testing.assert_array_equal(part, whole[step : step + 2])
    brightness = np.stack([batch[:, 0, 1, 0] for batch in whole[:6]]).reshape(2, 12)
    assert not np.array_equal(*brightness)
    if not flip:
        assert [len(set(epoch)) for epoch in brightness] == [12, 12]


def test_repeat_lengthens_the_epoch():
    assert len(load_dataset("embedded", 28, 1000, repeat=3)[0]) == 30


@pytest.mark.slow
def test_flips_mirror_about_half_of_the_images():
    plain = {image.tobytes() for image in images_of(load_dataset("embedded", 28, 100)[0])}
    flipped = images_of(load_dataset("embedded", 28, 100, flip=True)[0])
    unchanged = np.array([image.tobytes() in plain for image in flipped])
    assert 0.4 < unchanged.mean() < 0.6
    assert all(image[:, ::-1].tobytes() in plain for image in flipped[~unchanged])


def test_other_sizes_and_channels():
    _, validation = load_dataset("embedded", (16, 24), 50, channels=3)
    batch = next(iter(validation)).numpy()
    assert batch.shape == (50, 16, 24, 3)
    np.testing.assert_array_equal(batch[..., 0], batch[..., 2])
    assert load_dataset("embedded", 16, 50, channels=4)[1].element_spec.shape[-1] == 4


def test_split_can_be_chosen():
    train, validation = load_dataset("embedded", 28, 100, split=("train[:500]", None))
    assert len(train) == 5 and validation is None


def test_resizing_is_antialiased_and_crops_the_centre(tmp_path):
    stripes = np.zeros((40, 80, 3), "uint8")
    stripes[:, ::2] = 255  # every other column: grey when resized well, black or white when sampled
    stripes[:, :20] = stripes[:, 60:] = 0  # what the crop removes
    PIL.Image.fromarray(stripes).save(tmp_path / "stripes.png")
    train, _ = load_dataset(tmp_path, 10, 1, split=0.0)
    image = images_of(train)[0]
    np.testing.assert_allclose(image[:, 1:-1], 0.5, atol=0.06)


def test_padding_keeps_the_whole_image_in_the_middle_of_black(tmp_path):
    write_image(tmp_path / "small.png", (255, 255, 255), size=(6, 4))
    write_image(tmp_path / "wide.png", (255, 255, 255), size=(8, 32))
    small, wide = images_of(load_dataset(tmp_path, 16, 1, split=0.0, fit="pad")[0].take(2))
    if small.sum() > wide.sum():
        small, wide = wide, small
    expected = np.zeros((16, 16, 3))
    expected[5:11, 6:10] = 1.0  # never enlarged
    np.testing.assert_array_equal(small, expected)
    expected = np.zeros((16, 16, 3))
    expected[6:10] = 1.0  # 8 x 32 shrunk to 4 x 16
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("cache", first_quick(["file", "none", "memory"]))
def test_caching_changes_nothing(tmp_path, cache):
    chosen = {"memory": True, "file": tmp_path / "cache", "none": False}[cache]
    for number in range(12):
        write_image(tmp_path / "photos" / f"{number}.png", (20 * number, 100, 200))
    _, validation = load_dataset(tmp_path / "photos", 16, 2, split=0.5, cache=chosen)
    first, second = images_of(validation), images_of(validation)
    assert len(first) == 6
    np.testing.assert_array_equal(first, second)
    if cache == "file":
        written = sorted(path.name for path in (tmp_path / "cache").iterdir())
        assert [name.split("_")[0] for name in written] == ["train", "validation"]
        again, _ = load_dataset(tmp_path / "photos", 16, 2, split=0.5, cache=chosen)
        assert (
            len(again) == 3
            and sorted(path.name for path in (tmp_path / "cache").iterdir()) == written
        )


def test_a_cache_on_disk_is_not_used_for_other_images(tmp_path):
    for colour in (0, 255):
        write_image(tmp_path / "photos" / "0.png", (colour,) * 3)
        train, _ = load_dataset(tmp_path / "photos", 4, 1, split=0.0, cache=tmp_path / "cache")
        assert images_of(train).max() == colour / 255


class TestFolder:
    def test_flat_folder_of_every_format(self, tmp_path):
        for index, suffix in enumerate(("png", "jpg", "jpeg", "bmp", "gif", "webp")):
            write_image(tmp_path / f"{index}.{suffix}", (40 * index, 100, 200))
        (tmp_path / "notes.txt").write_text("not an image")
        train, validation = load_dataset(tmp_path, 8, 2, split=1 / 3)
        assert len(images_of(train)) == 4 and len(images_of(validation)) == 2
        images = np.concatenate([images_of(train), images_of(validation)])
        np.testing.assert_allclose(images[..., 1], 100 / 255, atol=0.02)
        np.testing.assert_allclose(sorted(images[:, 0, 0, 0]), np.arange(6) * 40 / 255, atol=0.02)

    def test_one_subfolder_a_class(self, tmp_path):
        for index in range(10):
            write_image(tmp_path / "dark" / f"{index}.png", (10, 10, 10))
            write_image(tmp_path / "light" / f"{index}.png", (240, 240, 240))
        train, validation = load_dataset(tmp_path, 8, 4, labels=True)
        assert train.class_names == ["dark", "light"]
        assert sum(len(labels) for _, labels in validation) == 4
        for images, labels in train:
            np.testing.assert_array_equal(images.numpy()[:, 0, 0, 0] > 0.5, labels.numpy() == 1)

    def test_train_and_validation_subfolders(self, tmp_path):
        for index in range(4):
            write_image(tmp_path / "train" / f"{index}.png", (0, 0, 0))
        write_image(tmp_path / "val" / "0.png", (255, 255, 255))
        train, validation = load_dataset(tmp_path, 8, 2)
        assert images_of(train).max() == 0.0 and images_of(validation).min() == 1.0

    def test_the_split_is_fixed_by_the_seed(self, tmp_path):
        for index in range(20):
            write_image(tmp_path / f"{index}.png", (index * 10,) * 3)
        held_out = [
            images_of(load_dataset(tmp_path, 8, 2, seed=seed)[1])[:, 0, 0, 0] for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(held_out[0], held_out[1])
        assert (held_out[0] != held_out[2]).any()

    def test_photographs_are_turned_upright(self, tmp_path):
        image = PIL.Image.new("RGB", (20, 20))
        image.paste((255, 255, 255), (0, 0, 20, 10))  # light above
        exif = image.getexif()
        exif[0x0112] = 3  # held upside down
        image.save(tmp_path / "photo.png", exif=exif)
        upright = images_of(load_dataset(tmp_path, 4, 1, split=0.0)[0])[0]
        assert upright[0].mean() < 0.1 and upright[-1].mean() > 0.9

    def test_sixteen_bit_grayscale_keeps_its_range(self, tmp_path):
        PIL.Image.fromarray(np.full((9, 9), 32768, "uint16")).save(tmp_path / "deep.png")
        image = images_of(load_dataset(tmp_path, 4, 1, split=0.0, channels=1)[0])
        np.testing.assert_allclose(image, 0.5, atol=0.01)

    def test_unreadable_images_are_named_counted_and_refused_or_skipped(self, tmp_path):
        for index in range(4):
            write_image(tmp_path / f"{index}.jpg", (9, 9, 9), size=(200, 200))
        whole = (tmp_path / "0.jpg").read_bytes()
        (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "text.png").write_text("not an image at all")
        with pytest.raises(
            ValueError,
            match=r"2 of 6 images in .* cannot be read: cut.jpg \(.*\); text.png \(.*skip'",
        ):
            load_dataset(tmp_path, 8, 2)
        with pytest.warns(UserWarning, match=r"Skipped: 2 of 6 images .*cut.jpg"):
            train, _ = load_dataset(tmp_path, 8, 2, split=0.0, unreadable="skip")
        assert len(images_of(train)) == 4

    def test_what_cannot_be_loaded_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"no images in .*expected files ending in .png"):
            load_dataset(tmp_path, 8)
        with pytest.raises(ValueError, match="no such folder: ./nowhere"):
            load_dataset("./nowhere", 8)
        with pytest.raises(ValueError, match="there is nothing to load: got ''"):
            load_dataset("", 8)  # not the folder that one stands in
        for name, advice in (("photos.zip", "unpack it, and give"), ("0.jpg", "give")):
            (tmp_path / name).write_bytes(b"")
            with pytest.raises(ValueError, match=f"{name} is a file, not .*: {advice} the folder"):
                load_dataset(tmp_path / name, 8)
            (tmp_path / name).unlink()
        write_image(tmp_path / "0.png", (9, 9, 9))
        with pytest.raises(ValueError, match="has no labels"):
            load_dataset(tmp_path, 8, labels=True)
        with pytest.raises(ValueError, match=r"split of a folder must be the fraction"):
            load_dataset(tmp_path, 8, split=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be an integer, at least 1: got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"fit": "stretch"}, "fit must be 'crop' or 'pad', got 'stretch'"),
        ({"channels": 2}, "channels must be 1, 3 or 4"),
        ({"unreadable": "ignore"}, "unreadable must be 'refuse' or 'skip', got 'ignore'"),
        (
            {"split": ("nothing", None)},
            r"cannot read split 'nothing' of fashion_mnist_subset: its splits are",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("embedded", **{"image_size": 28, **arguments})


class TestTFDS:
    def test_unknown_names_are_refused_with_the_nearest(self):
        with pytest.raises(
            ValueError, match=r"unknown data set 'fashion_mnst'.*Near it: fashion_mnist"
        ):
            load_dataset("fashion_mnst", 32)
        with pytest.raises(ValueError, match=r"unknown data set 'my photos.zip'"):
            load_dataset("my photos.zip", 32)

    def test_without_network_a_name_fails_within_seconds(self, tmp_path, monkeypatch):
        def no_network(*arguments, **options):
            raise OSError("network is unreachable")

        monkeypatch.setattr("socket.create_connection", no_network)
        start = time.monotonic()
        with pytest.raises(
            ConnectionError,
            match=r"oxford_flowers102 is not on disk in .*cannot be reached.*embedded",
        ):
            load_dataset("oxford_flowers102", 64, data_dir=tmp_path)
        assert time.monotonic() - start < 15

    def test_download_can_be_forbidden(self, tmp_path):
        with pytest.raises(ConnectionError, match="not on disk in .*download=False"):
            load_dataset("cifar10", 32, data_dir=tmp_path, download=False)

    def test_oxford_flowers_is_split_as_in_the_example(self):
        import tensorflow_datasets as tfds

        from ddim_keras.data.tfds_source import _default_split

        train, validation = _default_split(tfds.builder("oxford_flowers102"))
        assert train == "train[:80%]+validation[:80%]+test[:80%]"
        assert validation == "train[80%:]+validation[80%:]+test[80%:]"

    @pytest.mark.slow
    def test_a_real_data_set_by_name_and_by_builder(self, fashion_mnist_dir):
        import tensorflow_datasets as tfds

        train, validation = load_dataset("fashion_mnist", 32, 64, data_dir=fashion_mnist_dir)
        assert len(train) == 60_000 // 64 and len(validation) == 157
        assert next(iter(train)).shape == (64, 32, 32, 1)
        builder = tfds.builder("fashion_mnist", data_dir=fashion_mnist_dir)
        small, _ = load_dataset(builder, 28, 10, split=("train[:20]", "test[:10]"), labels=True)
        assert small.class_names[9] == "Ankle boot"
        # Prepared, it needs no download any more; its folder is a source too.
        again, _ = load_dataset(builder.data_dir, 28, 10, split=("train[:20]", None))
        assert len(again) == 2


def test_a_model_trains_on_what_load_dataset_gives():
    from conftest import make_small_model

    train, validation = load_dataset(
        "embedded", 8, 50, split=("train[:200]", "validation[:70]"), labels=True
    )
    model = make_small_model()
    model.normalizer.adapt(train)
    model.compile(keras.optimizers.AdamW(1e-3))
    history = model.fit(train, validation_data=validation, verbose=0).history
    assert history["val_n_loss"][0] > 0


def test_what_tfds_gives_besides_batches_is_refused_with_what_to_give():
    import tensorflow as tf

    images = random_images(4)
    split = tf.data.Dataset.from_tensor_slices({"image": images, "label": np.arange(4)})
    for given in (split, {"train": split}, (split, split), images, None, 3):
        with pytest.raises(ValueError, match="load_dataset takes a folder, a name, .*, got a "):
            load_dataset(given, 8, 2)
    model = make_small_model()
    model.compile()
    for given in ({"train": split, "test": split}, (split, split), [split, split], (split, "info")):
        for use in (model.fit, model.normalizer.adapt):
            with pytest.raises(ValueError, match="expected one data set, got a .*one split alone"):
                use(given)
    history = model.fit(split.batch(2), verbose=0)  # of dictionaries, as they come
    assert np.isfinite(history.history["loss"][0])

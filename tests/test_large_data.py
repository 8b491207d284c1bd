"""Data larger than memory: where resized images are kept, parts of batches, files of examples."""

import io
import itertools
import os
import pathlib
import sys
import warnings

import numpy as np
import PIL.Image
import pytest
from conftest import slow_on_jax

from ddim_keras.data import caching, decoding, load_dataset
from ddim_keras.data.caching import FOLDER_VARIABLE, chosen
from ddim_keras.support import memory


def picture(number: int) -> PIL.Image.Image:
    """An even image, dark or bright by its number, below 50."""
    return PIL.Image.fromarray(np.full((10, 12, 3), 5 * (number % 50), "uint8"))


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images in two classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        place = root / ("even", "odd")[number % 2]
        place.mkdir(exist_ok=True)
        picture(number).save(place / f"{number:02d}.png")
    return root


def numbers_of(batches) -> list[list[int]]:
    """The numbers of the images in batches that `picture` made."""
    images = (batch[0] if isinstance(batch, tuple) else batch for batch in batches)
    return [np.rint(np.asarray(each)[:, 0, 0, 0] * 51).astype(int).tolist() for each in images]


def write_records(path: pathlib.Path, numbers, packed: str = "", label_of=None) -> None:
    """Write TFRecords of the pictures of these numbers, with the labels that `label_of` gives."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), packed) as writer:
        for number in numbers:
            label = number % 3 if label_of is None else label_of(number)
            features = {"image/encoded": bytes_feature(encoded(number))}
            if isinstance(label, bytes):
                features["label"] = bytes_feature(label)
            elif label is not None:
                labels = tf.train.Int64List(value=np.ravel(label))
                features["label"] = tf.train.Feature(int64_list=labels)
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def bytes_feature(content: bytes):
    import tensorflow as tf

    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))


def write_tar(
    path: pathlib.Path, numbers, mode: str = "w", label_of=None, image_of=encoded
) -> None:
    """Write a tar of the pictures of these numbers, with the labels that `label_of` gives."""
    import tarfile

    with tarfile.open(path, mode) as tar:
        for number in numbers:
            label = str(number % 3).encode() if label_of is None else label_of(number)
            parts = {"png": image_of(number), "cls": label}
            for suffix, content in parts.items():
                if content is not None:
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def test_images_that_take_half_of_the_free_memory_or_less_are_kept_there(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2000)
    assert chosen("auto", 10, 100, "photos") is True
    monkeypatch.setattr(memory, "available", lambda: None)
    assert chosen("auto", 10**9, 100, "photos") is True


def test_more_images_go_to_files_or_are_read_anew_and_it_is_said_which(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(memory, "available", lambda: 1999)
    monkeypatch.setattr(memory, "free_on_disk", lambda folder: 2000)
    with pytest.warns(UserWarning, match=r"photos take 1 kB, more than half of the 2 kB of memory"):
        assert chosen("auto", 10, 100, "photos") == tmp_path
    monkeypatch.setattr(memory, "free_on_disk", lambda folder: 1999)
    with pytest.warns(UserWarning, match="the originals are read anew"):
        assert chosen("auto", 10, 100, "photos") is False


@pytest.mark.parametrize("cache", [True, False, "folder"])
def test_what_the_user_says_of_the_cache_stands(monkeypatch, cache):
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert chosen(cache, 10**9, 100, "photos") is cache


def test_who_comes_second_with_a_cache_leaves_the_first_ones(tmp_path, monkeypatch):
    """Which is being read by now, perhaps over a network, where no removed file can be."""
    saved = []

    class Images:
        def save(self, path):
            if len(saved) < 2:  # another process comes in between
                saved.append(path)
                caching.cached(Images(), tmp_path, "photos", "the same")
            pathlib.Path(path).mkdir()
            (pathlib.Path(path) / str(len(saved))).touch()
            saved.append(path)

    import tensorflow as tf

    monkeypatch.setattr(tf.data.Dataset, "load", lambda path: sorted(os.listdir(path)))
    assert caching.cached(Images(), tmp_path, "photos", "the same") == ["2"]
    assert len(saved) == 5 and len(list(tmp_path.iterdir())) == 1


def test_the_command_lines_names_of_caches_are_no_folders():
    assert chosen("memory", 10, 100, "photos") is True
    assert chosen("no", 10, 100, "photos") is False
    with pytest.raises(ValueError, match="cache must be True, False, .* got None"):
        chosen(None, 10, 100, "photos")


def test_free_memory_is_known_here_and_a_container_may_have_less(monkeypatch, tmp_path):
    free = memory.available()
    assert free is None or 0 < free < 2**50
    for name, text in (
        ("memory.max", "5000\n"),
        ("memory.current", "4000\n"),
        ("memory.stat", "anon 3000\ninactive_file 500\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    assert memory.available() == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() != 1500


@slow_on_jax
def test_images_come_in_one_order_wherever_they_are_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    options = {"image_size": 8, "batch_size": 8, "seed": 3, "flip": True}
    expected = numbers_of(load_dataset(folder, **options, cache=True)[0].from_step(2).take(5))
    anew = load_dataset(folder, **options, cache=False)[0]
    assert numbers_of(anew.from_step(2).take(5)) == expected
    monkeypatch.setattr(memory, "available", lambda: 0)
    with pytest.warns(UserWarning, match="kept in files"):
        in_files = load_dataset(folder, **options)[0]
    assert numbers_of(in_files.from_step(2).take(5)) == expected
    assert any(tmp_path.iterdir())


@slow_on_jax
@pytest.mark.parametrize("cache", [pytest.param(True, marks=pytest.mark.slow), False])
def test_parts_of_batches_join_to_the_whole(folder, cache):
    options = {"image_size": 8, "batch_size": 8, "flip": True, "cache": cache, "labels": True}
    whole = load_dataset(folder, **options)[0]
    parts = [whole.from_step(3, part=(0, 2)), load_dataset(folder, **options, part=(1, 2))[0]]
    assert parts[0].is_part and parts[1].is_part and not whole.is_part
    assert len(parts[1]) == len(whole)
    parts[1] = parts[1].from_step(3)
    for batch, *pieces in itertools.islice(zip(whole.from_step(3), *parts), 3):
        for index in range(2):  # images, labels
            joined = np.concatenate([np.asarray(piece[index]) for piece in pieces])
            np.testing.assert_array_equal(joined, np.asarray(batch[index]))


def test_a_part_reads_its_own_images_alone(folder, monkeypatch):
    read = []
    original = decoding.read_image
    monkeypatch.setattr(
        decoding, "read_image", lambda path, *rest: (read.append(path), original(path, *rest))[1]
    )
    part, _ = load_dataset(folder, 8, 8, cache=False, part=(1, 4))
    assert sum(map(len, numbers_of(part))) == 8
    assert len(read) == 8  # of 32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"part": (2, 2)}, "part must be .*such as .0, 2., got .2, 2."),
        ({"part": (0, 3)}, "batch of 8 images cannot be divided into 3 .* batch_size=9"),
        ({"part": (0, 2), "batch_size": 64}, "must all be whole"),
    ],
)
def test_bad_parts_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(folder, **{"image_size": 8, "batch_size": 8, **options})


@pytest.mark.parametrize("cache", [True, False])
def test_tfrecords_are_a_source(tmp_path, cache):
    write_records(tmp_path / "photos-0.tfrecord", range(20))
    write_records(tmp_path / "photos-1.tfrecord", range(20, 40))
    train, validation = load_dataset(
        str(tmp_path / "photos-*.tfrecord"), 8, 8, labels=True, cache=cache
    )
    assert train.class_names == ["0", "1", "2"]
    kept = sum(numbers_of(validation), [])
    assert kept == list(range(0, 40, 5))
    seen = sum(numbers_of(train), [])
    assert len(seen) == len(set(seen)) == 32 and not set(seen) & set(kept)
    images, labels = next(iter(train))
    assert numbers_of([images])[0] != sorted(numbers_of([images])[0])
    assert (np.array(numbers_of([images])[0]) % 3 == np.asarray(labels)).all()


def test_files_of_examples_are_divided_by_their_names(tmp_path):
    write_records(tmp_path / "train-0.tfrecord", range(10))
    write_records(tmp_path / "val-0.tfrecord", range(10, 14))
    train, validation = load_dataset(tmp_path, 8, 5)
    assert sorted(sum(numbers_of(train), [])) == list(range(10))
    assert sum(numbers_of(validation), []) == list(range(10, 14))
    train, validation = load_dataset(tmp_path, 8, 2, split=("val-0.tfrecord", None))
    assert sorted(sum(numbers_of(train), [])) == list(range(10, 14)) and validation is None


def test_what_tfrecords_lack_is_named(tmp_path):
    import tensorflow as tf

    path = tmp_path / "numbers.tfrecord"
    feature = {"speed": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))}
    with tf.io.TFRecordWriter(str(path)) as writer:
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writer.write(example.SerializeToString())
    with pytest.raises(ValueError, match=r"no encoded images .* features are speed \(float_list\)"):
        load_dataset(path, 8)
    path.write_bytes(b"no record at all, but a text")
    with pytest.raises(ValueError, match=r"no TFRecord, or is damaged: [^{}\[\]]*: copy or write"):
        load_dataset(path, 8)
    with pytest.raises(ValueError, match="no such file"):
        load_dataset(str(tmp_path / "missing-*.tfrecord"), 8)


@pytest.mark.parametrize("place", [0, 9])
def test_records_that_are_no_examples_are_told(tmp_path, place):
    """A DecodeError came from the first, and a UnicodeDecodeError from others."""
    import tensorflow as tf

    write_records(tmp_path / "photos-0.tfrecord", range(3))
    write_records(tmp_path / "photos-1.tfrecord", range(10))
    records = [
        each.numpy() for each in tf.data.TFRecordDataset(str(tmp_path / "photos-1.tfrecord"))
    ]
    records[place] = b"\xff\xfe no example"
    name = f"photos-{int(place > 0)}.tfrecord"
    with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
        for record in records:
            writer.write(record)
    message = (
        "photos-1.tfrecord is damaged: a record of it is no tf.train.Example: copy or write it"
    )
    with pytest.raises(ValueError, match=message if place else "records that are no tf.train.Exam"):
        load_dataset(str(tmp_path / "photos-*.tfrecord"), 8)


def test_tars_of_webdataset_are_a_source(tmp_path):
    pytest.importorskip("webdataset")
    write_tar(tmp_path / "train-0.tar", range(12))
    write_tar(tmp_path / "train-1.tar", range(12, 20))
    write_tar(tmp_path / "val-0.tar", range(20, 23))
    train, validation = load_dataset(tmp_path, 8, 4, labels=True, cache=False)
    assert sorted(sum(numbers_of(train), [])) == list(range(20))
    assert sum(numbers_of(validation), []) == [20, 21, 22]
    images, labels = next(iter(train.from_step(7)))
    assert (np.array(numbers_of([images])[0]) % 3 == np.asarray(labels)).all()


def test_packed_files_of_examples_are_a_source(tmp_path):
    write_records(tmp_path / "photos-0.tfrecord.gz", range(12), "GZIP")
    train, _ = load_dataset(str(tmp_path / "photos-*.tfrecord.gz"), 8, 4, split=0.0, labels=True)
    assert sorted(sum(numbers_of(train), [])) == list(range(12))
    write_records(tmp_path / "photos-1.tfrecord", range(12))
    with pytest.raises(ValueError, match="only some files of .* end with .gz"):
        load_dataset(str(tmp_path / "photos-*.tfrecord*"), 8)
    pytest.importorskip("webdataset")
    for name in ("photos.tar.gz", "photos.tgz"):
        write_tar(tmp_path / name, range(12), "w:gz")
        train, _ = load_dataset(tmp_path / name, 8, 4, split=0.0, labels=True)
        assert sorted(sum(numbers_of(train), [])) == list(range(12))


@pytest.mark.parametrize(
    "label_of, message",
    [
        (lambda number: None if number == 7 else 1, "1 of 10 examples of .* have no label"),
        (lambda number: number - 3, "3 of 10 examples of .* have no label, or one below 0"),
        (lambda number: 10**9, "a label of 1000000000: labels must be .* below 100000"),
        (lambda number: [1, 2], "is damaged"),
        (lambda number: b"cat", "has no labels"),
        (lambda number: None, "has no labels"),
    ],
)
def test_labels_that_are_no_classes_are_told_and_do_not_matter_where_none_are_wanted(
    tmp_path, label_of, message
):
    write_records(tmp_path / "photos.tfrecord", range(10), label_of=label_of)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "photos.tfrecord", 8, 5, labels=True)
    train, _ = load_dataset(tmp_path / "photos.tfrecord", 8, 5, split=0.0)
    assert sorted(sum(numbers_of(train), [])) == list(range(10))


@pytest.mark.parametrize(
    "label_of, message",
    [
        (lambda number: None if number == 7 else b"1", "1 of 10 examples of .* have no label"),
        (lambda number: b"cat", "photos.tar: the label 000.cls must be .* a class, got b'cat'$"),
        (lambda number: b"", "photos.tar: the label 000.cls must be .* a class, got b''$"),
        (lambda number: b"1000000000", "labels must be .* below 100000"),
        (lambda number: None, "has no labels"),
    ],
)
def test_so_are_those_of_tars(tmp_path, label_of, message):
    pytest.importorskip("webdataset")
    write_tar(tmp_path / "photos.tar", range(10), label_of=label_of)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "photos.tar", 8, 5, labels=True)
    train, _ = load_dataset(tmp_path / "photos.tar", 8, 5, split=0.0)
    assert sorted(sum(numbers_of(train), [])) == list(range(10))


def test_labels_of_the_part_for_validation_are_classes_too(tmp_path):
    write_records(tmp_path / "train.tfrecord", range(10))
    write_records(tmp_path / "val.tfrecord", range(4), label_of=lambda number: 6)
    train, _ = load_dataset(tmp_path, 8, 5, labels=True)
    assert train.class_names == list("0123456")
    write_records(tmp_path / "val.tfrecord", range(4), label_of=lambda number: None)
    with pytest.raises(ValueError, match="for validation has no labels, but the other has"):
        load_dataset(tmp_path, 8, 5, labels=True)
    write_records(tmp_path / "val.tfrecord", [])
    with pytest.raises(ValueError, match="for validation, val.tfrecord, holds no images"):
        load_dataset(tmp_path, 8, 5, labels=True)


def test_empty_files_among_others_are_passed_over(tmp_path):
    write_records(tmp_path / "photos-0.tfrecord", [])
    write_records(tmp_path / "photos-1.tfrecord", range(8))
    train, _ = load_dataset(str(tmp_path / "photos-*.tfrecord"), 8, 4, split=0.0)
    assert sorted(sum(numbers_of(train), [])) == list(range(8))
    with pytest.raises(ValueError, match="holds no images"):
        load_dataset(tmp_path / "photos-0.tfrecord", 8)
    pytest.importorskip("webdataset")
    write_tar(tmp_path / "photos-0.tar", [])
    write_tar(tmp_path / "photos-1.tar", range(8))
    train, _ = load_dataset(str(tmp_path / "photos-*.tar"), 8, 4, split=0.0)
    assert sorted(sum(numbers_of(train), [])) == list(range(8))
    with pytest.raises(ValueError, match="holds no images"):
        load_dataset(tmp_path / "photos-0.tar", 8)


def test_damaged_files_of_examples_are_told(tmp_path):
    path = tmp_path / "photos.tfrecord"
    write_records(path, range(10))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for broken in (
        whole[:-5],
        whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"photos.tfrecord is damaged: [^{}\[\]]*: copy or"):
            load_dataset(path, 8)
    pytest.importorskip("webdataset")
    path = tmp_path / "photos.tar"
    write_tar(path, range(10))
    whole = path.read_bytes()
    # Cut off in a file, and where the next one was to begin.
    for broken in (whole[:5000], whole[:10250], b"", b"no tar at all, but a text" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="photos.tar is damaged"):
            load_dataset(path, 8)


@pytest.mark.parametrize(
    "mode, options, channels, value",
    [
        ("L", {}, 1, 0.4),
        ("RGBA", {}, 3, 0.7),  # half transparent, so white shines through
        ("RGBA", {"channels": 4}, 4, 0.4),
        ("CMYK", {}, 3, 0.6),
        ("I;16", {"bits": 16}, 1, 0.4),
        ("P", {}, 3, 0.4),
    ],
)
def test_encoded_images_of_all_kinds_are_read_as_files_are(
    tmp_path, mode, options, channels, value
):
    pytest.importorskip("webdataset")
    if mode == "I;16":
        image = PIL.Image.fromarray(np.full((10, 12), 26214, "uint16"))
    elif mode == "P":
        image = PIL.Image.new("RGB", (12, 10), (102, 50, 0)).quantize()
    else:
        values = {"L": 102, "RGBA": (102, 102, 102, 128), "CMYK": (102, 102, 102, 0)}
        image = PIL.Image.new(mode, (12, 10), values[mode])
    kind = "tiff" if mode == "CMYK" else "png"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    write_tar(tmp_path / "photos.tar", range(6), image_of=lambda number: buffer.getvalue())
    (tmp_path / "files").mkdir()
    for number in range(6):
        (tmp_path / "files" / f"{number}.{kind}").write_bytes(buffer.getvalue())
    read = []
    for source in (tmp_path / "photos.tar", tmp_path / "files"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is transparent
            train, _ = load_dataset(source, 8, 6, split=0.0, **options)
        read.append(np.asarray(next(iter(train))))
        assert read[-1].shape == (6, 8, 8, channels)
    np.testing.assert_array_equal(read[0], read[1])
    np.testing.assert_allclose(read[0][0, 0, 0, 0], value, atol=0.01)


def hugging_face(images, labels=None, names=("a", "b", "c")):
    """A data set of encoded images and perhaps of class labels."""
    import datasets

    features = {"image": datasets.Image()}
    columns = {"image": images}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=list(names))
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_what_data_sets_of_hugging_face_lack_is_told():
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": encoded(number), "path": None} for number in range(6)]
    for images_or_none, message in (
        ([*images[:3], None, *images[3:]], "example 3 has no image"),
        ([{"bytes": b"nothing", "path": None}, *images], "image 0 of .* cannot be read"),
        ([], "holds no images"),
        (images[:1], "holds one image: at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(hugging_face(images_or_none), 8, 2)
    with pytest.raises(ValueError, match="no column of class labels: .*class_encode_column"):
        load_dataset(hugging_face(images), 8, 2, labels=True)
    for lacking in (None, -1):
        some = hugging_face(images, [0, 1, 2, lacking, 1, 0])
        with pytest.raises(ValueError, match="1 of 6 examples of .* have no label"):
            load_dataset(some, 8, 2, labels=True)
        train, _ = load_dataset(some, 8, 3, split=0.0)
        assert sorted(sum(numbers_of(train), [])) == list(range(6))
    whole = hugging_face(images, [0] * 6)
    for other, message in (
        (whole.select([]), "the split 'test' holds no images"),
        (whole.remove_columns("label"), "the split 'test' has no column 'label'"),
        (whole.rename_column("image", "photo"), "the split 'test' has no column 'image'"),
    ):
        both = datasets.DatasetDict({"train": whole, "test": other})
        with pytest.raises(ValueError, match=message):
            load_dataset(both, 8, 2, labels=True)
    with pytest.raises(ValueError, match="holds no splits"):
        load_dataset(datasets.DatasetDict(), 8)


def test_a_data_set_of_hugging_face_is_read_whatever_format_or_order_it_has(tmp_path):
    import zipfile

    pytest.importorskip("datasets")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", encoded(number))
    for number in range(3, 6):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    images = [f"zip://{number}.png::{tmp_path / 'photos.zip'}" for number in range(3)]
    images += [str(tmp_path / f"{number}.png") for number in range(3, 6)]
    whole = hugging_face(images, [0, 1, 2, 0, 1, 2])
    for changed in (
        whole.with_format("numpy"),
        whole.with_transform(lambda batch: {"image": [0] * len(batch["image"])}),
        whole.shuffle(seed=1),
    ):
        train, _ = load_dataset(changed, 8, 2, split=0.0, labels=True, cache=False)
        for images, labels in train:
            assert (np.array(numbers_of([images])[0]) % 3 == np.asarray(labels)).all()
        assert sorted(sum(numbers_of(train), [])) == list(range(6))
    parts = [load_dataset(whole, 8, 2, split=0.0, cache=False, part=(i, 2))[0] for i in range(2)]
    assert sorted(sum(numbers_of(parts[0]) + numbers_of(parts[1]), [])) == list(range(6))


def test_data_sets_of_hugging_face_are_a_source():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    columns = {
        "picture": [picture(number) for number in range(40)],
        "kind": [number % 3 for number in range(40)],
    }
    whole = datasets.Dataset.from_dict(columns, features=features)
    train, validation = load_dataset(whole, 8, 8, labels=True, cache=False)
    assert train.class_names == ["a", "b", "c"]
    seen, kept = (sum(numbers_of(part), []) for part in (train, validation))
    assert len(seen) == 32 and sorted(seen + kept) == list(range(40))
    both = datasets.DatasetDict({"train": whole.select(range(9)), "test": whole.select([9, 10])})
    train, validation = load_dataset(both, 8, 3)
    assert sorted(sum(numbers_of(train), [])) == list(range(9))
    assert sum(numbers_of(validation), []) == [9, 10]
    with pytest.raises(ValueError, match="no column of images: its columns are kind"):
        load_dataset(whole.remove_columns("picture"), 8)
    with pytest.raises(ValueError, match="streaming=False"):
        load_dataset(whole.to_iterable_dataset(), 8)


@pytest.mark.parametrize("library", ["webdataset", "datasets"])
def test_a_missing_library_is_named_with_how_to_install_it(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    write_tar(tmp_path / "photos.tar", range(3))
    source = {"webdataset": tmp_path / "photos.tar", "datasets": "hf:owner/name"}[library]
    with pytest.raises(ImportError, match=rf"pip install 'ddim_keras\[{library}\]'"):
        load_dataset(source, 8)


def test_a_damaged_image_among_encoded_ones_is_told_before_and_during_training(tmp_path):
    import tensorflow as tf

    path = tmp_path / "photos.tfrecord"
    good = [encoded(number) for number in range(70)]
    for broken, expected in ((3, "image 3 of .* cannot be read"), (69, "an image of .* cannot")):
        contents = [b"nothing" if number == broken else good[number] for number in range(70)]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for content in contents:
                feature = {"jpg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))}
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
        with pytest.raises(Exception, match=expected):
            train, _ = load_dataset(path, 8, 8, split=0.1)
            list(train)

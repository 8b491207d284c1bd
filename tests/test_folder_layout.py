"""Which files of a folder are trained on, which are held out, and of which class they are."""

import dataclasses
import json
import os
import re
import warnings

import numpy as np
import PIL.Image
import pytest
from conftest import slow_on_jax

from ddim_keras.data import finding, layout, load_dataset

pytestmark = slow_on_jax


def write_images(root, *names, value=0):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (4, 4), value).save(root / name)


def divided(root, split=None):
    """The names of the training and of the validation images."""
    division = layout.divide(root, finding.find_images(root), split)
    parts = (division.train, division.validation or [])
    return tuple(["/".join(file) for file, _ in part] for part in parts)


def names_in(root):
    return ["/".join(parts) for parts in finding.find_images(root).images]


def counts(*datasets):
    return tuple(
        0 if dataset is None else sum(len(batch) for batch in dataset.unbatch().batch(1))
        for dataset in datasets
    )


def loaded(root, **options):
    return counts(*load_dataset(root, 4, 1, drop_remainder=False, **options))


class TestWhatIsNoPhoto:
    @pytest.mark.slow
    def test_a_run_inside_the_data_is_not_read(self, tmp_path):
        from ddim_keras import runs

        write_images(tmp_path, *(f"{index}.png" for index in range(10)))
        before = divided(tmp_path), loaded(tmp_path)
        config = runs.RunConfig(
            data=str(tmp_path), steps=2, image_size=8, channels=1, samples=2, kid=None
        )
        config = dataclasses.replace(
            config,
            model={"widths": [4], "patch_size": 1},
            training={"batch_size": 4},
            validate_every=1,
            tensorboard=False,
        )
        runs.train(config, tmp_path / "run", tell=lambda text: None, verbose=0)
        assert list((tmp_path / "run" / "samples").glob("*.png"))
        assert (divided(tmp_path), loaded(tmp_path)) == before == (before[0], (8, 2))
        # Its samples are read where they are asked for, and another program's config.yaml means
        # nothing.
        assert len(names_in(tmp_path / "run" / "samples")) > 0
        write_images(tmp_path, "other/10.png")
        (tmp_path / "other" / "config.yaml").write_text("steps: 7\n")
        assert len(names_in(tmp_path)) == 11
        with pytest.raises(
            ValueError, match=r"no images in .*not read: run, which this package wrote"
        ):
            (tmp_path / "runs").mkdir()
            (tmp_path / "run").rename(tmp_path / "runs" / "run")
            load_dataset(tmp_path / "runs", 4)

    def test_exports_presets_and_caches_are_not_read(self, tmp_path):
        write_images(tmp_path, "a.png", "b.png")
        load_dataset(tmp_path, 4, 1, cache=tmp_path / "cache")
        write_images(
            tmp_path, "export/shard_00000/0.png", "export/contact_sheet.png", "preset/card.png"
        )
        (tmp_path / "export" / "metadata.json").write_text(
            json.dumps({"model_sha256": "", "shard_size": 1})
        )
        (tmp_path / "preset" / "preset.json").write_text(
            json.dumps({"model": {}, "has_weights": True})
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert loaded(tmp_path, split=0.0) == (2, 0)
        write_images(tmp_path, "other/0.png")
        (tmp_path / "other" / "metadata.json").write_text('{"author": "somebody"}')
        assert names_in(tmp_path) == ["a.png", "b.png", "other/0.png"]

    def test_what_an_export_writes_is_known_by_its_true_description(self, tmp_path, trained_model):
        from ddim_keras import exporting

        write_images(tmp_path, "a.png")
        exporting.export_images(
            trained_model, tmp_path / "made", 2, diffusion_steps=1, tell=lambda text: None
        )
        trained_model.save_to_preset(tmp_path / "preset")
        write_images(tmp_path, "preset/card.png")
        assert names_in(tmp_path) == ["a.png"]
        assert len(names_in(tmp_path / "made")) == 2  # named itself, it is a folder of images

    @pytest.mark.parametrize(
        "folder",
        [
            "@eaDir",
            ".thumbnails",
            "__MACOSX",
            "$RECYCLE.BIN",
            ".cache",
            "#recycle",
            "lost+found",
            "a/@EADIR/b",
        ],
    )
    def test_folders_of_systems_are_not_read(self, tmp_path, folder):
        write_images(tmp_path, "a.png", f"{folder}/b.png", "._c.png")
        assert names_in(tmp_path) == ["a.png"]

    def test_what_pillow_does_not_read_is_counted_and_named_once(self, tmp_path):
        write_images(tmp_path, "0.png", "1.png")
        for name in (
            "notes.txt",
            "a.json",
            "b.csv",
            "c.xmp",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "LICENSE",
        ):
            (tmp_path / name).write_text("beside the photos")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            load_dataset(tmp_path, 4, 1)
        for name in ("a.heic", "b.HEIC", "c.heic", "d.heic", "e.mov", "f.CR2", "g.pdf", "photo"):
            (tmp_path / name).write_text("no image")
        os.symlink(tmp_path / "nowhere.png", tmp_path / "link.png")
        with pytest.warns(UserWarning) as said:
            load_dataset(tmp_path, 4, 1)
        # Others, of what earlier tests left open, may come at any time.
        (text,) = [str(each.message) for each in said if each.category is UserWarning]
        assert "9 files in" in text and "beside 2 images" in text
        for part in (
            "4 .heic (a.heic, b.HEIC, c.heic, ...)",
            "1 .mov (e.mov)",
            "1 .cr2 (f.CR2)",
            "pillow-heif",
        ):
            assert part in text
        assert "1 links to nothing (link.png)" in text and "1 without a suffix (photo)" in text

    def test_all_that_pillow_reads_is_read(self, tmp_path):
        suffixes = (
            "tif",
            "tiff",
            "jfif",
            "jpe",
            "ppm",
            "pgm",
            "tga",
            "jp2",
            "JPG",
            "Png",
            "dib",
            "pcx",
        )
        for index, suffix in enumerate(suffixes):
            image = PIL.Image.new("L", (8, 8), 20 * index)
            image.save(tmp_path / f"{index}.{suffix}", format={"pgm": "PPM"}.get(suffix))
        assert loaded(tmp_path, split=0.0) == (len(suffixes), 0)

    def test_a_folder_without_images_says_what_is_in_it(self, tmp_path):
        (tmp_path / "a.heic").write_text("")
        with pytest.raises(
            ValueError, match=r"expected files ending in .png, .jpg.*; found 1 .heic \(a.heic\)"
        ):
            load_dataset(tmp_path, 4)


class TestLinks:
    def test_a_linked_class_is_used(self, tmp_path):
        write_images(tmp_path, *(f"photos/cat/{index}.png" for index in range(6)))
        write_images(tmp_path, *(f"elsewhere/{index}.png" for index in range(6)))
        os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "dog")
        assert loaded(tmp_path / "photos") == (10, 2)
        assert load_dataset(tmp_path / "photos", 4, 1, labels=True)[0].class_names == ["cat", "dog"]

    def test_circles_end_and_nothing_counts_twice(self, tmp_path):
        write_images(
            tmp_path, "outside.png", "photos/cat/0.png", "photos/cat/1.png", "pool/a/x.png"
        )
        root = tmp_path / "photos"
        for link, target in (
            ("cat/self", root / "cat"),
            ("cat/up", root),
            ("above", tmp_path),
            ("again", root / "cat"),
            ("pool", tmp_path / "pool"),
            ("part", tmp_path / "pool" / "a"),
            ("lone.png", tmp_path / "outside.png"),
            ("more.png", tmp_path / "outside.png"),
        ):
            os.symlink(target, root / link)
        os.symlink(root, tmp_path / "pool" / "back")
        found = finding.find_images(root)
        assert len(found.images) == 4
        with pytest.warns(
            UserWarning, match=r"7 links in .* lead to files that are counted once only"
        ):
            assert loaded(root, split=0.0) == (4, 0)

    def test_a_file_belongs_where_its_link_is(self, tmp_path):
        write_images(tmp_path, *(f"pool/{index}.png" for index in range(4)))
        for name, index in (
            ("train/cat/a.png", 0),
            ("train/dog/b.png", 1),
            ("val/cat/c.png", 2),
            ("val/dog/d.png", 3),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(tmp_path / "pool" / f"{index}.png", tmp_path / name)
        assert divided(tmp_path) == (
            ["train/cat/a.png", "train/dog/b.png"],
            ["val/cat/c.png", "val/dog/d.png"],
        )

    def test_a_run_is_not_read_through_a_link(self, tmp_path):
        write_images(tmp_path, "photos/a.png", "run/samples/b.png")
        (tmp_path / "run" / "config.yaml").write_text(
            "data: x\nsteps: 1\npreset: y\nvalidate_every: 1\ncheckpoint_every: 1\n"
        )
        os.symlink(tmp_path / "run", tmp_path / "photos" / "latest")
        assert names_in(tmp_path / "photos") == ["a.png"]


class TestParts:
    @pytest.mark.parametrize(
        "train", ["train", "Train", "TRAINING", "trn", "train2017", "training_set"]
    )
    @pytest.mark.parametrize(
        "held_out",
        [
            "val",
            "Val",
            "valid",
            "VALIDATION",
            "dev",
            "test",
            "Testing",
            "tst",
            "eval",
            "hold-out",
            "val2017",
        ],
    )
    def test_usual_names_in_any_case(self, tmp_path, train, held_out):
        write_images(tmp_path, f"{train}/0.png", f"{held_out}/1.png")
        assert divided(tmp_path) == ([f"{train}/0.png"], [f"{held_out}/1.png"])

    @pytest.mark.parametrize(
        ("validation", "test"), [("val", "test"), ("Dev", "Testing"), ("valid", "holdout")]
    )
    def test_where_both_exist_the_test_part_is_not_touched(self, tmp_path, validation, test):
        write_images(tmp_path, "train/0.png", "train/1.png", value=50)
        write_images(tmp_path, f"{validation}/0.png", value=100)
        write_images(tmp_path, f"{test}/0.png", value=255)
        assert divided(tmp_path) == (["train/0.png", "train/1.png"], [f"{validation}/0.png"])
        train, held_out = load_dataset(tmp_path, 4, 2)
        assert [float(next(iter(part)).numpy().max() * 255) for part in (train, held_out)] == [
            50,
            100,
        ]
        with pytest.raises(ValueError, match="would train on images of"):
            load_dataset(tmp_path, 4, split=0.2)

    def test_a_folder_around_all_and_parts_within_classes(self, tmp_path):
        write_images(
            tmp_path / "a", "unpacked/data/train/cat/0.png", "unpacked/data/test/cat/1.png"
        )
        assert divided(tmp_path / "a") == (
            ["unpacked/data/train/cat/0.png"],
            ["unpacked/data/test/cat/1.png"],
        )
        assert load_dataset(tmp_path / "a", 4, 1, labels=True)[0].class_names == ["cat"]
        classes = [
            f"{name}/{part}/0.png" for name in ("cat", "dog") for part in ("train", "val", "test")
        ]
        write_images(tmp_path / "b", *classes)
        assert divided(tmp_path / "b") == (
            ["cat/train/0.png", "dog/train/0.png"],
            ["cat/val/0.png", "dog/val/0.png"],
        )
        assert load_dataset(tmp_path / "b", 4, 1, labels=True)[0].class_names == ["cat", "dog"]
        with pytest.raises(ValueError, match="would train on images of cat/val"):
            load_dataset(tmp_path / "b", 4, split=0.2)
        write_images(tmp_path / "b", "cat/other.png")
        with pytest.raises(
            ValueError, match="cat is divided .*1 images lie elsewhere, such as cat/other.png"
        ):
            load_dataset(tmp_path / "b", 4)

    def test_a_folder_around_all_classes_is_no_class(self, tmp_path):
        for around, names in (("a/photos", ["cat", "dog"]), ("b/photos/unpacked", ["cat"])):
            write_images(tmp_path / around, *(f"{name}/{i}.png" for name in names for i in (0, 1)))
            root = tmp_path / around[0]
            division = layout.divide(root, finding.find_images(root), None)
            assert sorted({name for _, name in division.train}) == names

    @pytest.mark.slow
    def test_every_class_has_an_image_to_train_on(self, tmp_path):
        write_images(tmp_path, *(f"cat/{index}.png" for index in range(8)), "dog/0.png")
        for seed in range(8):  # chance alone would hold the only dog out in half of them
            train, held_out = load_dataset(tmp_path, 4, 1, labels=True, split=0.5, seed=seed)
            labels = [int(label) for _, batch in train for label in batch]
            assert sorted(set(labels)) == [0, 1] and counts(held_out.map(lambda x, y: x))[0] >= 3

    def test_folders_without_images_are_no_classes(self, tmp_path):
        write_images(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
        (tmp_path / "emu").mkdir()
        with pytest.warns(
            UserWarning, match="1 folders in .* hold no images, .*: the first is emu"
        ):
            train, _ = load_dataset(tmp_path, 4, 1, labels=True)
        assert train.class_names == ["cat", "dog"]
        (tmp_path / "emu" / "0.png").write_bytes(b"")
        with pytest.raises(ValueError, match="no readable image is left of the class emu in "):
            load_dataset(tmp_path, 4, 1, labels=True, unreadable="skip")

    def test_a_class_whose_name_no_file_can_hold_is_refused(self, tmp_path):
        name = os.fsdecode(b"ros\xe9")  # Latin-1, from an old archive
        try:
            write_images(tmp_path, f"{name}/0.png", f"{name}/1.png")
        except OSError:
            pytest.skip("this system's names are all UTF-8")
        assert loaded(tmp_path) == (2, 0)
        with pytest.raises(ValueError, match=r"class folder b'ros\\xe9' is no UTF-8.*rename"):
            load_dataset(tmp_path, 4, labels=True)

    def test_a_training_part_alone_is_divided(self, tmp_path):
        write_images(
            tmp_path,
            *(f"train/{name}/{index}.png" for name in ("cat", "dog") for index in range(5)),
        )
        assert loaded(tmp_path) == (8, 2) and loaded(tmp_path, split=0.5) == (5, 5)
        assert load_dataset(tmp_path, 4, 1, labels=True)[0].class_names == ["cat", "dog"]

    @pytest.mark.parametrize(
        ("folders", "words"),
        [
            (
                ("train", "Training", "val"),
                r"2 folders are called like the training part, Training and train",
            ),
            (("train", "val", "dev"), r"2 folders are called like the held-out part, dev and val"),
            (
                ("train", "test", "eval"),
                r"2 folders are called like the held-out part, eval and test",
            ),
            (
                ("train", "cat", "dog"),
                r"train is called like .*, but there is no held-out part, only cat, dog",
            ),
            (
                ("test", "cat", "dog"),
                r"test is called like a held-out part, but there is no training part, only cat, "
                r"dog",
            ),
            (
                ("val", "test"),
                r"val and test are called like a held-out part, but there is no training part",
            ),
            (
                ("train", "."),
                r"train is called like .*, but there is no held-out part, only 1 images",
            ),
        ],
    )
    def test_what_is_unclear_is_asked_about(self, tmp_path, folders, words):
        write_images(tmp_path, *(f"{folder}/{len(folder)}.png" for folder in folders))
        with pytest.raises(
            ValueError, match=f"not clear what of .*{words}.*split=\\('.*--split .*split=0.2"
        ):
            load_dataset(tmp_path, 4)

    def test_an_answer_is_taken(self, tmp_path):
        write_images(tmp_path, "train/0.png", "Training/1.png", "val/2.png", "test/cat/3.png")
        with pytest.raises(ValueError, match="not clear"):
            divided(tmp_path)
        assert divided(tmp_path, ("train+Training", "val")) == (
            ["Training/1.png", "train/0.png"],
            ["val/2.png"],
        )
        assert divided(tmp_path, ["Training", None]) == (["Training/1.png"], [])
        assert divided(tmp_path, ("train", "test/cat")) == (["train/0.png"], ["test/cat/3.png"])
        with pytest.raises(ValueError, match="split names 'dev', but the subfolders of .* are "):
            divided(tmp_path, ("train", "dev"))
        with pytest.raises(ValueError, match="has 1 images in both parts, such as test/cat/3.png"):
            divided(tmp_path, ("test", "test/cat"))
        with pytest.raises(ValueError, match="would train on images of"):
            divided(tmp_path, 0.5)

    @pytest.mark.parametrize("name", ["test", "train"])
    def test_a_class_that_is_called_like_a_part(self, tmp_path, name):
        write_images(
            tmp_path,
            *(f"{folder}/{index}.png" for folder in ("bus", name, "car") for index in range(2)),
        )
        with pytest.raises(
            ValueError, match="if every subfolder is a class, also one that is called like a part"
        ):
            load_dataset(tmp_path, 4, labels=True)
        train, _ = load_dataset(tmp_path, 4, 1, labels=True, split=0.5)
        assert train.class_names == sorted(["bus", name, "car"])

    def test_images_beside_the_parts_are_named(self, tmp_path):
        write_images(tmp_path, "train/0.png", "val/1.png", "test/2.png", "extra/3.png", "4.png")
        with pytest.warns(
            UserWarning,
            match=r"2 images in .* are in neither .*train nor .*val.*the first is 4.png",
        ):
            assert loaded(tmp_path) == (1, 1)

    def test_an_empty_part_is_a_mistake(self, tmp_path):
        write_images(tmp_path, "train/0.png")
        (tmp_path / "val").mkdir()
        with pytest.raises(ValueError, match=r"no images in .*val"):
            load_dataset(tmp_path, 4)

    def test_names_that_only_sound_alike_are_classes(self, tmp_path):
        write_images(
            tmp_path,
            *(f"{name}/0.png" for name in ("trains", "valley", "tests_of_metal", "developers")),
        )
        assert load_dataset(tmp_path, 4, 1, labels=True)[0].class_names[0] == "developers"


class TestLabels:
    def write(self, root, *held_out):
        write_images(root, "train/cat/0.png", "train/dog/1.png", *held_out)
        return root

    def test_a_flat_validation_part(self, tmp_path):
        root = self.write(tmp_path, "val/2.png", "val/3.png")
        assert loaded(root) == (2, 2) and load_dataset(root, 4)[0].unused_class_names == []
        with pytest.raises(
            ValueError,
            match=r"val has no labels: val/2.png and 1 others lie in no class.*training: cat, dog",
        ):
            load_dataset(root, 4, labels=True)

    def test_a_class_that_validation_lacks(self, tmp_path):
        root = self.write(tmp_path, "val/dog/2.png")
        assert loaded(root) == (2, 1)
        assert load_dataset(root, 4)[0].unused_class_names == ["cat", "dog"]
        train, validation = load_dataset(root, 4, 1, labels=True)
        assert train.class_names == validation.class_names == ["cat", "dog"]
        assert [labels.numpy().tolist() for _, labels in validation] == [[1]]

    def test_a_class_that_training_lacks(self, tmp_path):
        root = self.write(tmp_path, "val/dog/2.png", "val/emu/3.png")
        assert loaded(root) == (2, 2) and load_dataset(root, 4)[0].unused_class_names == []
        with pytest.raises(
            ValueError, match=r"val has classes that .*train lacks: emu, beside cat, dog"
        ):
            load_dataset(root, 4, labels=True)

    def test_flat_training_part_and_stray_images(self, tmp_path):
        write_images(tmp_path, "train/0.png", "val/cat/1.png")
        assert loaded(tmp_path) == (1, 1)
        with pytest.raises(ValueError, match="train has no labels: train/0.png lies"):
            load_dataset(tmp_path, 4, labels=True)

    def test_a_cache_without_labels_is_not_taken_for_labels(self, tmp_path):
        write_images(tmp_path / "photos", "a/0.png", "b/1.png")
        for labels in (False, True):
            train, _ = load_dataset(
                tmp_path / "photos", 4, 2, split=0.0, cache=tmp_path / "cache", labels=labels
            )
        assert sorted(np.concatenate([labels.numpy() for _, labels in train])) == [0, 1]


def test_messages_name_the_folder_once(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"no images in {tmp_path}")):
        load_dataset(tmp_path, 4)

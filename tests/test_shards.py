"""Parts of the same images, made by machines that do not know of each other."""

import pytest

from ddim_keras.runs.exporting import export_images


@pytest.mark.parametrize(
    "shard, message",
    [
        ((0, 0), "number of machines must be"),
        ((2, 2), "below 2"),
        ((-1, 2), "machine's number"),
        ((0.5, 2), "machine's number"),
        ((3, 4), "there are only 3 shards of 2 images for 4 machines: lower the shard size"),
    ],
)
def test_parts_that_there_are_not_are_refused_before_anything_is_written(
    trained_model, tmp_path, shard, message
):
    with pytest.raises(ValueError, match=message):
        export_images(trained_model, tmp_path / "images", 6, shard_size=2, shard=shard)
    assert not (tmp_path / "images").exists()


def test_a_part_is_not_added_to_images_that_are_divided_otherwise(trained_model, tmp_path):
    options = {"shard_size": 2, "diffusion_steps": 1, "format": "npz", "tell": lambda line: None}
    export_images(trained_model, tmp_path, 6, shard=(0, 2), **options)
    with pytest.raises(ValueError, match="shard_size: 2 there, 3 now"):
        export_images(trained_model, tmp_path, 6, shard=(1, 2), **{**options, "shard_size": 3})
    with pytest.raises(ValueError, match="num_images: 6 there, 8 now"):
        export_images(trained_model, tmp_path, 8, shard=(1, 2), **options)

"""Networks of improved-diffusion and guided-diffusion say what they say in PyTorch."""

import numpy as np
import pytest
from parity_tools import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)

import openai_network  # noqa: E402

from ddim_keras import DiffusionModel  # noqa: E402
from ddim_keras.diffusion.schedules import CosineBetaSchedule  # noqa: E402
from ddim_keras.presets import ddpm_names  # noqa: E402

pytestmark = pytest.mark.parity

# (the network's options, what is told besides its file)
CONFIGURATIONS = {
    # Of improved-diffusion's CIFAR-10: four heads at two levels, variances.
    "improved_cifar10": (
        {"multipliers": (1, 2, 2, 2), "depth": 2, "attended": (1, 2), "heads": 4}
        | {"learned_variance": True},
        {"heads": 4},
    ),
    # Of its LSUN: one head, the embedding added.
    "improved_lsun": (
        {"multipliers": (1, 1, 2), "attended": (2,), "heads": 1, "scale_shift": False},
        {"heads": 1, "image_size": 32},
    ),
    # Of guided-diffusion's 64 x 64: the new order, labels, residual blocks that resize.
    "guided_64": (
        {"multipliers": (1, 2, 3), "attended": (1, 2), "head_channels": 16, "new_order": True}
        | {"residual_resizing": True, "learned_variance": True, "classes": 5},
        {"head_channels": 16, "new_attention_order": True},
    ),
    # Of its 512 x 512: the first level is narrower than the embedding.
    "guided_512": (
        {"channels": 64, "multipliers": (0.5, 1, 2), "attended": (1, 2), "head_channels": 16}
        | {"residual_resizing": True},
        {"head_channels": 16},
    ),
    "attention_at_the_top": (
        {"multipliers": (1, 2), "depth": 2, "attended": (0, 1), "heads": 2},
        {"heads": 2},
    ),
    "one_level": (
        {"multipliers": (1,), "depth": 2, "attended": (), "heads": 2},
        {"heads": 2, "image_size": 8},
    ),
}
TIMES = [3, 700]


def said_by_theirs(network, images, times, labels=None):
    labels = None if labels is None else torch.tensor(labels)
    with torch.no_grad():
        given = torch.tensor(images.transpose(0, 3, 1, 2))
        said = network(given, torch.tensor(times), labels)
    return said.numpy()[:, :3].transpose(0, 2, 3, 1)


def said_by_ours(model, images, times, labels=None):
    inputs = [images, np.reshape(np.array(times, "float32") + 1.0, (-1, 1, 1, 1))]
    return np.asarray(model.ema_network(inputs + ([] if labels is None else [np.array(labels)])))


def relative_difference(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.fixture(params=CONFIGURATIONS)
def case(request, tmp_path):
    """Options, a network with random weights, its file, and our model of that."""
    options, told = CONFIGURATIONS[request.param]
    network = openai_network.random(**options)
    path = tmp_path / "ema_0.9999_500000.pt"
    torch.save(network.state_dict(), path)
    return options, network, DiffusionModel.from_checkpoint(path, **told), told


def test_their_networks_say_what_they_say_and_their_names_come_back(case):
    options, network, model, told = case
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype("float32")
    labels = [4, 0] if "classes" in options else None
    expected = said_by_theirs(network, images, TIMES, labels)
    assert relative_difference(said_by_ours(model, images, TIMES, labels), expected) < 1e-4

    order = not told.get("new_attention_order", False)
    arrays = ddpm_names.arrays_of(
        model.network, ddpm_names.openai(model.network.settings, head_by_head=order)
    )
    theirs = {name: part.numpy() for name, part in network.state_dict().items()}
    for name in ("out.2.weight", "out.2.bias"):
        theirs[name] = theirs[name][:3]
    if labels:
        arrays["label_emb.weight"] = arrays["label_emb.weight"][:-1]
    assert set(arrays) == set(theirs)
    assert all(np.array_equal(arrays[name], theirs[name]) for name in arrays)


def test_four_thousand_times_count_as_a_thousand_unless_told_otherwise(tmp_path):
    network = openai_network.random(heads=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    told = {"heads": 2, "image_size": 16, "schedule": CosineBetaSchedule(4000)}
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    model = DiffusionModel.from_checkpoint(tmp_path / "model.pt", **told)
    expected = said_by_theirs(network, images, [0.75, 999.75])
    assert relative_difference(said_by_ours(model, images, [3, 3999]), expected) < 1e-4
    model = DiffusionModel.from_checkpoint(tmp_path / "model.pt", rescaled_times=False, **told)
    expected = said_by_theirs(network, images, [3, 3999])
    assert relative_difference(said_by_ours(model, images, [3, 3999]), expected) < 2e-4

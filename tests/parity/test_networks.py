"""The network says what diffusers' `UNet2DModel` says, for each configuration that is published."""

import re

import numpy as np
import pytest
from parity_tools import NEEDED, SMALL, predicted, random_network, saved

torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("diffusers", reason=NEEDED)

from ddim_keras import DiffusionModel  # noqa: E402
from ddim_keras.presets import weight_files  # noqa: E402
from ddim_keras.presets.checkpoints import averaged_weights  # noqa: E402

pytestmark = pytest.mark.parity

# As google/ddpm-cifar10-32 has it.
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
# As google/ddpm-celebahq-256, ddpm-ema-church-256 and ddpm-bedroom-256, at a quarter of the width
# and of the size.
LARGE = {
    **CIFAR10,
    "sample_size": 64,
    "block_out_channels": (32, 32, 64, 64, 128, 128),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
# As diffusers' script for unconditional training makes it.
SCRIPT = {
    name: LARGE[name]
    for name in ("sample_size", "block_out_channels", "down_block_types", "up_block_types")
}
CONFIGURATIONS = {
    "cifar10": CIFAR10,
    "celebahq_church_bedroom": LARGE,
    "training_script": SCRIPT,
    "training_script_with_classes": {**SCRIPT, "num_class_embeds": 5},
    "scale_and_shift": {**SMALL, "resnet_time_scale_shift": "scale_shift"},
    "residual_resizing": {
        **SMALL,
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attn_norm_num_groups": 16,
    },
    "centred_scaled_middle": {
        **SMALL,
        "sample_size": (8, 16),
        "center_input_sample": True,
        "mid_block_scale_factor": 1.4,
        "time_embedding_dim": 48,
        "norm_num_groups": 16,
        "in_channels": 1,
        "out_channels": 1,
    },
    "no_attention_in_the_middle": {**SMALL, "add_attention": False, "layers_per_block": 2},
    "no_middle": {**SMALL, "mid_block_type": None},
}


def said_by_ours(model, images, times, labels):
    inputs = [images, np.reshape(np.array(times, "float32") + 1.0, (-1, 1, 1, 1))]
    inputs += [] if labels is None else [np.array(labels)]
    return np.asarray(model.ema_network(inputs))


def relative_difference(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request, tmp_path_factory):
    """A configuration, a network of diffusers' with it, and our model of its folder."""
    config = CONFIGURATIONS[request.param]
    network = random_network(config)
    folder = saved(network, tmp_path_factory.mktemp("theirs"))
    return config, network, DiffusionModel.from_diffusers(folder)


def test_the_network_says_what_the_peers_says(pair):
    config, network, model = pair
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype("float32")
    times = [0, 999]
    labels = [4, 0] if config.get("num_class_embeds") else None
    expected = predicted(network, images, times, labels)
    assert relative_difference(said_by_ours(model, images, times, labels), expected) < 1e-4


def test_the_round_trip_is_exact(pair, tmp_path):
    from diffusers import UNet2DModel

    _, network, model = pair
    model.save_to_diffusers(tmp_path / "ours")
    again = UNet2DModel.from_pretrained(tmp_path / "ours" / "unet")
    weights, before = again.state_dict(), network.state_dict()
    assert set(weights) == set(before)
    assert all(torch.equal(weights[part], before[part]) for part in before)


def names_of_the_authors(name: str, levels: int) -> str:
    """What the DDIM paper's code calls a weight of diffusers'."""

    def level(match):
        return f"up.{levels - 1 - int(match[1])}."

    changes = [
        (r"time_embedding\.linear_(\d)", lambda match: f"temb.dense.{int(match[1]) - 1}"),
        (r"^down_blocks\.", "down."),
        (r"^up_blocks\.(\d+)\.", level),
        (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"resnets\.", "block."),
        (r"attentions\.", "attn."),
        (r"downsamplers\.0", "downsample"),
        (r"upsamplers\.0", "upsample"),
        (r"time_emb_proj", "temb_proj"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"),
    ]
    for pattern, replacement in changes:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize(
    "form", ["of Ho et al.", "of a training with an average", "of PyTorch Lightning"]
)
def test_a_checkpoint_of_the_authors_says_what_the_network_says(form, tmp_path):
    config = {**CIFAR10, "block_out_channels": (32, 64, 64, 64)}
    network = random_network(config)
    weights = {}
    for name, weight in network.state_dict().items():
        is_matrix = re.search(r"attentions\.\d\.to_.*weight", name)
        weight = weight[:, :, None, None] if is_matrix else weight
        weights[names_of_the_authors(name, 4)] = weight.clone()
    if form == "of Ho et al.":
        torch.save(weights, tmp_path / "model.ckpt")
    elif form == "of PyTorch Lightning":
        both = {f"ema_model.{name}": part for name, part in weights.items()}
        both |= {f"model.{name}": torch.zeros_like(part) for name, part in weights.items()}
        both |= {"betas": torch.ones(1000)}
        whole = {"state_dict": both, "epoch": 7, "hyper_parameters": {"lr": 2e-4}}
        torch.save(whole, tmp_path / "model.ckpt")
    else:
        trained = {f"module.{name}": torch.zeros_like(part) for name, part in weights.items()}
        optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
        torch.save([trained, optimizer, 7, 1000, weights], tmp_path / "model.ckpt")
    model = DiffusionModel.from_checkpoint(tmp_path / "model.ckpt")
    assert model.image_shape == (32, 32, 3)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = predicted(network, images, [3, 700])
    assert relative_difference(said_by_ours(model, images, [3, 700], None), expected) < 1e-4


WEIGHTS = {"down.0.a": torch.ones(2)}
AVERAGED = {"down.0.a": torch.full((2,), 2.0)}


@pytest.mark.parametrize(
    "average",
    [
        {"ema": AVERAGED},
        {"ema_model": AVERAGED},
        {"state_dict_ema": AVERAGED},
        {"ema": {"decay": 0.99, "shadow": AVERAGED}},
        {"model_ema": {"decay": 0.99, "module": AVERAGED}},
        {"ema": {"num_updates": 3, "state_dict": {"module.down.0.a": AVERAGED["down.0.a"]}}},
    ],
)
def test_the_averaged_weights_of_a_checkpoint_are_taken_wherever_they_are(average, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"model": WEIGHTS, "step": 3, **average}, path)
    assert averaged_weights(path)["down.0.a"].tolist() == [2.0, 2.0]


def test_an_average_without_names_is_said_and_a_file_without_weights_says_what_it_has(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"net_model": WEIGHTS, "ema": {"shadow_params": [torch.ones(2)]}}, path)
    with pytest.warns(UserWarning, match="averaged weights of .* ema, have no names"):
        assert averaged_weights(path)["down.0.a"].tolist() == [1.0, 1.0]
    torch.save({"ema": None, "model": WEIGHTS}, path)
    assert averaged_weights(path)["down.0.a"].tolist() == [1.0, 1.0]
    torch.save({"optimizer": {"state": {}}, "step": 3}, path)
    with pytest.raises(ValueError, match=r"no weights by name: .* found \['optimizer', 'step'\]"):
        DiffusionModel.from_checkpoint(path)


def test_weights_in_pytorchs_own_file_and_under_old_names_are_the_same(tmp_path):
    network = random_network(SMALL)
    folder = saved(network, tmp_path / "new")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in network.state_dict().items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        weights[name] = weight
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "unet" / "diffusion_pytorch_model.bin")
    model = DiffusionModel.from_diffusers(folder)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    expected = predicted(network, images, [3, 700])
    assert relative_difference(said_by_ours(model, images, [3, 700], None), expected) < 1e-4


def test_what_a_file_of_pytorchs_would_execute_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"conv_in.weight": Harmful()}, tmp_path / "model.ckpt")
    reason = r"model\.ckpt is damaged, or holds more than weights.*it names print"
    with pytest.raises(ValueError, match=reason):
        DiffusionModel.from_checkpoint(tmp_path / "model.ckpt")


def test_files_of_pytorchs_that_are_damaged_or_hold_no_plain_arrays_are_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"conv_in.weight": torch.zeros(64)}, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:1], whole[:100], whole[:-20], b"<html>not found</html>"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.ckpt is damaged"):
            DiffusionModel.from_checkpoint(path)
    torch.save({"conv_in.weight": torch.ones(4).to_sparse()}, path)
    with pytest.raises(ValueError, match="no plain arrays"):
        DiffusionModel.from_checkpoint(path)


def test_weights_in_eight_bits_are_read(tmp_path):
    weights = {"a": torch.tensor([0.5, -2.0])}
    for kind in (torch.bfloat16, torch.float8_e4m3fn):
        torch.save({name: part.to(kind) for name, part in weights.items()}, tmp_path / "x.bin")
        assert weight_files.read(tmp_path / "x.bin")["a"].tolist() == [0.5, -2.0]


def test_our_safetensors_are_those_of_the_library(tmp_path):
    from safetensors.numpy import load_file, save_file
    from safetensors.torch import save_file as save_torch

    from ddim_keras.presets import safetensors

    arrays = {
        "b": np.arange(6, dtype="float32").reshape(2, 3),
        "a": np.array(3, "int64"),
        "c": np.ones((0, 2), "float16"),
    }
    safetensors.write(tmp_path / "ours.safetensors", arrays)
    save_file(arrays, tmp_path / "theirs.safetensors")
    for found in (
        load_file(tmp_path / "ours.safetensors"),
        safetensors.read(tmp_path / "theirs.safetensors"),
    ):
        assert set(found) == set(arrays)
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    half = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
    save_torch({"half": half}, tmp_path / "half.safetensors")
    found = safetensors.read(tmp_path / "half.safetensors")["half"]
    assert np.array_equal(found, half.float().numpy())

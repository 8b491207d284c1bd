"""What version 0.1.0 wrote and drew, on small models: files that must still load, numbers that must
still come out.

Run with the old version installed, on each backend, `python tests/version_0_1/reference.py` made
this folder: two models' `.keras` files, a preset, a run that was stopped half-way, and
`BACKEND.npz` of what they then gave. `tests/test_version_0_1.py` compares. Numbers are equal bit
for bit on the processor that made them alone.
"""

from __future__ import annotations

import pathlib
import shutil
import sys

import keras
import numpy as np

import ddim_keras

FOLDER = pathlib.Path(__file__).parent
PLAIN = {"block_depth": 1, "channels": 1, "embedding_dims": 8, "seed": 3}
MODELS = {
    "noise": {"image_size": 8, "widths": [4, 8], **PLAIN},
    "velocity": {
        "image_size": (8, 16),
        "widths": [8, 8],
        **PLAIN,
        "schedule": "linear_beta",
        "parameterization": "velocity",
        "loss_weighting": "min_snr",
        "conditioning": "every_block",
        "normalization": "group",
        "attention_levels": [1],
        "patch_size": 2,
    },
}
RUN = {
    "data": "embedded",
    "steps": 6,
    "image_size": 8,
    "preset": "keras_example",
    "model": {"widths": [4, 8], "block_depth": 1, "embedding_dims": 8},
    "training": {"batch_size": 16, "flip": True, "schedule": "cosine"},
    "precision": "float32",
    "validate_every": 3,
    "validation_images": 32,
    "kid": None,
    "samples": 0,
    "tensorboard": False,
    "checkpoint_every": 3,
}


def backend() -> str:
    return keras.backend.backend()


def images_of(model: ddim_keras.DiffusionModel, number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(number, *model.image_shape)).astype("float32")


def made_by(model: ddim_keras.DiffusionModel) -> dict[str, np.ndarray]:
    """What each verb gives."""
    images = images_of(model, 3, seed=5)
    latents = np.random.default_rng(6).standard_normal((2, *model.image_shape)).astype("float32")
    masks = np.zeros(model.image_shape[:2])
    masks[:4] = 1.0
    drawn, walked = model.generate(2, 4, seed=7, return_trajectory=True)
    return {
        "generate": model.generate(5, 4, seed=7, batch_size=2),
        "ddim": model.generate(3, 5, eta=0.0, seed=8),
        "ddpm": model.generate(3, 5, eta=1.0, seed=8),
        "heun": model.generate(3, sampler="heun", network_evaluations=5, seed=8),
        "sde": model.generate(3, 4, sampler="dpm_solver_2m_sde", spacing="karras", seed=8),
        "clipped": model.generate(3, 4, clipping="dynamic", spacing="quadratic", seed=9),
        "far": model.generate(2, 3, seed=2**31, first_image=1000),
        "trajectory": walked.noisy_images,
        "trajectory_images": np.concatenate(
            [drawn, walked.pred_images.reshape(-1, *model.image_shape)]
        ),
        "reverse_diffusion": keras.ops.convert_to_numpy(model.reverse_diffusion(latents, 3)),
        "encode": model.encode(images, 5),
        "decode": model.decode(latents, 5),
        "reconstruct": model.reconstruct(images, 4, sampler="heun"),
        "interpolate": model.interpolate(latents[0], latents[1], 3, 4),
        "interpolate_images": model.interpolate(images[0], images[1], 3, 4, from_images=True),
        "grid": model.interpolate_grid(images_of(model, 4), 2, 2, 3),
        "variations": model.variations(images[0], 0.6, 3, 4, seed=10),
        "inpaint": model.inpaint(images, masks, 3, resampling=2, seed=11),
        "evaluate": np.array(model.evaluate(images_of(model, 10), batch_size=4, verbose=0)[:2]),
    }


def trained_further(model: ddim_keras.DiffusionModel) -> np.ndarray:
    """The losses of three more epochs, and a sum over what the weights have become."""
    history = model.fit(
        images_of(model, 16), batch_size=8, epochs=3, shuffle=False, verbose=0
    ).history
    weights = np.concatenate([weight.ravel() for weight in model.ema_network.get_weights()])
    return np.array(
        [*history["n_loss"], *history["i_loss"], np.abs(weights.astype("float64")).sum()]
    )


def numbers(folder: pathlib.Path, run_folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All that is compared, from the files in `folder`; the run goes on in `run_folder`, a copy."""
    found = {}
    for name in MODELS:
        model = keras.models.load_model(folder / f"{name}.keras")
        found |= {f"{name}/{verb}": value for verb, value in made_by(model).items()}
        found[f"{name}/fit"] = trained_further(model)
    preset = ddim_keras.DiffusionModel.from_preset(folder / "preset")
    found["preset/generate"] = preset.generate(2, 4, seed=1)
    shipped = ddim_keras.DiffusionModel.from_preset("fashion_mnist_32", dtype="float32")
    shipped.samplers = []  # those fitted since
    found["shipped/generate"] = shipped.generate(2, 4, seed=1)[:, ::4, ::4]
    from ddim_keras import runs

    result = runs.train(runs.RunConfig.read(run_folder / "config.yaml"), run_folder, verbose=0)
    weights = [weight.ravel() for weight in result.model.network.get_weights()]
    found["run/weights"] = np.concatenate(weights)[::7]
    return found


def make() -> None:
    if backend() == "tensorflow":
        for name, arguments in MODELS.items():
            keras.utils.set_random_seed(2)
            model = ddim_keras.DiffusionModel(**arguments)
            model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mean_absolute_error")
            model.fit(images_of(model, 24), batch_size=8, epochs=2, verbose=0)
            model.save(FOLDER / f"{name}.keras")
        model.save_to_preset(FOLDER / "preset")
        from ddim_keras import runs

        run_folder = FOLDER / "run"
        runs.train(runs.RunConfig(**RUN), run_folder, verbose=0)
        for path in [*run_folder.glob("*.keras"), *run_folder.glob("checkpoints/*6*")]:
            path.unlink()
        (run_folder / "log.csv").write_text(
            "".join((run_folder / "log.csv").read_text().splitlines(True)[:2])
        )
    copied = FOLDER / "copied_run"
    shutil.copytree(FOLDER / "run", copied)
    found = numbers(FOLDER, copied)
    shutil.rmtree(copied)
    np.savez_compressed(FOLDER / f"{backend()}.npz", processor=processor(), **found)


def processor() -> str:
    """The processor's name, and the versions that decide over the last bit."""
    lines = (
        pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    )
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    if backend() == "tensorflow":
        import tensorflow as library
    else:
        import jax as library
    return (
        f"{name}, {backend()} {library.__version__}, keras {keras.__version__}, numpy "
        f"{np.__version__}"
    )


if __name__ == "__main__":
    make()

"""Exported programs, each run by its own runtime in a process without this package, make the images
that the model makes.
"""

import keras
import numpy as np
import pytest
from extras_tools import NEEDED, run_alone, small_model

from ddim_keras.presets import programs
from ddim_keras.samplers import FittedSampler, GaussianStart

pytestmark = pytest.mark.extras

# Each reads a program and {name: array} from an .npz file, and writes another with what came out.
RUNTIMES = {
    "tf_saved_model": """
import sys, numpy as np, tensorflow as tf
_, program, given, out = sys.argv
given = {name: tf.constant(part) for name, part in np.load(given).items()}
made = tf.saved_model.load(program).signatures["serving_default"](**given)
np.savez(out, **{name: part.numpy() for name, part in made.items()})
""",
    "onnx": """
import sys, numpy as np, onnxruntime
_, program, given, out = sys.argv
session = onnxruntime.InferenceSession(program)
names = [each.name for each in session.get_outputs()]
np.savez(out, **dict(zip(names, session.run(None, dict(np.load(given))))))
""",
    "openvino": """
import sys, numpy as np, openvino
_, program, given, out = sys.argv
# Where a processor has bfloat16, OpenVINO computes in it if it is not told otherwise.
compiled = openvino.compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
made = compiled(dict(np.load(given)))
np.savez(out, **{next(iter(port.names)): part for port, part in made.items()})
""",
    "litert": """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
_, program, given, out = sys.argv
np.savez(out, **Interpreter(program).get_signature_runner()(**dict(np.load(given))))
""",
}
MODULES = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}
FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(kind.suffix) and keras.backend.backend() != "tensorflow",
            reason="these formats are written under TensorFlow",
        ),
    )
    for name, kind in programs.FORMATS.items()
]
NOISE = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
LABELS, NUMBERS = [0, 1, 2, None], np.array([0, 1, 2, 3], "int32")


@pytest.fixture(scope="module")
def model():
    return small_model(num_classes=3, attention_levels=(1,), normalization="group")


@pytest.fixture(params=FORMATS)
def exported(request, tmp_path):
    """What exports a model, and runs the program on arrays by name."""
    format = request.param
    if format in MODULES:
        pytest.importorskip(MODULES[format], reason=NEEDED)

    def run(model, given, signature, **options):
        program = tmp_path / f"program{programs.FORMATS[format].suffix}"
        model.export(program, format, signature, **options)
        np.savez(tmp_path / "given.npz", **given)
        out = tmp_path / "out.npz"
        run_alone(RUNTIMES[format], program, tmp_path / "given.npz", out)
        return dict(np.load(out))

    return run


def test_a_walk_by_label_with_guidance_makes_the_same_images(model, exported):
    options = {"diffusion_steps": 5, "guidance": 2.0}
    given = {"initial_noise": NOISE, "labels": NUMBERS}
    made = exported(model, given, "generate", **options)
    expected = model.generate(4, initial_noise=NOISE, labels=LABELS, verbose=0, **options)
    assert expected.std() > 0.1
    assert set(made) == {"images"}
    np.testing.assert_allclose(made["images"], expected, rtol=0, atol=1e-4)


def test_a_denoiser_says_the_same(model, exported):
    noise_rates = np.linspace(0.2, 0.9, 4, dtype="float32").reshape(4, 1, 1, 1)
    signal_rates = np.sqrt(1.0 - noise_rates**2)
    given = {"noisy_images": NOISE, "noise_rates": noise_rates, "signal_rates": signal_rates}
    made = exported(model, {**given, "labels": NUMBERS}, "denoise")
    expected = model.denoise(NOISE, noise_rates, signal_rates, labels=LABELS)
    for name, part in zip(("pred_noises", "pred_images"), expected):
        np.testing.assert_allclose(made[name], np.asarray(part), rtol=0, atol=1e-4)


def test_the_papers_network_on_discrete_times_makes_the_same_images(exported):
    from ddim_keras.networks import ddpm_unet

    network = ddpm_unet((8, 8, 1), widths=(32, 32), block_depth=1, attention_levels=(1,))
    model = small_model(network=network, schedule="linear_beta", pixels="symmetric")
    options = {"diffusion_steps": 3, "sampler": "ddim", "clipping": "static"}
    made = exported(model, {"initial_noise": NOISE}, "generate", **options)
    expected = model.generate(4, initial_noise=NOISE, verbose=0, **options)
    np.testing.assert_allclose(made["images"], expected, rtol=0, atol=1e-4)


def test_a_fitted_walk_from_below_the_noise_makes_the_same_images(exported):
    model = small_model(parameterization="velocity")
    draws = np.random.default_rng(1)
    axes = np.linalg.qr(draws.normal(size=(64, 3)))[0].T
    start = GaussianStart([1.55, 1.2], draws.normal(size=64), axes, [3.0, 2.0, 0.5], 0.1)
    sampler = FittedSampler([1.2, 0.6], [[0.5, 0.8], [0.1, 1.1, -0.1]], start=start)
    made = exported(model, {"initial_noise": NOISE}, "generate", sampler=sampler, diffusion_steps=2)
    expected = model.generate(4, 2, initial_noise=NOISE, sampler=sampler, verbose=0)
    np.testing.assert_allclose(made["images"], expected, rtol=0, atol=1e-4)

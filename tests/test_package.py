"""What a user meets before the first model: importing, versions, examples in the documentation."""

import doctest
import importlib
import importlib.metadata
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, run_python, slow_on_jax

import ddim_keras


def test_importing_on_jax_leaves_tensorflow_alone():
    pytest.importorskip("jax")
    code = """
import sys, ddim_keras
model = ddim_keras.DiffusionModel(8, [4], 1)
assert model.generate(1, 2).shape == (1, 8, 8, 3)
ddim_keras.data, ddim_keras.plotting, ddim_keras.callbacks
print(sorted({"tensorflow", "tensorflow_datasets"} & set(sys.modules)))
"""
    assert run_python(code, "jax").split("\n")[-2] == "[]"


def test_an_unknown_backend_is_refused():
    code = """
import ddim_keras
try:
    ddim_keras.DiffusionModel
except ImportError as error:
    print(error)
"""
    assert re.search(
        r"runs on the Keras backends \('tensorflow', 'jax'\), got 'numpy': set .*KERAS_BACKEND",
        run_python(code, "numpy"),
    )


def test_the_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("ddim_keras") == ddim_keras.__version__
    assert ddim_keras.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_base_classes_are_abstract_and_say_what_is_missing():
    from ddim_keras import clipping, metrics, parameterizations, schedules, spacings, weightings
    from ddim_keras.samplers import Sampler

    missing = {
        clipping.Clipping: "__call__",
        parameterizations.Parameterization: "components.*image_error_scale.*target",
        Sampler: "step",
        schedules.Schedule: "__call__",
        spacings.Spacing: "numbers.*times",
        weightings.Weighting: "__call__",
        metrics.Extractor: "features",
        metrics.ImageMetric: "result.*update_features",
        weightings.ImageErrorWeighting: "image_weights",
    }
    for base, methods in missing.items():
        with pytest.raises(TypeError, match=f"Can't instantiate abstract class {base.__name__} .*{methods}"):
            base()


WITH_EXAMPLES = [
    "callbacks",
    "clipping",
    "data.loading",
    "forward",
    "interpolation",
    "metrics.fid",
    "metrics.inception_score",
    "metrics.kid",
    "metrics.manifolds",
    "model",
    "presets.folders",
    "samplers.adams_bashforth",
    "samplers.ddim",
    "samplers.dpm_solver",
    "samplers.heun",
    "samplers.unipc",
    "schedules",
    "spacings",
]


@slow_on_jax
@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module):
    module = importlib.import_module(f"ddim_keras.{module}")
    result = doctest.testmod(
        module,
        extraglobs={"np": np, "DiffusionModel": ddim_keras.DiffusionModel},
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert result.attempted > 0 and result.failed == 0


@slow_on_jax
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """All of it, in order, on a smaller model and for one short epoch."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code = "\n".join(blocks)
    assert "DiffusionModel(" in code
    small = {
        "image_size=32": "image_size=8",
        "widths=[32, 64, 96, 128]": "widths=[4, 8]",
        "block_depth=2": "block_depth=1",
        "epochs=50": "epochs=1, steps_per_epoch=2, validation_steps=1",
    }
    for usual, tiny in small.items():
        assert usual in code, f"the README no longer says {usual}"
        code = code.replace(usual, tiny)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["images"].shape == (16, 8, 8, 1)


def test_every_registered_class_says_what_it_is():
    for module in ("schedules", "parameterizations", "weightings", "samplers", "networks"):
        for name, value in vars(importlib.import_module(f"ddim_keras.{module}")).items():
            if isinstance(value, type) and value.__module__.startswith("ddim_keras") and not name.startswith("_"):
                assert value.__doc__, f"{module}.{name} has no docstring"


def test_the_backend_is_asked_for_in_one_place():
    asking = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ddim_keras").rglob("*.py")
        if re.search(r"backend\.backend\(\)|KERAS_BACKEND|BACKEND ==", path.read_text())
    ]
    assert asking == ["ddim_keras/support/backend.py"]
    assert keras.backend.backend() in ddim_keras.model.backend.SUPPORTED_BACKENDS

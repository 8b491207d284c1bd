"""What a user meets before the first model: importing, versions, examples in the documentation."""

import doctest
import email
import gc
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import keras
import numpy as np
import pytest
import yaml
from conftest import ROOT, run_python, slow_on_jax
from packaging.requirements import Requirement

import ddim_keras


@pytest.mark.slow
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


@pytest.mark.slow
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
        with pytest.raises(
            TypeError, match=f"Can't instantiate abstract class {base.__name__} .*{methods}"
        ):
            base()


WITH_EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted((ROOT / "ddim_keras").rglob("*.py"))
    if ">>> " in path.read_text()
}


@slow_on_jax
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if re.search(">>> .*DiffusionModel[.(]", text)
        else name
        for name, text in WITH_EXAMPLES.items()
    ],
)
def test_examples_in_docstrings_run(module):
    module = importlib.import_module(module)
    result = doctest.testmod(
        module,
        extraglobs={"np": np, "DiffusionModel": ddim_keras.DiffusionModel},
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert result.attempted > 0 and result.failed == 0


def run_smaller(code: str, smaller: dict[str, str]) -> dict:
    for usual, tiny in smaller.items():
        assert usual in code, f"the code no longer says {usual}"
        code = code.replace(usual, tiny)
    namespace: dict = {}
    exec(compile(code, "documentation", "exec"), namespace)
    return namespace


@slow_on_jax
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """All of it, in order, with a smaller network and for one short epoch; it is about ten
    lines.
    """
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code = "\n".join(blocks)
    assert len(code.split("\n")) <= 12
    smaller = {
        "load_weights=False": "load_weights=False, widths=[8], block_depth=1",
        "epochs=5, steps_per_epoch=1000": "epochs=1, steps_per_epoch=2, validation_steps=1",
    }
    assert run_smaller(code, smaller)["images"].shape == (16, 32, 32, 1)
    assert ddim_keras.load_model("clothes.keras").widths == [8]


WHAT_THE_README_OF_0_1_SHOWED = """
import keras
import ddim_keras
from ddim_keras import DiffusionModel

train, val = ddim_keras.data.load_dataset("embedded", image_size=32, batch_size=64)

model = DiffusionModel(image_size=32, widths=[32, 64, 96, 128], block_depth=2, channels=1)
model.normalizer.adapt(train)
model.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4), loss="mean_absolute_error")
model.fit(train, validation_data=val, epochs=50)

images = model.generate(num_images=16, diffusion_steps=20)
images = model.generate(16, 50, eta=1.0, seed=7)

latents = model.encode(images, diffusion_steps=100)
again = model.decode(latents, diffusion_steps=100)
path = model.interpolate(latents[0], latents[1], num_images=9, diffusion_steps=50)

model.save("clothes.keras")
model = keras.models.load_model("clothes.keras")
"""


@pytest.mark.slow
def test_what_the_readme_of_0_1_showed_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smaller = {
        "image_size=32": "image_size=8",
        "widths=[32, 64, 96, 128]": "widths=[4]",
        "block_depth=2": "block_depth=1",
        "epochs=50": "epochs=1, steps_per_epoch=2, validation_steps=1",
    }
    assert run_smaller(WHAT_THE_README_OF_0_1_SHOWED, smaller)["images"].shape == (16, 8, 8, 1)


def test_every_registered_class_says_what_it_is():
    for module in ("schedules", "parameterizations", "weightings", "samplers", "networks"):
        for name, value in vars(importlib.import_module(f"ddim_keras.{module}")).items():
            if (
                isinstance(value, type)
                and value.__module__.startswith("ddim_keras")
                and not name.startswith("_")
            ):
                assert value.__doc__, f"{module}.{name} has no docstring"


def test_the_backend_is_asked_for_in_one_place():
    asking = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ddim_keras").rglob("*.py")
        if re.search(r"backend\.backend\(\)|environ.*KERAS_BACKEND|BACKEND [!=]=", path.read_text())
    ]
    assert asking and all(each.startswith("ddim_keras/support/backend/") for each in asking)
    assert (
        keras.backend.backend()
        in importlib.import_module("ddim_keras.support.backend").SUPPORTED_BACKENDS
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The wheel and the source distribution, built by the build backend, without a network, from
    what git keeps.
    """
    if keras.backend.backend() != "tensorflow":
        pytest.skip("once is enough: it does not depend on the backend")
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    # As pip does it: the wheel is built from what the source distribution holds.
    build("sdist", tree, dist)
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        unpacked = tmp_path_factory.mktemp("unpacked")
        archive.extractall(unpacked, filter="data")
        members = {name.partition("/")[2] for name in archive.getnames()}
    build("wheel", next(unpacked.iterdir()), dist)
    (wheel,) = dist.glob("*.whl")
    return members, wheel


def build(kind, folder, dist):
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}({str(dist)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


def files_in(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if is_source(path)
    }


def is_source(path) -> bool:
    inside = path.relative_to(ROOT).parts
    return path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside)


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert package == files_in("ddim_keras")
    for needed in (
        "py.typed",
        "presets/pretrained/fashion_mnist_32/weights.npz",
        "metrics/fashion_mnist_classifier.npz",
        "metrics/cifar10_classifier.npz",
    ):
        assert f"ddim_keras/{needed}" in package
    assert any(name.endswith("/LICENSE") for name in names - package)


def test_the_wheel_says_what_it_needs_and_what_it_is(built):
    archive = zipfile.ZipFile(built[1])

    def read(name):
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()

    metadata = email.message_from_string(read("METADATA"))
    assert metadata["Version"] == ddim_keras.__version__
    assert metadata["License-Expression"] or metadata["License"] == "Apache-2.0"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [
        Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()
    ]
    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    always = {spelt(one) for one in needed if "extra" not in str(one.marker)}
    assert {spelt(one) for one in listed} == always
    assert {"jax", "test", "docs", "dev", "fidelity"} <= set(metadata.get_all("Provides-Extra"))
    assert "ddim-keras = ddim_keras.__main__:start" in read("entry_points.txt")


def spelt(requirement: Requirement) -> str:
    return str(requirement).replace("_", "-")


def test_a_new_tensorflow_can_be_installed():
    (bounds,) = re.findall(
        r"^tensorflow([<>=!~].*)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE
    )
    assert "<" not in bounds and "=" in bounds


def test_the_source_distribution_holds_what_the_tests_need(built):
    files = {
        "requirements.txt",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "CITATION.cff",
        "mkdocs.yml",
    }
    for folder in (
        "ddim_keras",
        "tests",
        "docs",
        "examples",
        "scripts",
        "benchmarks",
        "experiments",
    ):
        files |= files_in(folder)
    missing = files - built[0]
    assert not missing
    assert not [
        name for name in built[0] if "__pycache__" in name or name.startswith(("outputs/", "site/"))
    ]


@pytest.mark.slow
def test_what_a_wheel_installs_trains_saves_and_reloads(built, tmp_path):
    """Not the clone: another folder, in which nothing but the wheel's files is found."""
    zipfile.ZipFile(built[1]).extractall(tmp_path / "installed")
    (tmp_path / "work").mkdir()
    result = subprocess.run(
        [sys.executable, str(shutil.copy(ROOT / "scripts" / "smoke.py", tmp_path / "work"))],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"{ddim_keras.__version__} from {tmp_path / 'installed'}" in result.stdout


def test_the_citation_is_of_the_newest_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert citation["version"] == newest[1] == ddim_keras.__version__
    assert (
        citation["cff-version"]
        and citation["message"]
        and citation["title"]
        and citation["authors"]
    )


def test_the_workflows_try_every_python_and_both_backends():
    workflows = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / ".github/workflows").glob("*.yml")
    }
    matrix = workflows["tests"]["jobs"]["test"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    assert matrix == {"python": classifiers, "backend": ["tensorflow", "jax"]}
    targets = set(re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    steps = [
        step
        for workflow in workflows.values()
        for job in workflow["jobs"].values()
        for step in job["steps"]
    ]
    used = {name for step in steps for name in re.findall(r"\bmake (\S+)", step.get("run", ""))}
    assert {"lint", "docs", "setup"} <= used <= targets
    for script in re.findall(r"scripts/\w+\.py", str(workflows)):
        assert (ROOT / script).is_file()


@slow_on_jax
def test_importing_the_package_imports_no_backend():
    code = """
import sys, ddim_keras
print(sorted({"keras", "tensorflow", "jax", "numpy", "matplotlib"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("enabled", [True, False])
def test_python_looks_for_no_garbage_while_it_imports(enabled, monkeypatch):
    found = []

    def import_module(name):
        found.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(ImportError, match="ddim_keras.model"):
            ddim_keras.DiffusionModel  # noqa: B018
        assert found == [False]
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()


@slow_on_jax
@pytest.mark.parametrize(
    "imports",
    [
        "import ddim_keras, keras",
        pytest.param("import keras, ddim_keras", marks=pytest.mark.slow),
        pytest.param(
            "from ddim_keras.schedules import AngleSchedule; import keras", marks=pytest.mark.slow
        ),
        pytest.param("import ddim_keras.callbacks, keras", marks=pytest.mark.slow),
    ],
)
def test_a_model_loads_by_keras_whatever_is_imported_first(imports):
    file = ROOT / "tests" / "version_0_1" / "noise.keras"
    code = (
        f"{imports}\nprint(type(keras.models.load_model({str(file)!r}, safe_mode=True)).__name__)"
    )
    assert run_python(code).split()[-1] == "DiffusionModel"


def test_all_that_is_registered_with_keras_can_be_found_before_it_is_imported():
    for path in (ROOT / "ddim_keras").rglob("*.py"):
        # What serves images needs libraries that may not be there, and registers nothing.
        if path.parent.name != "serving":
            importlib.import_module(
                ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            )
    registered = {
        name: value
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith("ddim_keras>")
    }
    named = {
        f"ddim_keras>{name}": module
        for module, names in ddim_keras._REGISTERED.items()
        for name in names
    }
    assert set(named) == set(registered)
    for name, module in named.items():
        assert getattr(importlib.import_module(module), name.split(">")[1]) is registered[name]


def test_old_import_paths_give_the_same_modules():
    for name, module in ddim_keras._MOVED.items():
        moved = importlib.import_module(module)
        assert importlib.import_module(f"ddim_keras.{name}") is moved
        assert moved.__spec__.name == module

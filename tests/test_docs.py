"""The documentation site: built without a warning, and nothing public left out."""

import os
import re
import subprocess
import sys

import keras
import pytest
from conftest import ROOT

import ddim_keras

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="once is enough: it does not depend on the backend"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()


def test_everything_public_has_its_place_in_the_api_pages(site):
    pages = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    documented = {anchor.rsplit(".", 1)[-1] for anchor in re.findall(r'id="(ddim_keras[\w.]*)"', pages)}
    missing = {"DiffusionModel", "load_model", "Trajectory"} - documented
    for name in sorted(set(ddim_keras.__all__) - {"DiffusionModel", "load_model", "__version__"}):
        module = getattr(ddim_keras, name)
        public = getattr(module, "__all__", None) or [
            own
            for own, value in vars(module).items()
            if not own.startswith("_") and getattr(value, "__module__", None) == module.__name__ and value.__doc__
        ]
        missing |= {f"{name}.{own}" for own in public if own not in documented and not own.isupper()}
    assert not missing


def test_the_command_line_is_documented_from_itself(site):
    from ddim_keras.cli import main

    page = (site / "cli" / "index.html").read_text()
    for name, command in main.commands.items():
        assert f"ddim-keras {name}" in page
        assert all(option.opts[0] in page for option in command.params if option.param_type_name == "option")

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
    keras.backend.backend() != "tensorflow",
    reason="once is enough: it does not depend on the backend",
)


@pytest.fixture(scope="session")
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


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()


@pytest.mark.slow
def test_everything_public_has_its_place_in_the_api_pages(site):
    pages = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    documented = {
        anchor.rsplit(".", 1)[-1] for anchor in re.findall(r'id="(ddim_keras[\w.]*)"', pages)
    }
    missing = {"DiffusionModel", "load_model", "Trajectory"} - documented
    for name in sorted(set(ddim_keras.__all__) - {"DiffusionModel", "load_model", "__version__"}):
        module = getattr(ddim_keras, name)
        public = getattr(module, "__all__", None) or [
            own
            for own, value in vars(module).items()
            if not own.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
            and value.__doc__
        ]
        missing |= {
            f"{name}.{own}" for own in public if own not in documented and not own.isupper()
        }
    assert not missing


@pytest.mark.slow
def test_the_command_line_is_documented_from_itself(site):
    from ddim_keras.cli import main

    page = (site / "cli" / "index.html").read_text()
    for name, command in main.commands.items():
        assert f"ddim-keras {name}" in page
        assert all(
            option.opts[0] in page
            for option in command.params
            if option.param_type_name == "option"
        )


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDEST_CODE = 88


def test_code_fits_its_column():
    """The site's column holds 92 characters; the examples, which it includes, are that wide at
    most.
    """
    too_wide = []
    for page in PAGES:
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.startswith("```"):
                fenced = not fenced
            elif (fenced or line.startswith("    ")) and len(line) - (
                0 if fenced else 4
            ) > WIDEST_CODE:
                too_wide.append(f"{page.name}:{number}")
    assert not too_wide


@pytest.mark.slow
def test_formulas_are_typeset_without_a_network(site):
    page = (site / "paper" / "index.html").read_text()
    assert page.count("<math") > 20
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert "arithmatex" not in text and "\\(" not in text, path
        assert not re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!example)[^"]+\.(?:js|css|woff2?|png)"',
            text,
        )


def test_links_between_pages_lead_somewhere_on_github_too():
    """The site's builder checks its own links; the README's, and those to files outside docs/, are
    checked here.
    """
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_how_generate_works_quotes_a_real_walk():
    from ddim_keras.diffusion.spacings import diffusion_times, levels_of
    from ddim_keras.samplers import UniPC, plan

    model = ddim_keras.DiffusionModel.from_preset("fashion_mnist_32", load_weights=False)
    levels = levels_of(model.schedule, diffusion_times(4, "karras", model.schedule))
    table = plan(UniPC(), levels, model.schedule.conditions).table
    page = (ROOT / "docs" / "how_generate_works.md").read_text()
    for index, row in enumerate(table[:4]):
        noise_level, noise_rate, signal_rate, image, noise, fresh, *earlier = row[:9]
        cells = [noise_level, noise_rate, signal_rate, image, noise, fresh, *earlier]
        texts = [f"{value:.3f}" if value else "0" for value in cells]
        assert "| " + " | ".join([str(index), *texts]) + " |" in page

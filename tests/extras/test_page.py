"""The page, clicked by a person in a headless browser."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from extras_tools import NEEDED, ROOT, small_model

from ddim_keras.serving import addresses
from ddim_keras.serving.play import Playground

pytest.importorskip("gradio", reason=NEEDED)
sync_api = pytest.importorskip("playwright.sync_api", reason=NEEDED)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium"),
]
PATIENCE = 120_000  # milliseconds


@contextlib.contextmanager
def shown(*arguments):
    """Yield the address of a page in another process."""
    code = "from ddim_keras.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:"), line
        yield line.split()[4]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "small.keras"
    small_model(num_classes=3, class_names=["cat", "dog", "owl"]).save(path)
    with shown("-m", path, "--max-steps", "50") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    with visiting(browser, address) as found:
        yield found


@contextlib.contextmanager
def visiting(browser, address):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    found = context.new_page()
    found.set_default_timeout(PATIENCE)
    found.goto(address)
    sync_api.expect(found.locator("#about")).to_contain_text("8 x 8 x 1", timeout=PATIENCE)
    yield found
    context.close()


@pytest.fixture
def photo(tmp_path):
    import PIL.Image

    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8")
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def set_number(page, name, value):
    box = page.locator(f"#{name} input[type=number]").first
    box.fill(str(value))
    box.press("Enter")


def picture_in(page, name, other_than=None):
    """Wait until a picture is shown, and return where it is from."""
    image = page.locator(f"#{name} img").first
    image.wait_for()
    if other_than is not None:
        sync_api.expect(image).not_to_have_attribute("src", other_than, timeout=PATIENCE)
    return image.get_attribute("src")


def said(page, text):
    sync_api.expect(page.locator("#said")).to_contain_text(text, timeout=PATIENCE)


def test_a_walk_is_watched_and_ends_with_its_seed(page):
    page.locator("#label input").click()
    page.get_by_role("option", name="dog").click()
    set_number(page, "steps", 30)
    set_number(page, "seed", 7)
    seen = set()
    page.expose_function("remember", lambda text: seen.add(text))
    page.evaluate(
        """new MutationObserver(() => remember(document.querySelector('#said')?.innerText ?? ''))
        .observe(document.body, {subtree: true, childList: true, characterData: true})"""
    )
    page.locator("#generate").click()
    said(page, "step 30 of 30, seed 7")
    picture_in(page, "generated")
    assert len([text for text in seen if re.search(r"step \d+ of 30", text)]) > 2


def test_dragging_between_two_latents_draws_anew(page):
    page.get_by_role("tab", name="Between two latents").click()
    handle = page.locator("#position input[type=range]")
    handle.focus()
    handle.press("ArrowRight")
    first = picture_in(page, "between")
    for _ in range(20):
        handle.press("ArrowRight")
    picture_in(page, "between", other_than=first)


def test_an_image_is_reconstructed_varied_and_restored(page, photo):
    page.get_by_role("tab", name="From an image").click()
    set_number(page, "steps", 5)
    page.locator("#given input[type=file]").set_input_files(photo)
    page.locator("#given img").first.wait_for()
    page.locator("#reconstruct").click()
    first = picture_in(page, "from-image")
    page.locator("#vary").click()
    second = picture_in(page, "from-image", other_than=first)
    page.get_by_label("noisy").check()
    page.locator("#restore").click()
    third = picture_in(page, "from-image", other_than=second)
    page.get_by_label("no colours").check()
    page.locator("#restore").click()
    page.get_by_text("there is nothing to colour").first.wait_for()
    page.get_by_label("few pixels").check()
    page.locator("#restore").click()
    picture_in(page, "from-image", other_than=third)


def test_what_is_painted_over_is_filled_in(page, photo):
    page.get_by_role("tab", name="Paint over").click()
    set_number(page, "steps", 3)
    page.locator("#canvas input[type=file]").first.set_input_files(photo)
    canvas = page.locator("#canvas canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2000)
    page.locator("#fill").click()
    toast = page.get_by_text("nothing is painted over")
    toast.first.wait_for()
    box = canvas.bounding_box()
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(across - 20, down)
    page.mouse.down()
    page.mouse.move(across + 20, down, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.locator("#fill").click()
    picture_in(page, "filled")


def test_a_second_visitor_waits_in_the_queue_and_is_served(browser, address):
    with visiting(browser, address) as first, visiting(browser, address) as second:
        for visitor in (first, second):
            set_number(visitor, "steps", 40)
            visitor.locator("#generate").click()
        for visitor in (first, second):
            said(visitor, "step 40 of 40, seed 0")


def test_a_port_that_is_taken_is_said_so():
    from ddim_keras.serving.page import open_page

    with addresses.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}: .* another port, or 0"):
            open_page(Playground(["none"], lambda source: None), port=port)


def test_a_model_that_is_not_there_is_said_so_on_the_page(page):
    box = page.locator("#source input")
    box.fill("/nowhere/model.keras")
    box.press("Enter")
    page.get_by_text("/nowhere/model.keras").first.wait_for()
    page.get_by_text("Error").first.wait_for()

"""A page to play with a model on, by Gradio. Needs the extra `[demo]`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddim_keras.samplers import SAMPLERS
from ddim_keras.serving import addresses
from ddim_keras.serving.limits import TurnedAway
from ddim_keras.serving.play import DAMAGES, Playground, Settings
from ddim_keras.serving.service import Asked

# Neither the page nor its parts come from elsewhere, and nothing is reported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import gradio as gr
except ImportError as error:
    raise ImportError(f"the page needs Gradio ({error}): pip install 'ddim_keras[demo]'") from error

_NO_LABEL = "any"
_LARGEST_FILE = "8mb"
_USER = "ddim"
# All that uses the model is done one after another.
_IN_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}


def build(playground: Playground) -> Any:
    """Return the page: a `gradio.Blocks`."""
    with gr.Blocks(title="ddim_keras", analytics_enabled=False) as page:
        gr.Markdown("# From noise to images")
        with gr.Row():
            source = gr.Dropdown(
                playground.sources,
                value=playground.sources[0],
                allow_custom_value=playground.any_source,
                label="Model",
                info="A preset, or the path of a run, a .keras file or a preset's folder"
                if playground.any_source
                else None,
                elem_id="source",
            )
            about = gr.Markdown(elem_id="about")
        with gr.Row():
            label = gr.Dropdown([_NO_LABEL], value=_NO_LABEL, label="Label", elem_id="label")
            guidance = gr.Slider(1.0, 6.0, 1.0, step=0.1, label="Guidance", elem_id="guidance")
            steps = gr.Slider(
                1, playground.limits.steps, 20, step=1, label="Steps", elem_id="steps"
            )
            seed = gr.Number(0, precision=0, label="Seed", minimum=0, elem_id="seed")
        shared = [source, label, guidance, steps]
        _generating(playground, shared, seed)
        _between(playground, shared)
        _from_images(playground, shared, seed)
        _inpainting(playground, shared, seed)

        def choose(source: str) -> tuple[Any, Any, str]:
            model = _told(lambda: playground.service(source).model)
            names = model.class_names or [str(number) for number in range(model.num_classes or 0)]
            height, width, channels = model.image_shape
            text = f"{height} x {width} x {channels}, {model.network.count_params():,} weights"
            return (
                gr.Dropdown([_NO_LABEL, *names], value=_NO_LABEL, visible=bool(names)),
                gr.Slider(visible=bool(names), value=model.sampling_defaults.guidance or 1.0),
                text,
            )

        gr.on([page.load, source.change], choose, source, [label, guidance, about], **_IN_TURN)
    page.queue(max_size=playground.limits.waiting + 1)
    return page


def _generating(playground: Playground, shared: list[Any], seed: Any) -> None:
    with gr.Tab("Generate"):
        with gr.Row():
            with gr.Column():
                number = gr.Slider(
                    1,
                    playground.limits.images,
                    min(9, playground.limits.images),
                    step=1,
                    label="Images",
                    elem_id="number",
                )
                sampler = gr.Dropdown(["default", *SAMPLERS], label="Sampler", elem_id="sampler")
                eta = gr.Slider(0.0, 1.0, 0.0, step=0.05, label="eta, of ddim", elem_id="eta")
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                said = gr.Markdown(elem_id="said")
            shown = _image("generated")

    def generate(
        source: str,
        label: str,
        guidance: float,
        steps: int,
        seed: int,
        number: int,
        sampler: str,
        eta: float,
    ) -> Iterator[tuple[np.ndarray, str]]:
        settings = _settings(playground, source, label, guidance, steps)
        asked = Asked(
            int(number),
            settings.steps,
            sampler=None if sampler == "default" or eta else sampler,
            eta=eta or None,
            guidance=settings.guidance,
            labels=settings.label,
            seed=int(seed),
        )
        if eta and sampler not in ("default", "ddim"):
            raise gr.Error(f"eta is DDIM's: set it to 0 for {sampler}, or choose ddim")
        with _errors_shown():
            walk = playground.watch(source, asked)
            with contextlib.closing(walk):
                for picture, step, made_by in walk:
                    end = "" if made_by < 0 else f", seed {made_by}"
                    yield picture, f"step {step} of {settings.steps}{end}"

    button.click(generate, [*shared, seed, number, sampler, eta], [shown, said], **_IN_TURN)


def _between(playground: Playground, shared: list[Any]) -> None:
    with gr.Tab("Between two latents"):
        with gr.Row():
            with gr.Column():
                first = gr.Number(1, precision=0, label="Seed on the left", minimum=0)
                second = gr.Number(2, precision=0, label="Seed on the right", minimum=0)
                position = gr.Slider(
                    0.0, 1.0, 0.5, step=0.01, label="Drag between them", elem_id="position"
                )
            shown = _image("between")

    def between(
        source: str,
        label: str,
        guidance: float,
        steps: int,
        first: int,
        second: int,
        position: float,
    ) -> np.ndarray:
        settings = _settings(playground, source, label, guidance, steps)
        seeds = (int(first), int(second))
        return _told(lambda: playground.between(source, seeds, float(position), settings))

    # While one is drawn, only the last of what was dragged to is kept.
    gr.on(
        [position.input, first.change, second.change],
        between,
        [*shared, first, second, position],
        shown,
        trigger_mode="always_last",
        show_progress="hidden",
        **_IN_TURN,
    )


def _from_images(playground: Playground, shared: list[Any], seed: Any) -> None:
    with gr.Tab("From an image"):
        with gr.Row():
            with gr.Column():
                given = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="Drop an image in",
                    image_mode=None,
                    elem_id="given",
                    height=280,
                )
                again = gr.Button("Reconstruct", elem_id="reconstruct")
                strength = gr.Slider(
                    0.0, 1.0, 0.5, step=0.05, label="How far the variations go", elem_id="strength"
                )
                vary = gr.Button("Vary", variant="primary", elem_id="vary")
                damage = gr.Radio(
                    list(DAMAGES),
                    value=next(iter(DAMAGES)),
                    label="What is wrong with it",
                    elem_id="damage",
                )
                mend = gr.Button("Restore", elem_id="restore")
            shown = _image("from-image")

    def reconstruct(source: str, label: str, guidance: float, steps: int, given: str) -> np.ndarray:
        settings = _settings(playground, source, label, guidance, steps)
        return _told(lambda: playground.reconstruct(source, given, settings))

    def variations(
        source: str,
        label: str,
        guidance: float,
        steps: int,
        seed: int,
        given: str,
        strength: float,
    ) -> np.ndarray:
        settings = _settings(playground, source, label, guidance, steps)
        number = min(8, playground.limits.images)
        return _told(lambda: playground.vary(source, given, strength, number, int(seed), settings))

    def restore(
        source: str,
        label: str,
        guidance: float,
        steps: int,
        seed: int,
        given: str,
        damage: str,
    ) -> np.ndarray:
        settings = _settings(playground, source, label, guidance, steps)
        return _told(lambda: playground.restore(source, given, damage, int(seed), settings))

    again.click(reconstruct, [*shared, given], shown, **_IN_TURN)
    mend.click(restore, [*shared, seed, given, damage], shown, **_IN_TURN)
    vary.click(variations, [*shared, seed, given, strength], shown, **_IN_TURN)


def _inpainting(playground: Playground, shared: list[Any], seed: Any) -> None:
    with gr.Tab("Paint over"):
        with gr.Row():
            with gr.Column():
                given = gr.ImageEditor(
                    type="pil",
                    sources=["upload", "clipboard"],
                    label="Drop an image in, and paint over what is to be filled in",
                    layers=False,
                    transforms=[],
                    brush=gr.Brush(default_size=40, colors=["#ff4040"], color_mode="fixed"),
                    elem_id="canvas",
                    height=420,
                )
                button = gr.Button("Fill in", variant="primary", elem_id="fill")
            shown = _image("filled")

    def fill(
        source: str,
        label: str,
        guidance: float,
        steps: int,
        seed: int,
        given: dict[str, Any] | None,
    ) -> np.ndarray:
        settings = _settings(playground, source, label, guidance, steps)
        if not given or given["background"] is None:
            raise gr.Error("there is no image yet: drop one in")
        layers = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in given["layers"]]
        background = given["background"]
        painted = np.max([np.zeros(background.size[::-1], "uint8"), *layers], axis=0)

        def filled() -> np.ndarray:
            return playground.inpaint(source, background, painted, int(seed), settings)

        return _told(filled)

    button.click(fill, [*shared, seed, given], shown, **_IN_TURN)


def _image(name: str) -> Any:
    # As PNG: the page's own default loses what small images are made of.
    return gr.Image(
        interactive=False,
        show_label=False,
        format="png",
        elem_id=name,
        height=520,
        buttons=["download", "fullscreen"],
    )


def _settings(
    playground: Playground, source: str, label: str, guidance: float, steps: int
) -> Settings:
    """What was chosen, for a model that may have no labels."""
    model = _told(lambda: playground.service(source).model)
    if model.num_classes is None or label == _NO_LABEL:
        return Settings(None, None, int(steps))
    named = label if model.class_names else int(label)
    return Settings(named, float(guidance), int(steps))


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """Within, what was worded for who uses the page is shown on it."""
    try:
        yield
    except (ValueError, OSError, ArithmeticError, TurnedAway) as error:
        raise gr.Error(str(error)) from error


def _told(make: Callable[[], Any]) -> Any:
    with _errors_shown():
        return make()


def open_page(
    playground: Playground,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    token: str | None = None,
    tell: Callable[[str], None] = print,
    ends: threading.Event | None = None,
) -> None:
    """Show the page until Ctrl-C or a request to terminate.

    Args:
        playground: what it plays with. It is stopped at the end.
        host: the address to bind.
        port: 0 for any that is free.
        token: the password of the user "ddim", whom the page then asks for.
        tell: called with a line once it is ready.
        ends: set to end it from another thread.

    Raises:
        ValueError: the address is not available.
    """
    addresses.bound(host, port).close()  # Gradio's own error speaks of its own settings
    page = build(playground)
    # What the page itself has from elsewhere: nothing.
    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            auth=(_USER, token) if token else None,
            max_file_size=_LARGEST_FILE,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            footer_links=[],
            theme=plain,
            ssr_mode=False,
        )
        tell(f"The page is at {address} ; Ctrl-C ends it")
        (ends or threading.Event()).wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
        playground.stop()

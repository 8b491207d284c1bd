"""`serve` and `demo`: a model for others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import load
from ddim_keras.cli.options import SOURCE, model_option

if TYPE_CHECKING:
    from ddim_keras.serving.limits import Limits


def _address_options(port: int) -> Callable[[Callable], Callable]:
    """Give a command the options of its address and its limits, which it gets as `limits`."""
    options = [
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            help="Address to bind. At others than this machine's own a token is needed.",
        ),
        click.option("--port", default=port, show_default=True, help="0 for any that is free."),
        click.option("--max-images", default=16, show_default=True, help="In one request."),
        click.option("--max-steps", default=100, show_default=True, help="Of a walk."),
        click.option(
            "--queue",
            "waiting",
            default=8,
            show_default=True,
            help="Requests that may wait while another is worked on.",
        ),
        click.option(
            "--seconds",
            default=60.0,
            show_default=True,
            help="From a request's arrival to its images.",
        ),
    ]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def within_limits(
            max_images: int, max_steps: int, waiting: int, seconds: float, **arguments: Any
        ) -> None:
            from ddim_keras.serving import addresses
            from ddim_keras.serving.limits import Limits

            addresses.check_host(arguments["host"], arguments["token"])
            limits = Limits(images=max_images, steps=max_steps, waiting=waiting, seconds=seconds)
            command(limits=limits, **arguments)

        decorated: Callable = within_limits
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@main.command()
@model_option
@_address_options(8000)
@click.option(
    "--token",
    envvar="DDIM_KERAS_TOKEN",
    default=None,
    help="What requests must carry: Authorization: Bearer TOKEN. Better given by the environment "
    "variable DDIM_KERAS_TOKEN, which other users do not see.",
)
def serve(
    source: str,
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
) -> None:
    """Serve images over HTTP; needs the extra [serve].

    POST /generate takes parameters and gives a PNG or an .npz file; /docs describes all. Ctrl-C, or
    a request to terminate, ends it.

    \b
    ddim-keras serve -m runs/photos
    curl -d '{"num_images": 4}' -H 'content-type: application/json' \\
        http://127.0.0.1:8000/generate -o images.png
    """
    from ddim_keras.serving import http
    from ddim_keras.serving.service import Service

    http.serve(Service(load(source), limits), host, port, token=token, tell=click.echo)


@main.command()
@click.option(
    "--model",
    "-m",
    "sources",
    type=SOURCE,
    multiple=True,
    default=["fashion_mnist_32"],
    help="As for other commands; given several times, the page lets choose.  [default: "
    "fashion_mnist_32]",
)
@_address_options(7860)
@click.option(
    "--token",
    envvar="DDIM_KERAS_TOKEN",
    default=None,
    help="Password of the user ddim, whom the page then asks for. Better given by the environment "
    "variable DDIM_KERAS_TOKEN, which other users do not see.",
)
def demo(
    sources: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
) -> None:
    """Show a page to play with a model on; needs the extra [demo].

    Watch walks, drag between latents, reconstruct and vary an image, paint over a part of it and
    have it filled in. Bound to this machine's own address, any model on it can be chosen on the
    page; elsewhere only those that are given.

    \b
    ddim-keras demo
    ddim-keras demo -m runs/photos -m runs/flowers
    """
    from ddim_keras.serving import addresses, page
    from ddim_keras.serving.play import Playground

    playground = Playground(sources, load, limits, any_source=addresses.is_loopback(host))
    playground.service(sources[0])  # an error about it belongs here
    page.open_page(playground, host, port, token=token, tell=click.echo)

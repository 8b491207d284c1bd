"""Commands that take images: `encode` and `decode`, `reconstruct`, `interpolate`, `inpaint`,
`restore`.
"""

from __future__ import annotations

import pathlib
from typing import Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import load, read
from ddim_keras.cli.options import (
    IMAGE_FILE,
    PNG,
    PNG_OR_ANIMATION,
    fit_option,
    given_flags,
    images_argument,
    label_options,
    model_option,
    out_option,
    told,
)
from ddim_keras.support.arguments import integer


@main.command()
@model_option
@images_argument
@out_option("A .npy file of latents; with --algebra .npz.")
@click.option("--steps", "-s", default=100, show_default=True, help="Steps; decode with as many.")
@click.option(
    "--exact",
    is_flag=True,
    help="Solve each step, so that decoding gives just these images. For models whose schedule "
    "ends near the clean image, such "
    "as linear_beta; few images have such latents with the angle schedule.",
)
@click.option(
    "--algebra",
    is_flag=True,
    help="Walk by a two-step rule: each latent is a pair of states, and decoding gives just these "
    "images, whatever the model and the steps.",
)
@label_options
@fit_option
def encode(
    source: str,
    images: tuple[pathlib.Path, ...],
    out: pathlib.Path,
    steps: int,
    exact: bool,
    algebra: bool,
    fit: str,
    **options: Any,
) -> None:
    """Find the noises that images come from.

    They are an array (images, height, width, channels). `ddim-keras decode` gives the images; in
    Python, model.decode(numpy.load("latents.npy"), 100) does, and of --algebra
    model.decode(PairLatents.load("latents.npz")).

    \b
    ddim-keras encode shirt.png shoe.png --out latents.npy
    ddim-keras encode shirt.png shoe.png --algebra --steps 50 --out latents.npz
    """
    import numpy as np

    from ddim_keras.support import files

    suffix = ".npz" if algebra else ".npy"
    if exact and algebra:
        raise click.UsageError("--exact and --algebra are two ways: give one")
    if out.suffix != suffix:
        raise click.BadParameter(f"must end in {suffix}, got {str(out)!r}", param_hint="--out")
    files.check_file(out)
    model = load(source)
    way = "algebra" if algebra else exact
    latents = model.encode(read(model, images, fit), steps, exact=way, **told(model, **options))
    if algebra:
        latents.save(out)
    else:
        with files.written_beside(out) as temporary:
            np.save(temporary, latents)
    click.echo(f"{len(latents)} latents of shape {model.image_shape} written to {out}")


@main.command()
@model_option
@click.argument("latents", type=IMAGE_FILE)
@out_option("A PNG of the images.", PNG)
@click.option(
    "--steps",
    "-s",
    type=click.IntRange(min=1),
    default=None,
    help="As many as they were encoded in.  [default: 100; of --algebra their own]",
)
@label_options
def decode(
    source: str, latents: pathlib.Path, out: pathlib.Path, steps: int | None, **options: Any
) -> None:
    """Draw the images of latents that `encode` wrote.

    With another label than they were encoded with, images change to it.

    \b
    ddim-keras decode latents.npy --out again.png
    ddim-keras decode latents.npz --label Coat --out coats.png
    """
    from ddim_keras import plotting
    from ddim_keras.sampling import PairLatents
    from ddim_keras.support import reading

    advice = "give what `ddim-keras encode` wrote, or encode the images again"
    if latents.suffix == ".npz":
        found: Any = PairLatents.load(latents)
    elif latents.suffix == ".npy":
        found = reading.array_of(latents, advice)
    else:
        raise click.BadParameter(
            f"must end in .npy or .npz, got {str(latents)!r}: {advice}", param_hint="LATENTS"
        )
    model = load(source)
    images = model.decode(found, steps, **told(model, **options))
    plotting.save_images(out, images, scale=4)
    click.echo(f"{len(images)} images written to {out}")


@main.command()
@model_option
@images_argument
@out_option("A PNG of both rows.", PNG)
@click.option("--steps", "-s", default=100, show_default=True)
@label_options
@fit_option
def reconstruct(
    source: str,
    images: tuple[pathlib.Path, ...],
    out: pathlib.Path,
    steps: int,
    fit: str,
    **options: Any,
) -> None:
    """Encode images and decode them again.

    Draws the images above what came back.

    \b
    ddim-keras reconstruct shirt.png shoe.png --steps 200 --out again.png
    """
    import numpy as np

    from ddim_keras import plotting

    model = load(source)
    before = read(model, images, fit)
    after = model.reconstruct(before, steps, **told(model, **options))
    plotting.save_images(out, np.concatenate([before, after]), columns=len(before), scale=4)
    click.echo(
        f"Mean squared error of a pixel: {np.mean((before - after) ** 2):.6f}. Written to {out}"
    )


@main.command()
@model_option
@click.argument("start", type=IMAGE_FILE, required=False)
@click.argument("end", type=IMAGE_FILE, required=False)
@out_option("A PNG, or an animated GIF or WebP.", PNG_OR_ANIMATION)
@click.option(
    "--num-images",
    "-n",
    type=click.IntRange(min=2),
    default=9,
    show_default=True,
    help="The two ends included.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Of the two noises, if no images are given."
)
@click.option("--steps", "-s", default=50, show_default=True)
@label_options
@fit_option
def interpolate(
    source: str,
    start: pathlib.Path | None,
    end: pathlib.Path | None,
    out: pathlib.Path,
    num_images: int,
    seed: int,
    steps: int,
    fit: str,
    **options: Any,
) -> None:
    """Draw images between two images, or between two noises.

    \b
    ddim-keras interpolate shirt.png dress.png --out between.gif
    ddim-keras interpolate --seed 3 --out between.png
    """
    import numpy as np

    from ddim_keras import plotting

    animated = out.suffix.lower() != ".png"
    if (start is None) != (end is None):
        raise click.UsageError("give two images, or none for two noises")
    model = load(source)
    if start is None or end is None:
        seed = integer("seed", seed, minimum=0)
        ends = np.random.default_rng(seed).normal(size=(2, *model.image_shape)).astype("float32")
    else:
        ends = read(model, (start, end), fit)
    path = model.interpolate(
        ends[0],
        ends[1],
        num_images=num_images,
        diffusion_steps=steps,
        from_images=start is not None,
        **told(model, **options),
    )
    if animated:
        plotting.save_animation(out, list(path), scale=4)
    else:
        plotting.save_images(out, path, columns=num_images, scale=4)
    click.echo(f"{num_images} images written to {out}")


@main.command()
@model_option
@click.argument("image", type=IMAGE_FILE)
@click.argument("mask", type=IMAGE_FILE)
@out_option("A PNG of the fillings.", PNG)
@click.option(
    "--num-images",
    "-n",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Different fillings.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", "-s", default=50, show_default=True)
@label_options
@fit_option
def inpaint(
    source: str,
    image: pathlib.Path,
    mask: pathlib.Path,
    out: pathlib.Path,
    num_images: int,
    seed: int,
    steps: int,
    fit: str,
    **options: Any,
) -> None:
    """Fill in a part of an image.

    The part where the mask, a picture of the same size, is black; where it is white or transparent
    the image stays.

    \b
    ddim-keras inpaint shirt.png mask.png --num-images 8 --out filled.png
    """
    import numpy as np

    from ddim_keras import plotting
    from ddim_keras.data import read_images

    _check_sizes(image, mask)
    model = load(source)
    known = read_images((mask,), model.image_shape[:2], 1, fit=fit, background="white") > 0.5
    if known.all():
        raise ValueError(
            f"nothing is to be filled: {mask} is nowhere black (what is transparent counts as "
            "white)"
        )
    images = np.repeat(read(model, (image,), fit), num_images, axis=0)
    masks = np.repeat(known, num_images, axis=0)
    filled = model.inpaint(images, masks, steps, seed=seed, **told(model, **options))
    plotting.save_images(out, filled, columns=num_images, scale=4)
    click.echo(f"{num_images} fillings written to {out}")


@main.command()
@model_option
@images_argument
@click.option(
    "--task",
    "-t",
    required=True,
    type=click.Choice(["super-resolution", "blur", "colorize", "mask"]),
    help="What the images lack: they are small, blurred, grey, or known in a part.",
)
@out_option("A PNG of what was measured, in the first row, and of the restored images.", PNG)
@click.option("--factor", default=4, show_default=True, help="How many times larger.")
@click.option(
    "--blur-width",
    default=1.0,
    show_default=True,
    help="Standard deviation of the blur, in pixels of the model's size.",
)
@click.option(
    "--mask",
    type=IMAGE_FILE,
    help="A picture, black where the images are not known.",
)
@click.option(
    "--noise-level",
    default=0.0,
    show_default=True,
    help="Standard deviation of the images' noise, on a scale from 0 to 1.",
)
@click.option("--steps", "-s", default=50, show_default=True)
@click.option(
    "--eta", default=0.85, show_default=True, help="Fresh noise, from 0 (DDIM) to 1 (DDPM)."
)
@click.option("--method", type=click.Choice(["ddnm", "diffpir"]), default="ddnm", show_default=True)
@click.option("--seed", default=0, show_default=True)
@label_options
@fit_option
def restore(
    source: str,
    images: tuple[pathlib.Path, ...],
    task: str,
    out: pathlib.Path,
    factor: int,
    blur_width: float,
    mask: pathlib.Path | None,
    label: str | None,
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    fit: str,
    steps: int,
    **options: Any,
) -> None:
    """Restore images: enlarge, sharpen, colour or complete them.

    Without noise, what is drawn measures as the images do. Images are brought to the size that the
    model measures at: for super-resolution its own divided by the factor.

    \b
    ddim-keras restore small.png --task super-resolution --factor 4 --out large.png
    ddim-keras restore blurred.png --task blur --blur-width 1.5 --noise-level 0.02 --out sharp.png
    """
    import numpy as np

    from ddim_keras import plotting
    from ddim_keras.data import read_images
    from ddim_keras.sampling import operators

    if (mask is not None) != (task == "mask"):
        raise click.UsageError("--task mask and --mask belong together: give both")
    of_tasks = {"factor": "super-resolution", "blur_width": "blur"}
    for name, flag in given_flags().items():
        if of_tasks.get(name, task) != task:
            raise click.UsageError(
                f"{flag} is for --task {of_tasks[name]}, not for --task {task}: leave it out"
            )
    if mask is not None:
        for path in images:
            _check_sizes(path, mask)
    model = load(source)
    *size, channels = model.image_shape
    operator: operators.Operator
    if task == "super-resolution":
        operator = operators.SuperResolution(factor).built(model.image_shape)
        size = [side // factor for side in size]
    elif task == "blur":
        operator = operators.Blur.gaussian(blur_width)
    elif task == "colorize":
        operator = operators.Colorize().built(model.image_shape)
        channels = 1
    elif mask is not None:
        known = read_images((mask,), size, 1, fit=fit, background="white") > 0.5
        operator = operators.Mask(known)
    measured = np.asarray(read_images(images, size, channels, fit=fit), "float32")
    if mask is not None:
        measured = operator(measured)
    options |= told(model, label, guidance, guidance_interval)
    restored = model.restore(measured, operator, steps, **options)
    # In the first row pixels as large as they are, in as many channels as the restored images.
    shown = measured.repeat(restored.shape[1] // measured.shape[1], axis=1)
    shown = shown.repeat(restored.shape[2] // measured.shape[2], axis=2)
    shown = np.broadcast_to(shown, restored.shape)
    plotting.save_images(out, np.concatenate([shown, restored]), columns=len(images), scale=4)
    click.echo(f"{len(images)} images restored, in {out}")


def _check_sizes(image: pathlib.Path, mask: pathlib.Path) -> None:
    """Raise ValueError unless a mask is of its image's size."""
    from ddim_keras.data import decoding

    sizes = []
    for path in (image, mask):  # as they are seen: a phone stores its pictures turned
        try:
            sizes.append(decoding.upright_size(path))
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise ValueError(
                f"{path} cannot be read as an image ({type(error).__name__}: {error})"
            ) from error
    whole, part = sizes
    if whole != part:
        raise ValueError(
            f"the mask must be of the image's size: {mask} is {part[0]} x {part[1]} pixels, "
            f"{image} {whole[0]} x {whole[1]}"
        )

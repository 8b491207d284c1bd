"""Train recipes on one data set for the same minutes on this machine, and score what each then
draws.

    python benchmarks/quality.py --data fashion_mnist|cifar10|flowers --data-dir WHERE
        [--recipes published mended ours] [--minutes 10] [--seeds 0] [--num-images 10000]
        [--train-only] [--out outputs/quality]

Fashion-MNIST, padded to 32 x 32, and CIFAR-10 come through TFDS, from WHERE it keeps its data (see
scripts/place_fashion_mnist.py where there is no network), and scores are against their 10,000 test
images. The flowers are a folder, WHERE, of photos, such as TensorFlow's flower_photos; they are
64 x 64, all are trained on, and scores are against all. Features are those of the package's own
classifiers, in S = 5, 20 and 50 steps, each of which evaluates the network once. "published" and
"mended" are the Keras example, sampled as it samples; "ours" is what `presets.recommend` says for
the data and the minutes, sampled by the package's default, by a stochastic solver and as the
example is; "labels" is the same told the labels that the data have, at guidance 1, 2 and 3, where
more than 1 evaluates the network twice a step; "autoguidance_learned" is ours for four fifths of
the minutes, which then learns to guide itself. The other names each change one thing of ours, and
are sampled by the default, but for "paper_schedule", which is sampled as two rows of the paper's
table 1 are. Changes can be joined: "adamw+flips".

A recipe's steps are as many as fit into the minutes, at the time of a step that is measured first.
All are trained before any is scored, as only the training needs the machine to itself. The models
stay in the output folder and are not trained again. Beside FID, KID, precision and recall it tells
B, how much images differ in brightness as a share of how much the real ones do. Each result is
added to results.jsonl there, and comparison_DATA.png shows what each draws in 20 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_example
import numpy as np

import ddim_keras
from ddim_keras import plotting, presets
from ddim_keras.schedules import AngleSchedule
from ddim_keras.support import backend

TIMED_STEPS = 30
LEARNED_SHARE = 0.2  # of the minutes


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set to compare on.

    Attributes:
        image_size: side of the images, in pixels.
        extractor: whose features the scores are of.
        fit: how images are brought to size.
        is_folder: whether it is a folder, which has no test images: scores are against all of it.
    """

    image_size: int
    extractor: str
    fit: str = "crop"
    is_folder: bool = False

    def load(
        self,
        name: str,
        where: str | None,
        batch_size: int = 64,
        flip: bool = False,
        seed: int = 0,
        labels: bool = False,
    ) -> tuple[Any, Any]:
        """Return batches of the images to train on, and of those to score against; with their
        labels if asked for.
        """
        options = {"fit": self.fit, "seed": seed, "labels": labels}
        if not self.is_folder:
            return ddim_keras.data.load_dataset(
                name, self.image_size, batch_size, flip=flip, data_dir=where, **options
            )
        if where is None:
            raise SystemExit(f"--data {name} needs --data-dir, the folder of its photos")
        train, _ = ddim_keras.data.load_dataset(
            where, self.image_size, batch_size, flip=flip, **options
        )
        rest = ddim_keras.data.load_dataset(where, self.image_size, drop_remainder=False, **options)
        return train, rest[0].concatenate(rest[1])


DATA = {
    "fashion_mnist": Data(32, "fashion_mnist", fit="pad"),
    "cifar10": Data(32, "cifar10"),
    "flowers": Data(64, "cifar10", is_folder=True),
}


def images_of(dataset: Any) -> Any:
    """A data set's images alone."""
    return dataset.map(lambda images, labels: images) if has_labels(dataset) else dataset


def has_labels(dataset: Any) -> bool:
    return isinstance(dataset.element_spec, tuple)


def image_shape(dataset: Any) -> tuple[int, int, int]:
    return tuple(images_of(dataset).element_spec.shape[1:])


class Task(NamedTuple):
    """What all recipes are compared on: a data set, where it is, and the minutes of training."""

    name: str
    where: str | None
    minutes: float

    @property
    def data(self) -> Data:
        return DATA[self.name]

    def load(self, batch_size: int = 64, flip: bool = False, **options: Any) -> tuple[Any, Any]:
        return self.data.load(self.name, self.where, batch_size, flip, **options)

    def recommendation(self, images: Any) -> presets.Recommendation:
        """What the package recommends for the images, batches of them, and the minutes."""
        height, width, channels = image_shape(images)
        number = int(images.cardinality()) * int(images_of(images).element_spec.shape[0] or 64)
        return presets.recommend((height, width), channels, number, self.minutes)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to train, and how.

    Attributes:
        model: changes to the recommended model, arguments of `DiffusionModel`.
        training: changes to the recommended training, arguments of `presets.Training`.
        example: "published" for the Keras example as it is, "mended" for one whose EMA network
            starts equal to the network and whose decay warms up; None for ours.
        samplings: ways to sample, by name: arguments of `score`.
        labels: whether the model is told the images' labels.
        model_class: of our model.
        autoguidance: learned in the last fifth of the minutes, away from the model after a tenth of
            the steps of the others; None for none.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    example: str | None = None
    samplings: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=lambda: {"default": {}}
    )
    labels: bool = False
    model_class: type[ddim_keras.DiffusionModel] = ddim_keras.DiffusionModel
    autoguidance: float | None = None


@keras.saving.register_keras_serializable("quality")
class IndependentTimes(ddim_keras.DiffusionModel):
    """A model that draws each image's diffusion time by itself, not one in each part of [0, 1)."""

    def _stratified_uniform(self, batch_size: Any) -> Any:
        return keras.random.uniform(
            (batch_size, 1, 1, 1), dtype="float32", seed=self.seed_generator
        )


def changed(**changes: Any) -> Recipe:
    """Our recipe with changes to its model, or to its training where that has a setting of the
    name.
    """
    fields = {field.name for field in dataclasses.fields(presets.Training)}
    # Both have a "schedule": the model's is given as noise_schedule.
    model = {
        name.removeprefix("noise_"): value for name, value in changes.items() if name not in fields
    }
    return Recipe(
        model=model, training={name: value for name, value in changes.items() if name in fields}
    )


DDIM = {"ddim": {"sampler": "ddim"}}
# Two rows of the paper's table 1, with both spacings.
PAPER = {
    f"{name}, {spacing}": {"sampler": sampler, "spacing": spacing}
    for name, sampler in (("ddim", "ddim"), ("sigma-hat", "ddpm_large"))
    for spacing in ("linear", "quadratic")
}
STOCHASTIC = {"dpm_solver_2m_sde": {"sampler": "dpm_solver_2m_sde", "spacing": "karras"}}
# Each class as often as among the real images; guided, a step evaluates the network twice.
LABELS = {
    f"guidance {guidance:g}": {"labels": True, "guidance": guidance} for guidance in (1.0, 2.0, 3.0)
}
RECIPES = {
    "published": Recipe(example="published", samplings=DDIM),
    "mended": Recipe(example="mended", samplings=DDIM),
    "ours": Recipe(samplings={"default": {}, **STOCHASTIC, **DDIM}),
    "labels": Recipe(labels=True, samplings=LABELS),
    # Each changes one thing.
    "adamw": changed(optimizer="adamw"),
    "mean_absolute_error": changed(loss="mean_absolute_error"),
    "noise": changed(parameterization="noise"),
    "image": changed(parameterization="image"),
    "uniform_weighting": changed(loss_weighting="uniform"),
    "sigmoid": changed(loss_weighting="sigmoid"),
    "input_conditioning": changed(conditioning="input"),
    "batch_normalization": changed(normalization="batch"),
    "attention": changed(attention_levels=[1, 2]),
    "no_patches": changed(patch_size=1, widths=[24, 64, 96]),
    "wider": changed(widths=[96, 128, 192]),
    "narrower": changed(widths=[48, 64, 96]),
    "deeper": changed(block_depth=2),
    "three_levels_at_16": changed(widths=[64, 96, 128, 128]),
    "float32": changed(dtype="float32"),
    "batch_16": changed(batch_size=16),
    "batch_64": changed(batch_size=64),
    "learning_rate_1e-3": changed(learning_rate=1e-3),
    "learning_rate_2e-3": changed(learning_rate=2e-3),
    "learning_rate_8e-3": changed(learning_rate=8e-3),
    "constant_learning_rate": changed(schedule="constant"),
    "unclipped": changed(clip_norm=None),
    "no_warmup": changed(warmup=0.0),
    "ema_0.99": changed(ema_decay=0.99),
    "ema_0.999": changed(ema_decay=0.999),
    "flips": changed(flip=True),
    "cleaner_end_0.98": changed(noise_schedule=AngleSchedule(max_signal_rate=0.98)),
    "cleaner_end_0.995": changed(noise_schedule=AngleSchedule(max_signal_rate=0.995)),
    "noisier_end_0.005": changed(noise_schedule=AngleSchedule(min_signal_rate=0.005)),
    "noisier_end_0.0025": changed(noise_schedule=AngleSchedule(min_signal_rate=0.0025)),
    "shifted": changed(noise_schedule=AngleSchedule(shift=2.0)),
    "cosine_times": changed(noise_schedule="cosine_beta"),
    "log_snr_times": changed(noise_schedule="linear_log_snr"),
    "paper_schedule": dataclasses.replace(changed(noise_schedule="linear_beta"), samplings=PAPER),
    "autoguidance_learned": Recipe(autoguidance=2.0),
    "independent_times": Recipe(model_class=IndependentTimes),
}


def recipe_of(name: str) -> Recipe:
    """A recipe by its name, or several changes of ours joined by "+"."""
    names = name.split("+")
    if unknown := [part for part in names if part not in RECIPES]:
        raise argparse.ArgumentTypeError(
            f"no recipe {unknown}: expected some of {', '.join(RECIPES)}"
        )
    parts = [RECIPES[part] for part in names]
    if len(parts) == 1:
        return parts[0]
    if any(part.example for part in parts):
        raise argparse.ArgumentTypeError(f"{name}: only changes of ours can be joined")
    return Recipe(
        model={key: value for part in parts for key, value in part.model.items()},
        training={key: value for part in parts for key, value in part.training.items()},
        samplings=next((part.samplings for part in parts if part.labels), parts[-1].samplings),
        labels=any(part.labels for part in parts),
        autoguidance=next((part.autoguidance for part in parts if part.autoguidance), None),
        model_class=next(
            (part.model_class for part in parts if part.model_class != Recipe.model_class),
            Recipe.model_class,
        ),
    )


class StopInTime(keras.callbacks.Callback):
    """End a training that runs over its minutes."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.steps = seconds, 0

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if time.perf_counter() - self.start > self.seconds:
            self.model.stop_training = True


def training_of(recipe: Recipe, recommended: presets.Recommendation) -> presets.Training:
    base = presets.training("keras_example") if recipe.example else recommended.training
    return dataclasses.replace(base, **recipe.training)


def make(recipe: Recipe, images: Any, task: Task, seed: int, steps: int) -> keras.Model:
    """Return a compiled model that has seen nothing."""
    keras.utils.set_random_seed(seed)
    if recipe.example:
        return keras_example.make_example(images, mended=recipe.example == "mended")
    recommended = task.recommendation(images)
    height, width, channels = image_shape(images)
    own: dict[str, Any] = {"image_size": (height, width), "channels": channels, "seed": seed}
    if recipe.labels:
        own["class_names"] = images.class_names
    changes = {**own, "dtype": backend.fastest_precision(), **recipe.model}
    model = recipe.model_class.from_preset(
        recommended.preset, load_weights=False, **{**recommended.model, **changes}
    )
    model.normalizer.adapt(images_of(images))
    model.compile(**training_of(recipe, recommended).compile_arguments(steps))
    return model


def for_sampling(model: keras.Model, image_shape: tuple[int, ...]) -> ddim_keras.DiffusionModel:
    """Return a model of ours with the weights of the example's, which samples the same images, only
    sooner.
    """
    if isinstance(model, ddim_keras.DiffusionModel):
        return model
    ours = ddim_keras.DiffusionModel.from_preset(
        "keras_example", image_size=image_shape[0], channels=image_shape[2]
    )
    weights = model.ema_network.get_weights()
    # The example's first batch normalisation is of images joined with the embedding; ours has one
    # for each.
    means, variances = weights[2:4]
    channels = len(weights[1])
    weights[2:4] = [means[:channels], variances[:channels], means[channels:], variances[channels:]]
    ours.ema_network.set_weights(weights)
    ours.normalizer.mean.assign(np.ravel(model.normalizer.mean))
    ours.normalizer.variance.assign(np.ravel(model.normalizer.variance))
    return ours


class KeepEarly(keras.callbacks.Callback):
    """Keep the averaged weights as they are after some steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.steps:
            self.model.synchronize()
            self.weights = self.model.ema_network.get_weights()


class StepTimes(keras.callbacks.Callback):
    """Collect the seconds between the ends of steps."""

    def on_train_begin(self, logs=None):
        self.ends: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def seconds_per_step(model: keras.Model, images: Any) -> float:
    """Time single steps; the median of the quicker half, as whatever else runs only slows them."""
    times = StepTimes()
    model.fit(images.repeat(), epochs=1, steps_per_epoch=TIMED_STEPS, verbose=0, callbacks=[times])
    return float(np.median(sorted(np.diff(times.ends))[: TIMED_STEPS // 2]))


def divisible(name: str) -> bool:
    """Whether a core each may train a part of a batch: not where the batch is normalised whole."""
    recipe = recipe_of(name)
    return recipe.example is None and recipe.model.get("normalization") != "batch"


def train(name: str, task: Task, fixed_steps: int | None, seed: int, path: pathlib.Path) -> None:
    """Train a recipe, and keep the model that samples from it at `path`, with what it took in a
    .json beside it.
    """
    recipe = recipe_of(name)
    training = training_of(recipe, task.recommendation(task.load()[0]))
    images, _ = task.load(training.batch_size, training.flip, seed=seed, labels=recipe.labels)
    share = LEARNED_SHARE if recipe.autoguidance else 0.0
    budget = 60.0 * task.minutes * (1.0 - share)
    if fixed_steps is None:
        tried = make(recipe, images, task, 0, 1000)
        steps = max(1, int(budget / seconds_per_step(tried, images)))
    else:
        steps = max(1, round(fixed_steps * (1.0 - share)))
    model = make(recipe, images, task, seed, steps)
    stop = StopInTime(budget if fixed_steps is None else float("inf"))
    early = KeepEarly(max(1, steps // 10))
    callbacks = [stop, early] if recipe.autoguidance else [stop]
    start = time.perf_counter()
    model.fit(images.repeat(), epochs=1, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    seconds = time.perf_counter() - start
    facts = {
        "data": task.name,
        "recipe": name,
        "seed": seed,
        "parameters": model.network.count_params(),
        "steps": stop.steps,
        "batch_size": training.batch_size,
        "minutes": round(seconds / 60.0, 2),
    }
    if recipe.autoguidance:
        left = None if fixed_steps is None else max(1, fixed_steps - steps)
        seconds_left = 60.0 * task.minutes * share
        model, more = learned(model, early.weights, recipe, images, seconds_left, left)
        facts |= more | {"minutes": round(facts["minutes"] + more["learned_minutes"], 2)}
    print(f"trained {name}, seed {seed}: {stop.steps} steps in {facts['minutes']} min", flush=True)
    # The model last: where it is, all is.
    path.with_suffix(".json").write_text(json.dumps(facts))
    for_sampling(model, image_shape(images)).save(path)
    keras.backend.clear_session()


def learned(
    model: ddim_keras.DiffusionModel,
    early: list[np.ndarray],
    recipe: Recipe,
    images: Any,
    budget: float,
    fixed_steps: int | None,
) -> tuple[ddim_keras.DiffusionModel, dict[str, float]]:
    """Return what a model becomes that learns autoguidance for so many seconds, or steps, and what
    it took.
    """
    weaker = type(model).from_config(model.get_config())
    weaker.normalizer.set_weights(model.normalizer.get_weights())
    weaker.ema_network.set_weights(early)
    guidance = ddim_keras.Autoguidance(weaker, recipe.autoguidance)

    def student(steps: int, epochs: int = 0, **options: Any) -> ddim_keras.DiffusionModel:
        return ddim_keras.distill_guidance(
            model, images.repeat(), guidance, epochs=epochs, steps_per_epoch=steps, **options
        )

    steps = fixed_steps or max(1, int(budget / seconds_per_step(student(1000), images)))
    stop = StopInTime(budget if fixed_steps is None else float("inf"))
    start = time.perf_counter()
    guided = student(steps, epochs=1, verbose=0, callbacks=[stop])
    minutes = round((time.perf_counter() - start) / 60.0, 2)
    print(f"and learned for {stop.steps} steps", flush=True)
    return guided, {"learned_steps": stop.steps, "learned_minutes": minutes}


def score(
    path: pathlib.Path, task: Task, num_images: int, evaluations: list[int]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score a model that `train` made; return the figures, and a row of its images for each
    sampling.
    """
    result = json.loads(path.with_suffix(".json").read_text())
    recipe = recipe_of(result["recipe"])
    model = keras.models.load_model(path)
    _, real = task.load(labels=recipe.labels)
    result |= {"num_images": num_images, "scores": {}}
    rows = {}
    for name, sampling in recipe.samplings.items():
        of_sampling = result["scores"].setdefault(name, {})
        for number in evaluations:
            scores = model.score(
                real,
                num_images,
                number,
                seed=1,
                metrics=("fid", "kid", "precision_recall", Brightness(task.data.extractor)),
                extractor=task.data.extractor,
                **sampling,
            )
            of_sampling[str(number)] = {metric: round(value, 5) for metric, value in scores.items()}
        if recipe.labels:
            sampling = {**sampling, "labels": [label % model.num_classes for label in range(12)]}
        row = model.generate(12, 20, seed=1, verbose=0, **sampling)
        rows[f"{result['recipe']} {result['seed']}, {name}"] = row
    keras.backend.clear_session()
    return result, rows


class Brightness(ddim_keras.metrics.ImageMetric):
    """How much the generated images differ in brightness, as a share of how much the real ones do.

    A walk whose first step still holds something of an image makes all of middling brightness, and
    features of a classifier hardly see it.
    """

    def __init__(self, extractor: str):
        super().__init__(extractor, "brightness")  # of which it needs nothing
        self.reset_state()

    def reset_state(self):
        self.real, self.generated = [], []

    def extract(self, images):
        return np.mean(images, axis=(1, 2, 3))

    def update_features(self, real=None, generated=None, counted=None):
        for side, found in ((self.real, real), (self.generated, generated)):
            side += [] if found is None else list(found)

    def result(self):
        return float(np.std(self.generated) / np.std(self.real))


def describe(result: dict[str, Any]) -> str:
    lines = [
        f"{result['recipe']}, seed {result['seed']}: {result['parameters'] / 1e6:.2f} M, "
        f"{result['steps']} steps of "
        f"{result['batch_size']} in {result['minutes']:.1f} min; {result['num_images']} images"
    ]
    for name, by_number in result["scores"].items():
        figures = "  ".join(
            f"S={number}: FID {scores['fid']:6.3f} KID {scores['kid']:.4f} P "
            f"{scores['precision']:.2f} "
            f"R {scores['recall']:.2f} B {scores['brightness']:.2f}"
            for number, scores in by_number.items()
        )
        lines.append(f"  {name:18s} {figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(DATA), default="fashion_mnist", help="the images")
    parser.add_argument("--data-dir", help="where TFDS keeps its data; of flowers, their folder")
    parser.add_argument(
        "--recipes",
        nargs="+",
        type=lambda name: recipe_of(name) and name,
        default=["published", "mended", "ours"],
        metavar="NAME",
        help=f"names, or changes of ours joined as in adamw+flips: {', '.join(RECIPES)}",
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of training, for each recipe and seed"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="train for this many steps, however long they take, instead of minutes",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-images", type=int, default=10_000, help="generated for each score")
    parser.add_argument(
        "--evaluations",
        type=int,
        nargs="+",
        default=[5, 20, 50],
        help="S: of the network, for each image",
    )
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="leave the scores to a later run with the same --out",
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/quality"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if all(divisible(name) for name in arguments.recipes):
        ddim_keras.divide_batches_among_cores()
    task = Task(arguments.data, arguments.data_dir, arguments.minutes)
    length = f"{arguments.minutes:g}min" if arguments.steps is None else f"{arguments.steps}steps"
    paths = []
    for seed in arguments.seeds:
        for name in arguments.recipes:
            paths.append(arguments.out / f"{task.name}_{name}_{length}_seed{seed}.keras")
            if not paths[-1].exists():
                train(name, task, arguments.steps, seed, paths[-1])
    if arguments.train_only:
        return
    rows: dict[str, np.ndarray] = {}
    for path in paths:
        result, own_rows = score(path, task, arguments.num_images, arguments.evaluations)
        print(describe(result), flush=True)
        with open(arguments.out / "results.jsonl", "a") as file:
            file.write(json.dumps(result) + "\n")
        rows |= own_rows
    figure = plotting.plot_rows(np.stack(list(rows.values())), list(rows))
    plotting.save_figure(arguments.out / f"comparison_{task.name}.png", figure)


if __name__ == "__main__":
    main()

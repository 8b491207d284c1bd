"""Sampling written as programs of other runtimes, which need nothing of this library: TensorFlow's
SavedModel, ONNX, OpenVINO, LiteRT.

Keras's own exporters write them. ONNX gets its loop here: the converter behind Keras's exporter
makes loops that ONNX Runtime refuses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ddim_keras.sampling import portable
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import backend, cores, files

SIGNATURES = ("generate", "denoise")
_ONNX_OPSET = 17
# What is fixed in the program of a walk.
_WALK_OPTIONS = (
    "diffusion_steps",
    "sampler",
    "eta",
    "spacing",
    "schedule",
    "clipping",
    "guidance",
)


class _Format(NamedTuple):
    """How a format's programs are called, and what writes them.

    Attributes:
        suffix: of the file; "" for a folder.
        needs: modules that the exporter imports, beside TensorFlow.
        extra: of this package, which installs them.
    """

    suffix: str
    needs: Sequence[str] = ()
    extra: str = ""


FORMATS = {
    "tf_saved_model": _Format(""),
    "onnx": _Format(".onnx", ("onnx", "tf2onnx"), "onnx"),
    "openvino": _Format(".xml", ("openvino",), "openvino"),
    "litert": _Format(".tflite"),
}


def write(
    engine: Engine,
    network: keras.Model,
    filepath: str | os.PathLike,
    format: str,
    signature: str | None,
    **options: Any,
) -> None:
    """Write a walk, a denoiser or a network; the first two whole or not at all.

    Args:
        engine: of the model.
        network: the one that its walks use.
        filepath, format, signature, **options: as for `DiffusionModel.export`.

    Raises:
        ValueError, ImportError: as for `DiffusionModel.export`.
    """
    filepath = files.expanded(filepath)
    if signature is None:
        if of_walk := sorted(set(options) & {*_WALK_OPTIONS, "labels", "condition"}):
            raise ValueError(
                f"{', '.join(of_walk)} belong to a walk, but without a signature the network alone "
                'is exported: give signature="generate"'
            )
        if format == "onnx":
            options.setdefault("input_signature", input_signature(network))
        network.export(os.fspath(filepath), format=format, **options)
        return
    path = check(filepath, format, signature, options.pop("overwrite", False))
    if inputs := sorted(set(options) & {"labels", "condition", "initial_noise", "seed"}):
        raise ValueError(
            f"{', '.join(inputs)} cannot be fixed in a program: labels, condition and "
            "initial_noise are what it takes each time it runs"
        )
    if signature == "generate" and (unknown := sorted(set(options) - set(_WALK_OPTIONS))):
        raise ValueError(
            f"unknown options of a walk {unknown}: expected some of {sorted(_WALK_OPTIONS)}"
        )
    with cores.whole_batches():
        network = portable.in_float32(network)
        if signature == "denoise":
            unfit = sorted(set(options) - {"clipping", "guidance"})
            if unfit:
                raise ValueError(
                    f"{', '.join(unfit)} belong to a walk: export "
                    'signature="generate", or leave them out'
                )
            found = portable.portable_denoiser(engine, network, **options)
        else:
            found = portable.portable_walk(engine, network, **options)
        _WRITERS[format](found, path, signature == "generate")


def check(
    filepath: str | os.PathLike, format: str, signature: str, overwrite: bool = False
) -> pathlib.Path:
    """Find out before any work is done whether a program can be written.

    Raises:
        ValueError: an unknown format or signature, a wrong suffix, something that stands there, or
            a backend that cannot write this format.
        ImportError: what writes the format is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}")
    if signature not in SIGNATURES:
        raise ValueError(
            f"signature must be one of {list(SIGNATURES)}, or None for the network alone, got "
            f"{signature!r}"
        )
    path, kind = files.expanded(filepath), FORMATS[format]
    suffixes = [each.suffix for each in FORMATS.values() if each.suffix]
    if path.suffix != kind.suffix and (kind.suffix or path.suffix in suffixes):
        wanted = f"end in {kind.suffix}" if kind.suffix else "be a folder"
        raise ValueError(f"a program in format {format!r} must {wanted}, got {str(path)!r}")
    for part in _files_of(path, format):
        if not (overwrite or files.is_free(part)):
            raise ValueError(f"{part} exists: move it away, or export to another path")
    files.check_folder(path.parent)
    if format != "tf_saved_model" and not backend.MAKES_GRAPHS:
        raise ValueError(
            f"the format {format!r} is written under TensorFlow, but Keras runs on "
            f"{backend.BACKEND}: save the model, and export the file in a process with "
            "KERAS_BACKEND=tensorflow"
        )
    missing = [name for name in ("tensorflow", *kind.needs) if not _is_installed(name)]
    if missing:
        extra = f"'ddim_keras[{kind.extra}]'" if kind.extra else "tensorflow"
        raise ImportError(
            f"the format {format!r} needs {' and '.join(missing)}, not installed here: pip install "
            f"{extra}"
        )
    return path


def input_signature(model: keras.Model) -> list[Any]:
    """Return what Keras's exporters are told of a model's inputs; without it, they refuse some
    models that were never called.
    """

    def spec(tensor: keras.KerasTensor) -> keras.InputSpec:
        shape = (None, *tensor.shape[1:])
        return keras.InputSpec(shape=shape, dtype=tensor.dtype, name=tensor.name)

    return [keras.tree.map_structure(spec, model.input)]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _files_of(path: pathlib.Path, format: str) -> list[pathlib.Path]:
    return [path, path.with_suffix(".bin")] if format == "openvino" else [path]


def _program(found: portable.Portable, is_walk: bool) -> keras.Model:
    return portable.walk_model(found) if is_walk else portable.denoiser_model(found)


def _by_keras(
    format: str, **options: Any
) -> Callable[[portable.Portable, pathlib.Path, bool], None]:
    def write_program(found: portable.Portable, path: pathlib.Path, is_walk: bool) -> None:
        with files.written_beside(path) as temporary:
            _program(found, is_walk).export(str(temporary), format=format, verbose=False, **options)

    return write_program


def _write_openvino(found: portable.Portable, path: pathlib.Path, is_walk: bool) -> None:
    """The program and its weights, in two files, told by one name; the weights are there first."""
    with files.written_beside(path) as temporary:
        with files.written_beside(path.with_suffix(".bin")) as weights:
            program = weights.with_suffix(".xml")
            _program(found, is_walk).export(str(program), format="openvino", verbose=False)
            os.replace(program, temporary)


def _write_onnx(found: portable.Portable, path: pathlib.Path, is_walk: bool) -> None:
    """The denoiser by Keras; or one evaluation by Keras, within a loop."""
    import onnx

    with tempfile.TemporaryDirectory() as folder, files.written_beside(path) as temporary:
        part = str(pathlib.Path(folder, "part.onnx"))
        model = portable.evaluation_model(found) if is_walk else portable.denoiser_model(found)
        signature = input_signature(model)
        with _quiet_converter():
            model.export(
                part,
                format="onnx",
                verbose=False,
                input_signature=signature,
                opset_version=_ONNX_OPSET,
            )
        program = onnx.load(part)
        onnx.save(_looped(program, found) if is_walk else program, str(temporary))


@contextlib.contextmanager
def _quiet_converter() -> Iterator[None]:
    """Within, tf2onnx says nothing of shapes that it does not know, which do not matter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _looped(step: Any, found: portable.Portable) -> Any:
    """An ONNX program of a whole walk, around that of one evaluation."""
    from onnx import TensorProto, helper

    memory = portable.memory_names()
    mean, deviation = found.engine.normalizer.scales()
    shape = ["batch", *found.engine.image_shape]
    noise, images = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in (portable.NOISE, portable.IMAGES)
    )
    of_a_step = (portable.NOISY_IMAGES, *memory, portable.ROW)
    told = [each for each in step.graph.input if each.name not in of_a_step]
    starting, first, of_the_start = _started(found)
    begin = ["walk/evaluations", "", first, *["walk/nothing" for _ in memory]]
    ends = ["walk/end", *(f"walk/{name}" for name in memory)]
    make = helper.make_node
    nodes = [
        make("Mul", [portable.NOISE, "walk/zero"], ["walk/nothing"]),
        *starting,
        make("Loop", begin, ends, body=_body(step.graph, found.rows)),
        make("Mul", ["walk/end", "walk/deviation"], ["walk/scaled"]),
        make("Add", ["walk/scaled", "walk/mean"], ["walk/moved"]),
        make("Clip", ["walk/moved", "walk/zero", "walk/one"], [portable.IMAGES]),
    ]
    constants = [
        _constant("evaluations", len(found.rows), "int64"),
        _constant("zero", 0.0, "float32"),
        _constant("one", 1.0, "float32"),
        _constant("mean", mean, "float32"),
        _constant("deviation", deviation, "float32"),
        *of_the_start,
    ]
    graph = helper.make_graph(nodes, "walk", [noise, *told], [images], initializer=constants)
    return helper.make_model(
        graph,
        opset_imports=step.opset_import,
        ir_version=step.ir_version,
        producer_name="ddim_keras",
    )


def _started(found: portable.Portable) -> tuple[list, str, list]:
    """Return the nodes that carry noise to where the walk starts, what the last of them gives, and
    their constants; see `GaussianStart`.
    """
    from onnx import helper

    start = found.planned and found.planned.start
    if start is None:
        return [], portable.NOISE, []
    (across, along), moved = start.affine()
    make = helper.make_node
    nodes = [
        make("Reshape", [portable.NOISE, "walk/flat_shape"], ["walk/flat"]),
        make("MatMul", ["walk/flat", "walk/axes_down"], ["walk/along"]),
        make("Mul", ["walk/along", "walk/along_scales"], ["walk/along_scaled"]),
        make("MatMul", ["walk/along_scaled", "walk/axes"], ["walk/carried_along"]),
        make("Mul", ["walk/flat", "walk/across_scale"], ["walk/carried_across"]),
        make("Sum", ["walk/carried_along", "walk/carried_across", "walk/lifted"], ["walk/carried"]),
        make("Reshape", ["walk/carried", "walk/shape"], ["walk/started"]),
    ]
    constants = [
        _constant("flat_shape", [-1, start.mean.size], "int64"),
        _constant("shape", [-1, *found.engine.image_shape], "int64"),
        _constant("axes", start.axes, "float32"),
        _constant("axes_down", start.axes.T, "float32"),
        _constant("along_scales", along, "float32"),
        _constant("across_scale", across, "float32"),
        _constant("lifted", moved, "float32"),
    ]
    return nodes, "walk/started", constants


def _body(step: Any, rows: np.ndarray) -> Any:
    """What the loop does: the nodes of one evaluation, shown their row of the table."""
    from onnx import TensorProto, helper

    states = [portable.NOISY_IMAGES, *portable.memory_names()]
    given = {each.name: each for each in step.input}
    made = {each.name: each for each in step.output}
    index, goes_on, still = (
        helper.make_tensor_value_info(f"walk/{name}", kind, [])
        for name, kind in (
            ("index", TensorProto.INT64),
            ("goes_on", TensorProto.BOOL),
            ("still_goes_on", TensorProto.BOOL),
        )
    )
    nodes = [
        helper.make_node("Unsqueeze", ["walk/index", "walk/axis"], ["walk/indices"]),
        helper.make_node("Gather", ["walk/table", "walk/indices"], [portable.ROW], axis=0),
        helper.make_node("Identity", ["walk/goes_on"], ["walk/still_goes_on"]),
        *step.node,
    ]
    constants = [_constant("table", rows, "float32"), _constant("axis", [0], "int64")]
    return helper.make_graph(
        nodes,
        "evaluation",
        [index, goes_on, *(given[name] for name in states)],
        [still, *(made[portable.following(name)] for name in states)],
        initializer=[*step.initializer, *constants],
    )


def _constant(name: str, value: Any, dtype: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value, dtype), f"walk/{name}")


_WRITERS = {
    "tf_saved_model": _by_keras("tf_saved_model", **backend.options_of_a_saved_model()),
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "litert": _by_keras("litert"),
}

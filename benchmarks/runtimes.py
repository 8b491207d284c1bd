"""The same walk in TensorFlow and in the runtimes of exported programs, on a processor.

    python benchmarks/runtimes.py --images 16 --steps 20 --turns 7

Each makes the same images of the same noises in every turn, one after another, so that what else
the machine does concerns all; medians are shown, the time that all cores together worked, and how
far the images are from TensorFlow's. Under `taskset -c 0` the latter tells the work alone, whatever
else the machine does.
Needs the extras `[onnx]`, `[openvino]` and `[litert]`; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import ddim_keras
from ddim_keras.presets import programs
from ddim_keras.support.cores import available_cores


def onnx(path: pathlib.Path, model, **walk) -> dict[str, Callable]:
    import onnxruntime

    model.export(path / "walk.onnx", "onnx", "generate", **walk)
    session = onnxruntime.InferenceSession(path / "walk.onnx")
    return {
        "ONNX Runtime, float32": lambda noise: session.run(["images"], {"initial_noise": noise})[0]
    }


def openvino(path: pathlib.Path, model, **walk) -> dict[str, Callable]:
    import openvino

    model.export(path / "walk.xml", "openvino", "generate", **walk)

    def compiled(precision: str) -> Callable:
        hint = {"INFERENCE_PRECISION_HINT": precision}
        program = openvino.compile_model(path / "walk.xml", "CPU", hint)
        return lambda noise: program({"initial_noise": noise})["images"]

    return {"OpenVINO, float32": compiled("f32"), "OpenVINO, bfloat16": compiled("bf16")}


def litert(path: pathlib.Path, model, **walk) -> dict[str, Callable]:
    from ai_edge_litert.interpreter import Interpreter

    model.export(path / "walk.tflite", "litert", "generate", **walk)
    interpreter = Interpreter(str(path / "walk.tflite"), num_threads=available_cores())
    run = interpreter.get_signature_runner()
    return {"LiteRT, float32": lambda noise: run(initial_noise=noise)["images"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion_mnist_32")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument(
        "--whole", action="store_true", help="TensorFlow divides no batches among the cores"
    )
    arguments = parser.parse_args()
    if not arguments.whole:
        ddim_keras.divide_batches_among_cores()
    model = ddim_keras.DiffusionModel.from_preset(arguments.model)
    shape = (arguments.images, *model.image_shape)
    noise = np.random.default_rng(0).normal(size=shape).astype("float32")
    walk = {"diffusion_steps": arguments.steps}

    def generate(noise: np.ndarray) -> np.ndarray:
        return model.generate(len(noise), initial_noise=noise, verbose=0, **walk)

    runs: dict[str, Callable] = {"TensorFlow, float32": generate}
    half = ddim_keras.DiffusionModel.from_preset(arguments.model, dtype="mixed_bfloat16")
    runs["TensorFlow, bfloat16"] = lambda noise: half.generate(
        len(noise), initial_noise=noise, verbose=0, **walk
    )
    with tempfile.TemporaryDirectory() as folder:
        for format, add in (("onnx", onnx), ("openvino", openvino), ("litert", litert)):
            try:
                programs.check(
                    pathlib.Path(folder, "walk" + programs.FORMATS[format].suffix),
                    format,
                    "generate",
                )
                runs |= add(pathlib.Path(folder), model, **walk)
            except ImportError as error:
                print(f"{format} is left out: {error}")
        made = {name: run(noise) for name, run in runs.items()}  # compiled now
        times: dict[str, list[float]] = {name: [] for name in runs}
        work: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.turns):
            for name, run in runs.items():
                start, worked = time.perf_counter(), time.process_time()
                run(noise)
                times[name].append(time.perf_counter() - start)
                work[name].append(time.process_time() - worked)
    first = statistics.median(times["TensorFlow, float32"])
    print(f"{arguments.images} images, {arguments.steps} steps, {available_cores()} cores")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        error = np.abs(made[name] - made["TensorFlow, float32"]).max()
        print(
            f"{name:24s} {median:7.3f} s  (least {min(seconds):.3f})  {first / median:5.2f}x  "
            f"of all cores {statistics.median(work[name]):7.3f} s  largest difference {error:.1e}"
        )


if __name__ == "__main__":
    main()

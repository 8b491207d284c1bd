"""Time this library's DDPM network on TensorFlow against diffusers in PyTorch, on the same weights.

Each contestant has a process of its own, which waits while another works; a row's figures are taken
in turns. A ratio is the median of the turns' ratios, so that whatever else the machine does meets
all alike; beside the seconds on the clock it is also said of the seconds of processor time, which
other programs disturb less. Sampling is 20 steps of DDIM; training is a step of Adam on predicted
noises with the moving average of the weights. Needs the extra `[parity]`:

    python benchmarks/peers.py --widths 64 128 --precisions float32 bfloat16
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

CONTESTANTS = ("ours", "eager", "compile")
SIZE = 32
# Steps of DDIM, and of training of which the mean is taken, in a turn.
STEPS = int(os.environ.get("PEERS_STEPS", 20))
TRAINED = int(os.environ.get("PEERS_TRAINED", 4))


def write_weights(folder: str, width: int) -> None:
    """Write the CIFAR-10 network at a width, with random weights, as diffusers' folder."""
    import numpy as np

    from ddim_keras import DiffusionModel, networks

    widths = (width, 2 * width, 2 * width, 2 * width)
    network = networks.ddpm_unet((SIZE, SIZE, 3), widths)
    draw = np.random.default_rng(0)
    network.set_weights(
        [part + 0.02 * draw.normal(size=part.shape) for part in network.get_weights()]
    )
    model = DiffusionModel(SIZE, network=network, schedule="linear_beta", pixels="symmetric")
    model.save_to_diffusers(folder)


def ours(folder: str, task: str, batch: int, precision: str) -> Callable[[], None]:
    """What this library does in one turn."""
    import keras
    import numpy as np

    from ddim_keras import DiffusionModel, divide_batches_among_cores

    if batch > 1:
        divide_batches_among_cores()
    dtype = "float32" if precision == "float32" else "mixed_bfloat16"
    model = DiffusionModel.from_diffusers(folder, dtype=dtype, seed=0)
    if task == "sampling":
        return lambda: model.generate(batch, STEPS, batch_size=batch, seed=0, verbose=0)
    model.compile(optimizer=keras.optimizers.Adam(2e-4), loss="mean_squared_error")
    images = np.random.default_rng(0).uniform(size=(TRAINED * batch, SIZE, SIZE, 3))
    images = images.astype("float32")
    return lambda: model.fit(images, batch_size=batch, shuffle=False, verbose=0)


def theirs(
    folder: str, task: str, batch: int, precision: str, compiled: bool
) -> Callable[[], None]:
    """What diffusers does in one turn, channels-last as PyTorch is quickest."""
    import torch
    from diffusers import DDIMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = precision == "bfloat16"
    network = UNet2DModel.from_pretrained(f"{folder}/unet").to(device)
    network = network.to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler.from_pretrained(f"{folder}/scheduler")
    shape = (batch, 3, SIZE, SIZE)

    def synchronized() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if task == "sampling":
        network = network.to(torch.bfloat16 if half else torch.float32).eval()
        called = torch.compile(network) if compiled else network
        scheduler.set_timesteps(STEPS)

        @torch.inference_mode()
        def sample() -> None:
            x = torch.randn(shape, device=device, dtype=network.dtype)
            x = x.to(memory_format=torch.channels_last)
            for moment in scheduler.timesteps:
                x = scheduler.step(called(x, moment).sample, moment, x).prev_sample
            (x / 2 + 0.5).clamp(0, 1).float().cpu().numpy()
            synchronized()

        return sample
    network.train()
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), 2e-4)
    average = EMAModel(network.parameters(), decay=0.9999)
    images = torch.rand(shape, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        noises = torch.randn_like(images)
        times = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(2 * images - 1, noises, times)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            predicted = called(noisy, times).sample
        torch.nn.functional.mse_loss(predicted.float(), noises).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    def train() -> None:
        for _ in range(TRAINED):
            step()
        synchronized()

    return train


def work(contestant: str, folder: str, precision: str) -> None:
    """Do what each line of the input says, and answer it: "TASK BATCH" prepares a task, "turn"
    takes a turn and says its seconds, "peak" says what memory the task has needed.
    """
    task, turn = "", None
    for line in sys.stdin:
        said = line.split()
        if said == ["turn"] and turn is not None:
            begin = time.perf_counter(), time.process_time()
            turn()
            taken = time.perf_counter() - begin[0], time.process_time() - begin[1]
            each = TRAINED if task == "training" else 1
            answer: dict = {"seconds": [part / each for part in taken]}
        elif said == ["peak"]:
            answer = {"peak_mib": peak_memory()}
        else:
            turn = None
            gc.collect()
            forget_peak_memory()
            task, batch = said[0], int(said[1])
            if contestant == "ours":
                turn = ours(folder, task, batch, precision)
            else:
                turn = theirs(folder, task, batch, precision, contestant == "compile")
            turn()
            turn()
            answer = {"ready": True}
        print(json.dumps({"answer": answer}), flush=True)


def forget_peak_memory() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # no Linux, or not allowed: then it is the peak of all tasks so far
        pass


def peak_memory() -> float:
    """MiB since `forget_peak_memory`."""
    try:
        with open("/proc/self/status") as file:
            found = [line.split() for line in file if line.startswith("VmHWM:")]
        return int(found[0][1]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """A contestant in a process of its own."""

    def __init__(self, name: str, folder: str, precision: str):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, folder, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"KERAS_BACKEND": "tensorflow", **os.environ},
        )

    def ask(self, line: str) -> dict:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith('{"answer"'):  # libraries write other things
                return json.loads(answer)["answer"]
        raise RuntimeError(f"a contestant failed: {' '.join(map(str, self.process.args))}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def row(workers: dict[str, Worker], task: str, batch: int, turns: int) -> dict:
    """Medians of seconds and memory of each contestant, and how many times ours each needs."""
    for worker in workers.values():
        worker.ask(f"{task} {batch}")  # one after another: none compiles in another's time
    seconds: dict[str, list[list[float]]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, worker in workers.items():
            seconds[name].append(worker.ask("turn")["seconds"])
    result = {}
    for name, worker in workers.items():
        clock, processor = (statistics.median(part) for part in zip(*seconds[name]))
        memory = round(worker.ask("peak")["peak_mib"])
        result[name] = {"seconds": clock, "processor": processor, "peak_mib": memory}
        for kind, index in (("seconds", 0), ("processor", 1)):
            pairs = zip(seconds[name], seconds.get("ours", seconds[name]))
            ratios = [one[index] / own[index] for one, own in pairs]
            result[name][f"{kind}_of_ours"] = statistics.median(ratios)
    return result


def described(found: dict) -> tuple[str, list[float]]:
    """A row in words, and the ratios of the best of PyTorch's to ours."""
    others = [part for name, part in found.items() if name != "ours"]
    ratios = [
        min((part[f"{kind}_of_ours"] for part in others), default=float("nan"))
        for kind in ("seconds", "processor")
    ]
    each = "  ".join(
        f"{name} {part['seconds']:.3f} {part['processor']:.3f} {part['peak_mib']}"
        for name, part in found.items()
    )
    return f"{each} | {' '.join(f'{ratio:.2f}' for ratio in ratios)}", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sampling", type=int, nargs="*", default=[1, 16, 64], metavar="BATCH")
    parser.add_argument("--training", type=int, nargs="*", default=[16], metavar="BATCH")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, help="of DDIM in a turn, where 20 last too long")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--trained", type=int, help="steps of training in a turn, instead of 4")
    parser.add_argument(
        "--threads", type=int, help="of each contestant; on a machine with other work, 1"
    )
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(*arguments.worker)
    # The workers read these.
    if arguments.steps:
        os.environ["PEERS_STEPS"] = str(arguments.steps)
    if arguments.trained:
        os.environ["PEERS_TRAINED"] = str(arguments.trained)
    if arguments.threads:
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(arguments.threads)
    tasks = [("sampling", batch) for batch in arguments.sampling]
    tasks += [("training", batch) for batch in arguments.training]
    rows = []
    print("width precision task batch | seconds, of the processor, and peak MiB of each | best of")
    print("PyTorch / ours, of the processor")
    with tempfile.TemporaryDirectory() as folder:
        for width, precision in itertools.product(arguments.widths, arguments.precisions):
            path = f"{folder}/{width}"
            if not os.path.exists(path):
                write_weights(path, width)
            for task, batch in tasks:
                workers = {name: Worker(name, path, precision) for name in arguments.contestants}
                found = row(workers, task, batch, arguments.turns)
                said, ratios = described(found)
                print(f"{width} {precision} {task} {batch} | {said}", flush=True)
                rows.append({"width": width, "precision": precision, "task": task, "batch": batch})
                rows[-1] |= {"ratio": ratios[0], "ratio_of_processor": ratios[1], **found}
                if arguments.json:
                    with open(arguments.json, "w") as file:
                        json.dump(rows, file, indent=2)
                for worker in workers.values():
                    worker.end()


if __name__ == "__main__":
    main()

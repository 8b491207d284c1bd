"""Measure start-up time and peak memory, each in a process of its own.

python benchmarks/footprint.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

MODEL = "ddim_keras.DiffusionModel(64)"
IMPORT = (
    "import time; import keras; start = time.perf_counter(); import ddim_keras; "
    "print(time.perf_counter() - start)"
)
START_UP = """
import time; start = time.perf_counter()
import ddim_keras
images = ddim_keras.load_model({path!r}).generate(1, 20)
print(time.perf_counter() - start)
"""
PRESET = """
import time; start = time.perf_counter()
from ddim_keras import DiffusionModel
images = DiffusionModel.from_preset("fashion_mnist_32").generate(16, verbose=0)
print(time.perf_counter() - start)
"""
PEAK = """
import resource, ddim_keras
images = ddim_keras.load_model({path!r}).generate({number}, 2, verbose=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

SCORING = """
import resource, numpy as np
from ddim_keras import metrics
draws = np.random.default_rng(0)
scored = [metrics.FID("fashion_mnist"), metrics.KID("fashion_mnist")]
for _ in range({number} // 100):
    real, generated = draws.uniform(size=(2, 100, 28, 28, 1)).astype("float32")
    for metric in scored:
        metric.update_state(real, generated)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run(code: str) -> float:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    if result.returncode:
        sys.exit(result.stderr)
    return float(result.stdout.split()[-1])


def main() -> None:
    imports = statistics.median(run(IMPORT) for _ in range(5))
    print(f"import ddim_keras, beyond import keras: {imports:.3f} s (median of 5)")
    preset = statistics.median(run(PRESET) for _ in range(5))
    print(
        f"import to 16 images of the preset fashion_mnist_32, 20 steps: {preset:.1f} s (median of "
        "5)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        run(f"import ddim_keras; {MODEL}.save({path!r}); print(0)")
        startup = statistics.median(run(START_UP.format(path=path)) for _ in range(5))
        print(
            f"import to first image, saved 64 x 64 model, 20 steps: {startup:.1f} s (median of 5)"
        )
        peaks = {
            number: [run(PEAK.format(path=path, number=number)) for _ in range(5)]
            for number in (64, 2000)
        }
        few, many = (statistics.median(values) for values in peaks.values())
        print(
            f"peak memory: generate(64) {few:.0f} MiB, generate(2000) {many:.0f} MiB, ratio "
            f"{many / few:.2f}"
        )
        print(
            f"  (medians of 5; of 2000 from {min(peaks[2000]):.0f} to {max(peaks[2000]):.0f} MiB)"
        )
    few, many = (run(SCORING.format(number=number)) for number in (2000, 50_000))
    print(
        f"peak memory of FID and KID: 2,000 images {few:.0f} MiB, 50,000 {many:.0f} MiB, ratio "
        f"{many / few:.2f}"
    )


if __name__ == "__main__":
    main()

"""Starting TensorFlow: without the lines that it writes at every start, whatever its settings say,
and with a part of each batch on each core.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import re
import sys
import tempfile

from ddim_keras.support.importing import without_collections

# Information and warnings of its C++ part, and what it says of a CUDA that is not there.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IW] |To enable "
    rb"the following instructions"
    rb"|E\d{4} .*(cuInit|cuda_platform|cudart_stub|Unable to register cu|computation_placer)"
)
# Tracing a graph for the parts takes longer than a few images do.
_FEWEST_IMAGES = 64


def divide_batches(num_images: int = _FEWEST_IMAGES) -> None:
    """Have TensorFlow work on a part of each batch on each core, where there is enough to do.

    To be called before anything is computed; afterwards it changes nothing.
    """
    if num_images >= _FEWEST_IMAGES:
        from ddim_keras.support import cores

        with contextlib.suppress(RuntimeError):
            cores.divide_batches_among_cores()


def quiet_start() -> None:
    """Import Keras and wake its backend, keeping back what is written to standard error meanwhile
    but for what matters.

    Called by the command before it runs; a help is shown without it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "keras" in sys.modules:
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with without_collections():
                importlib.import_module(
                    "ddim_keras.support.backend"
                ).on_accelerator()  # finds the devices
                # Under JAX, too, it comes with the data, and with Keras's saving.
                if importlib.util.find_spec("tensorflow") is not None:
                    importlib.import_module("tensorflow").config.list_physical_devices()
            gc.freeze()  # what is imported stays: it is not looked through for garbage again
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if line.strip() and not _CHATTER.match(line):
                    os.write(2, line)

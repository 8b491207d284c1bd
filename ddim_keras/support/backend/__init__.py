"""The only code that asks which Keras backend runs, beside `support/cores.py`: the gradient step,
compiling a function, a few kernels, the devices.

Everything else is written once in `keras.ops` and `keras.random`.
"""

from ddim_keras.support.backend.compiling import (
    compile_function,
    compile_gradient,
    has_no_value,
    in_graph,
    of_each,
    traced_once,
    value_and_slope,
    values_of,
    values_used,
    weights_cast_once,
)
from ddim_keras.support.backend.devices import (
    device_names,
    devices_in_scope,
    devices_of_a_batch,
    devices_of_walks,
    replica,
    scope_on,
    sum_over_replicas,
)
from ddim_keras.support.backend.kernels import (
    attention_policy,
    for_attention,
    fused_batch_normalization,
    random_numbers_from,
    resized_bilinearly,
    swish,
)
from ddim_keras.support.backend.processes import (
    is_of_a_lost_process,
    join_processes,
    largest_of_processes,
    own_part,
    process,
    reason_of,
)
from ddim_keras.support.backend.steps import (
    keeping_state,
    named_state,
    test_step,
    train_step,
)
from ddim_keras.support.backend.which import (
    BACKEND,
    BACKEND_HOLDS_WEIGHTS,
    MAKES_GRAPHS,
    SUPPORTED_BACKENDS,
    fastest_precision,
    is_tensorflow_on_processor,
    on_accelerator,
    options_of_a_saved_model,
)

__all__ = [
    "BACKEND",
    "BACKEND_HOLDS_WEIGHTS",
    "MAKES_GRAPHS",
    "SUPPORTED_BACKENDS",
    "attention_policy",
    "compile_function",
    "compile_gradient",
    "device_names",
    "devices_in_scope",
    "devices_of_a_batch",
    "devices_of_walks",
    "fastest_precision",
    "for_attention",
    "fused_batch_normalization",
    "has_no_value",
    "in_graph",
    "is_of_a_lost_process",
    "is_tensorflow_on_processor",
    "join_processes",
    "keeping_state",
    "largest_of_processes",
    "named_state",
    "of_each",
    "on_accelerator",
    "options_of_a_saved_model",
    "own_part",
    "process",
    "random_numbers_from",
    "reason_of",
    "replica",
    "resized_bilinearly",
    "scope_on",
    "sum_over_replicas",
    "swish",
    "test_step",
    "traced_once",
    "train_step",
    "value_and_slope",
    "values_of",
    "values_used",
    "weights_cast_once",
]

"""Good images in few network evaluations: which sampler, and what a budget buys."""

import time

import numpy as np

from ddim_keras import DiffusionModel, plotting


def main(num_images=8, budgets=(4, 6, 10, 20), out="outputs/examples/few_steps.png"):
    model = DiffusionModel.from_preset("fashion_mnist_32")
    samplers = {
        "the default": {},  # UniPC over Karras's noise levels
        "DDIM": {"sampler": "ddim"},
        "2M SDE": {"sampler": "dpm_solver_2m_sde", "spacing": "karras"},
    }
    rows = {}
    for name, options in samplers.items():
        for budget in budgets:
            start = time.perf_counter()
            # One seed is one initial noise; all samplers share one compiled loop.
            images = model.generate(
                num_images, network_evaluations=budget, seed=3, **options
            )
            print(f"{name}, {budget} evaluations: {time.perf_counter() - start:.2f} s")
            rows[f"{name}, {budget}"] = images
    plotting.save_figure(out, plotting.plot_rows(np.stack(list(rows.values())), list(rows)))
    return rows


if __name__ == "__main__":
    main()

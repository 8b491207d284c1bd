"""Callbacks for `DiffusionModel.fit`."""

from __future__ import annotations

from typing import Any

import keras


class TrainingProgress(keras.callbacks.Callback):
    """One progress bar for the whole training: steps, losses and the time left until the last epoch ends.

    Keras's own bar starts anew each epoch and shows only that epoch's time. Use it with `fit(..., verbose=0)`.

    Raises:
        ValueError: when training starts on data of unknown length.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.params.get("steps"):
            raise ValueError(
                "TrainingProgress needs data of known length: give fit steps_per_epoch, or use its own bar"
            )
        self._steps = self.params["steps"]
        self._bar = keras.utils.Progbar(
            self._steps * self.params["epochs"], stateful_metrics=[metric.name for metric in self.model.metrics]
        )
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = self._epoch * self._steps + batch + 1
        if done < self._bar.target:  # the last update belongs to on_train_end, which ends the line
            self._bar.update(done, list((logs or {}).items()))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        shown = {name: value for name, value in (logs or {}).items() if not name.startswith("val_")}
        self._bar.update(self._bar.target, list(shown.items()), finalize=True)

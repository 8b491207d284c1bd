"""What a request may ask for, and when it is turned away."""

from __future__ import annotations

import dataclasses

from ddim_keras.support.arguments import positive_int


class TurnedAway(Exception):
    """A request that was not worked on, or not to its end, though it may have been right."""


class Busy(TurnedAway):
    """As many wait as may."""


class OutOfTime(TurnedAway):
    """It took longer than it may."""


class Stopped(TurnedAway):
    """The server is shutting down, or the client has disconnected."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Args:
        images: in one request.
        steps: of a walk.
        waiting: requests that may wait while another is worked on.
        seconds: from a request's arrival to its images.
        body: bytes of a request.
        patience: seconds in which a request must have been sent.

    Raises:
        ValueError: one of them is not positive.
    """

    images: int = 16
    steps: int = 100
    waiting: int = 8
    seconds: float = 60.0
    body: int = 1 << 20
    patience: float = 10.0

    def __post_init__(self) -> None:
        for name in ("images", "steps", "waiting", "body"):
            positive_int(name, getattr(self, name))
        for name in ("seconds", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def check(self, images: int, steps: int) -> None:
        """Raise ValueError where a request asks for too much, or for nothing."""
        for name, asked, most in (("images", images, self.images), ("steps", steps, self.steps)):
            if not 1 <= asked <= most:
                raise ValueError(f"{name} must be from 1 to {most} here, got {asked}")

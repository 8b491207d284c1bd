"""The version, where all floors can read it."""

__version__ = "0.2.0"

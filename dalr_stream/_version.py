"""The version of the package, by itself so that any ring can name it without importing the front."""

__version__ = "0.2.0"

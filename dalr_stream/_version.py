"""The version, for the package's front and for the records that carry it."""

__version__ = "0.1.0"

"""Where a run file says that its store lies: in a folder, or in a bucket."""

from __future__ import annotations

from pathlib import Path

from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.storage.places.address import is_url
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.workflow.runfile.sections import RunSection


def store_place(section: RunSection, folder: Path, output: Path) -> Place:
    """Return where the store lies; `folder` is the run file's. Raises ConfigError for a URL that is not taken."""
    if section.store is None:
        return output / "store.zarr"
    try:
        return place_of(section.store) if is_url(section.store) else (folder / section.store).resolve()
    except InvalidInputError as error:  # which does not repeat a URL that carries a secret
        raise ConfigError(f"run.{error}") from None

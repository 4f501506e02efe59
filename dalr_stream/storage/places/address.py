"""Where a bucket is: what of a URL and of the environment may be kept, shown and sent to another process.

Credentials are none of it: the client reads them from the environment itself, in every process anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dalr_stream.errors import InvalidInputError

_PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "s3": {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "skip_signature": ("AWS_SKIP_SIGNATURE",),
        "virtual_hosted_style_request": ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST",),
    },
    "gs": {},
    "az": {
        "account_name": ("AZURE_STORAGE_ACCOUNT_NAME",),
        "endpoint": ("AZURE_STORAGE_ENDPOINT",),
        "use_emulator": ("AZURE_STORAGE_USE_EMULATOR",),
    },
    "memory": {},
}
"""Schemes, and the settings of each that say where its server is, with the variables that give them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHEMES = ", ".join(f"{scheme}://" for scheme in _PLACES)


@dataclass(frozen=True, slots=True)
class Address:
    """A bucket and the settings that say where its server is."""

    scheme: str
    bucket: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"{self.scheme}://{self.bucket}"

    @property
    def server(self) -> str:
        """The server, in words."""
        return dict(self.settings).get("endpoint", f"the server of {self.scheme}://")


def is_url(text: str) -> bool:
    """Tell whether a text is a URL, and no path."""
    return "://" in text


def parse(url: str) -> tuple[Address, tuple[str, ...]]:
    """Return the bucket of a URL, and the parts of the name below it.

    Raises InvalidInputError for another scheme, for a URL that carries a password, a key or a signature, which it does
    not repeat, and for one that names no store in the bucket.
    """
    scheme = url.partition("://")[0]
    if scheme not in _PLACES:
        raise InvalidInputError(f"store: a URL begins with one of {_SCHEMES}, got '{scheme}://': or name a folder")
    split = urlsplit(url)
    if "@" in split.netloc or "?" in url or "#" in url:
        raise InvalidInputError(
            f"store: a URL of {scheme}:// that carries a user, a password, a query or a signature is not taken, as it "
            "would be stored and shown: give the credentials by environment variables"
        )
    parts = tuple(split.path.strip("/").split("/"))
    if not _NAME.fullmatch(split.netloc) or any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(
            f"store: name a bucket and a store in it, as in {scheme}://bucket/birds.zarr, got '{url}'"
        )
    return Address(scheme, split.netloc, _settings(scheme)), parts


def _settings(scheme: str) -> tuple[tuple[str, str], ...]:
    found = {
        setting: next((value for name in names if (value := os.environ.get(name))), "")
        for setting, names in _PLACES[scheme].items()
    }
    if "@" in found.get("endpoint", "") or "?" in found.get("endpoint", ""):
        raise InvalidInputError(
            f"store: the address of a server that carries a user, a password or a query is not taken: correct "
            f"{' or '.join(_PLACES[scheme]['endpoint'])}"
        )
    return tuple((setting, value) for setting, value in found.items() if value)

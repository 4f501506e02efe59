"""Whether all ranks see the store that rank 0 writes: where they read and write in it too, each for its own batches."""

from __future__ import annotations

import secrets

from dalr_stream.errors import InvalidInputError
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.places.place import Place, make_folder, remove_folder, write_file
from dalr_stream.streaming.ranks.link import Link, Message, tell

_FILE = "token"


def mark_folder(root: Place, domain: str) -> Place:
    """Return where the mark lies that other ranks look for; one that a killed rank 0 left says nothing."""
    return root / UNFINISHED / domain / "@ranks"


def require_one_store(link: Link, root: Place, domain: str) -> None:
    """Raise InvalidInputError on a rank that does not find what rank 0 leaves in the store; all ranks call it."""
    if link.ranks == 1:
        return
    folder = mark_folder(root, domain)
    if link.rank:
        if not _holds(folder, tell(link, None)["token"]):
            raise InvalidInputError(
                f"ranks: rank {link.rank} does not see in '{root}' what rank 0 writes there: block by block, what each "
                "block gives lies in the store, so give all ranks one folder on a disk that they share, or a bucket"
            )
        link.send(0, Message())
        return
    token = secrets.token_hex(8)
    make_folder(folder)
    try:
        write_file(folder / _FILE, token.encode())
        tell(link, {"token": token})
        for rank in range(1, link.ranks):
            link.receive(rank)
    finally:
        remove_folder(folder)


def _holds(folder: Place, token: str) -> bool:
    try:
        return (folder / _FILE).read_bytes() == token.encode()
    except OSError:
        return False

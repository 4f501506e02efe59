"""What a run takes of time, links and a bucket, layer by layer, as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from dalr_stream.engine.planning.records import Estimate
from dalr_stream.progress import seconds_in_words
from dalr_stream.storage.buckets.requests import Requests
from dalr_stream.workflow.results.tables import new_table

_BUCKET = ("puts", "put", "gets", "got", "small")


def time_table(found: Estimate) -> Table:
    """Return seconds of one process, what ranks send, and what a bucket's server is asked, where there are any."""
    in_bucket = found.requests.puts > 0
    table = new_table("layer", "sums", *(["sent"] if found.ranks > 1 else []), *(_BUCKET if in_bucket else []))
    sent = "; sent by all ranks but one" if found.ranks > 1 else ""
    bucket = "; requests of a bucket" if in_bucket else ""
    table.title = Text(f"time of one process{sent}{bucket}; sizes in MiB", justify="left")

    def row(name: str, seconds: float, sent_bytes: int, asked: Requests) -> None:
        cells = [_mib(sent_bytes)] if found.ranks > 1 else []
        if in_bucket:
            sizes = _mib(asked.put_bytes), _mib(asked.got_bytes)
            cells += [f"{asked.puts:,}", sizes[0], f"{asked.gets:,}", sizes[1], f"{asked.small:,}"]
        table.add_row(name, seconds_in_words(seconds) if seconds else "", *cells)

    for layer in found.layers:
        row(layer.name, layer.sums_seconds, layer.sent_bytes, layer.requests)
    if in_bucket:
        row("the store itself", 0.0, 0, found.beside)
    table.add_section()
    row("total", found.sums_seconds, found.sent_bytes, found.requests)
    return table


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"

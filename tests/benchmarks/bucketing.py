"""A store in a bucket, on a server of this machine, against a folder; each tile's requests are counted."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from timing import Row, against, race

import dalr_stream as ds
from dalr_stream.storage.places.bucket import Bucket
from dalr_stream.storage.store import ActivationStore

BARS = {"a bucket": 1 / 0.8}
"""At least 0.8 times as fast as a folder."""
_PLACES = ("a folder", "a bucket")


def missing() -> str:
    """Return what is not installed."""
    return " and ".join(name for name in ("obstore", "moto") if importlib.util.find_spec(name) is None)


def compared(n: int, d: int, turns: int) -> tuple[dict[str, list[Row]], str]:
    """Return the rows of capturing and of accumulating, and what one tile asked of the server, in words.

    Of capturing also the CPU time of this process alone: the server works on the same cores.
    """
    model = torch.nn.Sequential(torch.nn.Linear(256, d), torch.nn.ReLU(), torch.nn.Linear(d, 8)).eval()
    layers = ds.network.select_layers(model, ["2"])
    batches = [torch.randn(min(1024, n), 256) for _ in range(-(-n // 1024))]
    numbers = count()
    with tempfile.TemporaryDirectory() as folder, _server() as bucket:
        roots = dict(zip(_PLACES, (folder, bucket), strict=True))
        stores = {place: f"{root}/kept.zarr" for place, root in roots.items()}

        def capture(root: str) -> None:
            ds.capture(model, batches, layers, root, domain="target")

        def accumulate(root: str) -> None:  # another rule each time, as what is up to date is not done again
            ds.accumulate(root, folding=ds.Folding(ds.HoldoutRule(0.1, seed=next(numbers))))

        with _counted() as asked:
            for store in stores.values():
                capture(store)
                accumulate(store)
        captures = {at: lambda at=at: capture(f"{roots[at]}/{next(numbers)}.zarr") for at in _PLACES}
        captured, own = race(captures, turns), race(captures, turns, clock=time.process_time)
        accumulated = race({at: lambda at=at: accumulate(stores[at]) for at in _PLACES}, turns)
        tiles = ActivationStore(stores["a bucket"]).tiles("target", "2")
    words = ", ".join(f"{number / tiles:g} {what}" for what, number in sorted(asked.items()))
    steps = {
        "capture": against("a folder", captured, BARS),
        "capture, CPU of this process": against("a folder", own, {}),
        "accumulate": against("a folder", accumulated, BARS),
    }
    return steps, f"{tiles} tiles: {words} each"


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count the requests for tiles."""
    asked: Counter[str] = Counter()
    kept = {name: getattr(Bucket, name) for name in ("_put", "read_version")}

    def counting(what: str, request: Callable[..., object]) -> Callable[..., object]:
        def asking(bucket: Bucket, key: str, *arguments: object) -> object:
            asked[what] += "/activations/" in key and "/c/" in key
            return request(bucket, key, *arguments)

        return asking

    for name, what in (("_put", "put"), ("read_version", "get")):
        setattr(Bucket, name, counting(what, kept[name]))
    try:
        yield asked
    finally:
        for name, request in kept.items():
            setattr(Bucket, name, request)


@contextmanager
def _server() -> Iterator[str]:
    """Serve a bucket from a process of its own, and give its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  # moto's
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    kept = {name: os.environ.get(name) for name in names}
    os.environ.update(zip(names, (f"http://{address}", "me", "mine", "us-east-1"), strict=True))
    try:
        _make_bucket(f"http://{address}/birds")
        yield "s3://birds"
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.terminate()
        server.wait()


def _make_bucket(url: str) -> None:
    for _ in range(600):
        with suppress(URLError), urlopen(Request(url, method="PUT")):  # noqa: S310  # on this machine
            return
        time.sleep(0.1)
    raise TimeoutError(f"no server answers at {url}")

"""A server of Azure's blob protocol: Azurite, from `npm install -g azurite`. Its one account is publicly known."""

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION = "2021-12-02"
_WAIT_SECONDS = 60.0


@contextmanager
def azurite(container):
    """Serve a container from a process of its own, and tell this process and those it starts where."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("a server of Azure's protocol needs Azurite: npm install -g azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = ("--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence")
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *quiet]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        try:
            _make(container)
            yield f"az://{container}"
        finally:
            server.terminate()
            server.wait()


def _make(container):
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            with urlopen(_signed(f"{ACCOUNT}/{container}")):  # noqa: S310  # on this machine
                return
        except URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _signed(path):
    """Return the request that makes a container, signed as the protocol has it."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = f"x-ms-date:{date}\nx-ms-version:{_VERSION}\n"
    text = "PUT" + "\n" * 12 + headers + f"/{ACCOUNT}/{path}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    return Request(  # noqa: S310  # on this machine
        f"{os.environ['AZURITE_BLOB_STORAGE_URL']}/{path}?restype=container",
        method="PUT",
        data=b"",
        headers={
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "Authorization": f"SharedKey {ACCOUNT}:{signature}",
            "Content-Type": "",
        },
    )

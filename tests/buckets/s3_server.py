"""A server of the S3 protocol, moto's, on a port of this machine, that fails at requests as it is told to."""

import socket
import threading
import time
from collections import Counter
from enum import Enum
from urllib.request import Request, urlopen

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Fault(Enum):
    """What may become of a request; `DONE_` where the server does what it was asked and the answer is lost."""

    ERROR = "500 INTERNAL SERVER ERROR"
    SLOW_DOWN = "503 SLOW DOWN"
    TORN = "torn"
    LATE = "late"
    DONE_ERROR = "500 INTERNAL SERVER ERROR, done"
    DONE_TORN = "torn, done"
    HALF = "half the answer"


class _Quiet(WSGIRequestHandler):
    def log(self, *_arguments):
        pass


class Server:
    """Serves while it is open. `fault(number, method, path)` says what fails; `requests` has what was asked.

    Whoever signs with the key `refuses` may do nothing.
    """

    def __init__(self, bucket):
        self.fault = None
        self.requests = []
        self.heeds_conditions = True
        self.refuses = ""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self._bucket = bucket

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        with urlopen(Request(f"{self.url}/{self._bucket}", method="PUT")) as answer:  # noqa: S310
            assert answer.status == 200
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._server.server_close()

    def counted(self, word):
        """Return how often each method was asked of keys that hold a word."""
        return Counter(method for method, path in self.requests if word in path)

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        number = len(self.requests)
        self.requests.append((method, path))
        if not self.heeds_conditions:
            for header in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"):
                environ.pop(header, None)
        if self.refuses and self.refuses in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 FORBIDDEN", [("Content-Length", "0")])
            return []
        fault = self.fault(number, method, path) if self.fault else None
        if fault is None:
            return self._app(environ, start_response)
        done = None
        if fault in (Fault.DONE_ERROR, Fault.DONE_TORN, Fault.HALF, Fault.LATE):
            done = _Answer(self._app, environ)
        if fault is Fault.HALF and len(done.body) > 1:
            start_response(done.status, done.headers)
            return _torn_after(done.body[: len(done.body) // 2], environ)
        if fault is Fault.LATE:
            time.sleep(1.5)
            start_response(done.status, done.headers)
            return [done.body]
        if fault in (Fault.TORN, Fault.DONE_TORN, Fault.HALF):
            _tear(environ)
        status = fault.value.partition(",")[0]
        start_response(status if status[0] == "5" else "500 TORN", [("Content-Length", "0")])
        return []


class _Answer:
    """What the application answers, whole."""

    def __init__(self, app, environ):
        self.status, self.headers = "", []
        self.body = b"".join(app(environ, self._start))

    def _start(self, status, headers, _error=None):
        self.status, self.headers = status, headers


def _torn_after(part, environ):
    yield part
    _tear(environ)


def _tear(environ):
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

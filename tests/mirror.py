"""A loopback server for tests that need one to misbehave.

    with Mirror({"a/b.zip": b"..."}) as mirror:
        mirror.then("a/b.zip", cut(100), status(503))   # the next two answers; after them it behaves
        mirror.always("a/b.zip", page())                # every answer from now on
        mirror.url("a/b.zip"), mirror.asked             # the address; the requests so far

It serves byte ranges, honours `If-Range`, and names each version of a file by the sha256 of its bytes. Knobs: `ranges`
(off: 200 where 206 was asked for), `tags` ("strong", "weak", or "" for no ETag), `dates` (a Last-Modified header).
"""

import hashlib
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote


@dataclass
class Asked:
    "A request: the file, the first byte asked for, and what was answered."

    name: str
    start: int
    status: int = 0


@dataclass
class Mirror:
    files: dict[str, bytes]
    ranges: bool = True
    tags: str = "strong"
    dates: str = ""
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self):
        self._once, self._always = defaultdict(list), {}
        handler = type("Handler", (_Handler,), {"mirror": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        return f"{self.base}/{quote(name)}"

    def then(self, name: str, *faults) -> None:
        self._once[name] += faults

    def always(self, name: str, fault) -> None:
        self._always[name] = fault

    def starts(self, name: str | None = None) -> list[int]:
        "The first byte of each request so far."
        return [a.start for a in self.asked if name in (None, a.name)]

    def fault(self, name: str):
        return self._once[name].pop(0) if self._once[name] else self._always.get(name, behave)


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self):
        name = unquote(self.path.lstrip("/"))
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.asked = Asked(name, int(found[1]) if found else 0)
        self.mirror.asked.append(self.asked)
        if name not in self.mirror.files:
            return self.answer(404)
        try:
            self.mirror.fault(name)(self, self.mirror.files[name])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reader has gone

    def versions(self, body: bytes) -> dict:
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        tags = {"strong": {"ETag": tag}, "weak": {"ETag": f"W/{tag}"}, "": {}}[self.mirror.tags]
        return tags | ({"Last-Modified": self.mirror.dates} if self.mirror.dates else {})

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None, length: int | None = -1) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def behave(handler: _Handler, body: bytes, most: int | None = None, length: int | None = -1) -> None:
    "The file as asked for, of which `most` bytes are sent; `length` is announced."
    versions = handler.versions(body)
    condition, start = handler.headers.get("If-Range"), handler.asked.start
    strong = [version for version in versions.values() if not version.startswith("W/")]  # others are no condition
    if not handler.mirror.ranges or condition and condition not in strong:
        start = 0
    if start and start >= len(body):
        return handler.answer(416, b"nothing there", {"Content-Range": f"bytes */{len(body)}"})
    span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
    sent = body[start:] if most is None else body[start : start + most]
    length = len(body) - start if length == -1 else length
    handler.answer(206 if start else 200, sent, versions | span, length)


def cut(most: int):
    "Announce everything, send `most` bytes."
    return lambda handler, body: behave(handler, body, most)


def announce(length: int | None):
    "Send everything, announce another length, or (None) no length."
    return lambda handler, body: behave(handler, body, length=length)


def status(code: int, **headers):
    "An answer without the file; `Retry_After='7'` sets a header."
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, body: handler.answer(code, b"no", named)


def page(text: str = "<!DOCTYPE html>\n<p>Please log in.</p>", kind: str = "text/html"):
    "A web page, with a cheerful 200."
    return lambda handler, body: handler.answer(200, text.encode(), {"Content-Type": kind})


def noise(raw: bytes = b"\x00\xffthis is no HTTP\r\n\r\n"):
    "Bytes that are no answer at all."
    return lambda handler, body: handler.wfile.write(raw)


def stall(most: int, seconds: float = 5):
    "Send `most` bytes, then fall silent."

    def fault(handler, body):
        behave(handler, body, most)
        handler.wfile.flush()
        time.sleep(seconds)

    return fault


def trickle(piece: int, seconds: float):
    "Send a piece at a time, with pauses."

    def fault(handler, body):
        behave(handler, body, 0)
        for at in range(handler.asked.start, len(body), piece):
            handler.wfile.write(body[at : at + piece])
            handler.wfile.flush()
            time.sleep(seconds)

    return fault


def hang_up(handler: _Handler, body: bytes) -> None:
    "Close the connection without a word."
    handler.close_connection = True


def elsewhere(start: int):
    "A part of the file, but from `start`, whatever was asked for."

    def fault(handler, body):
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        handler.answer(206, body[start:], handler.versions(body) | span)

    return fault

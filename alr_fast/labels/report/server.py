"""Serves the page of a report on this machine alone, and writes its marks to a file.

    GET  /TOKEN/            the page
    GET  /TOKEN/image/ID    the image of a sample on the page, in at most 1,024 pixels a side
    GET  /TOKEN/marks       {"marks": {"12": "fix 7", "31": "keep"}}
    POST /TOKEN/marks       the same, null to remove a mark; answered with the number of all marks

Everybody on this machine can connect, and any page in the browser can send requests here, so:

- Every address contains a random token. It is no cookie, which a browser would send to the other
  servers of this machine, too.
- The host that a request asks for must be this machine's: a name that leads here by a change in
  the DNS (rebinding) is refused.
- Marks are taken from the page itself alone (Origin), as JSON, in limited number and size.
- Images are chosen by the id of a sample, decoded by `alr_fast.data.images` and encoded anew.
"""

import http.server
import json
import re
import secrets
import socketserver
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from alr_fast.errors import UserError
from alr_fast.labels.report.marks_file import MarksFile
from alr_fast.labels.report.thumbnails import image_kind
from alr_fast.utils.text import printable_lines

HOST = "127.0.0.1"
MARKS, IMAGES = "marks", "image/"  # addresses, relative to the page
SIZE = (1024, 88)  # of a whole image: longest side in pixels, quality
_MOST_BYTES = 4 << 20  # of the body of a request
_UNREAD_BYTES = 1 << 16  # of one that is read although it is refused
_MOST_CHANGES = 100_000  # marks in it
_CONNECTIONS = 64  # at a time
_SECONDS = 20.0  # that a connection may be silent

_LOCAL = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ID = re.compile(r"[0-9]{1,18}")
# The page brings its own policy, which a header can only make stricter.
_PAGE_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TEXT, _JSON, _HTML = "text/plain; charset=utf-8", "application/json", "text/html; charset=utf-8"


class ReviewServer(http.server.ThreadingHTTPServer):
    """The server; `serve_forever` serves until `KeyboardInterrupt` or `shutdown`.

    Args:
        page: The page, see `alr_fast.labels.report.page.render`.
        picture: Returns the image of a sample by its id, encoded, or None and the reason. It is
            called by one thread at a time.
        marks: Takes the marks.
        port: Port to listen on; 0 for a free one.

    Attributes:
        address: Of the page.

    Raises:
        OSError: The port cannot be used.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(
        self,
        page: str,
        picture: Callable[[int], tuple[bytes | None, str]],
        marks: MarksFile,
        *,
        port: int = 0,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.page = page.encode()
        self.marks = marks
        self._picture = picture
        self._decoding = threading.Lock()  # an image of the largest size takes 500 MB
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__((HOST, port), _Handler)
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        """Binds the socket; the base class asks the DNS for the name of this machine, too."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handles a connection in a thread of its own, or closes it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no more threads, for now
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handles a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about connections that the browser has closed."""

    def picture(self, sample_id: int) -> tuple[bytes | None, str]:
        """The image of a sample, or None and the reason."""
        with self._decoding:
            return self._picture(sample_id)


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = _SECONDS
    _body_is_read = False

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, handle: Callable[[str], None]) -> None:
        try:
            handle(self._place())
        except _Refused as error:
            self._discard_body()
            self._send_text(error.status, str(error))

    def _place(self) -> str:
        """The address behind the token.

        Raises:
            _Refused: The request is not for this machine, or has no token.
        """
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _LOCAL.fullmatch(hosts[0]):
            raise _Refused(
                HTTPStatus.MISDIRECTED_REQUEST, f"ask for {HOST} or localhost, not for another host"
            )
        _, token, *places = self.path.split("/", 2) if self.path[:1] == "/" else ("", "")
        if not places or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.NOT_FOUND, "open the address that alr-fast review printed, all of it"
            )
        return places[0]

    def _get(self, place: str) -> None:
        if place == "":
            self._send(HTTPStatus.OK, self.server.page, _HTML, policy=_PAGE_POLICY)
        elif place == MARKS:
            try:
                marks = self.server.marks.marks()
            except UserError as error:
                raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
            self._send_json({"marks": marks})
        elif place.startswith(IMAGES) and _ID.fullmatch(place[len(IMAGES) :]):
            image, problem = self.server.picture(int(place[len(IMAGES) :]))
            if image is None:
                raise _Refused(HTTPStatus.NOT_FOUND, problem)
            self._send(HTTPStatus.OK, image, image_kind(image) or _TEXT)
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, place: str) -> None:
        if place != MARKS:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        if self.headers.get_all("Origin") != [f"http://{self.headers['Host']}"]:
            raise _Refused(HTTPStatus.FORBIDDEN, "marks are taken from the page of this server")
        if self.headers.get_content_type() != _JSON:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "marks are sent as JSON")
        changes = _changes(self._body())
        try:
            count = self.server.marks.update(changes)
        except UserError as error:
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        self._send_json({"count": count})

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the marks is missing")
        if "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.BAD_REQUEST, "marks are sent in one piece")
        length = int(lengths[0])
        if length > _MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too many marks at once")
        self._body_is_read = True
        body = self.rfile.read(length)
        if len(body) != length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the marks are cut off")
        return body

    def _discard_body(self) -> None:
        """Reads a short body that nobody wants: the connection would end before the answer."""
        length = self.headers.get("Content-Length", "")
        if not self._body_is_read and _LENGTH.fullmatch(length) and int(length) <= _UNREAD_BYTES:
            self.rfile.read(int(length))

    def _send_json(self, value: Mapping[str, Any]) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), _JSON)

    def _send_text(self, status: int, text: str) -> None:
        body = printable_lines(text).encode("utf-8", "replace")
        self._send(status, body + b"\n", _TEXT)

    def _send(self, status: int, body: bytes, kind: str, *, policy: str = _POLICY) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}
        headers["Content-Security-Policy"] = policy
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what is no request, without repeating it."""
        self.close_connection = True
        self._send_text(code, HTTPStatus(code).phrase)

    def version_string(self) -> str:
        """Name of the server: without its versions."""
        return "alr_fast"

    def log_message(self, format: str, *values: Any) -> None:
        """Logs nothing: lines with the token do not belong on a terminal."""


def _changes(body: bytes) -> dict[int, str | None]:
    """The marks in the body of a request.

    Raises:
        _Refused: It is something else.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    marks = content.get("marks") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(marks, dict) or len(marks) > _MOST_CHANGES:
        raise _Refused(HTTPStatus.BAD_REQUEST, 'marks are sent as {"marks": {"ID": "MARK"}}')
    for id, mark in marks.items():
        if not _ID.fullmatch(id) or not (mark is None or isinstance(mark, str)):
            raise _Refused(HTTPStatus.BAD_REQUEST, "a mark is a text or null, its key an id")
    return {int(id): mark for id, mark in marks.items()}

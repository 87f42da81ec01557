"""The server of a page: who may ask, what is answered, what is written."""

import contextlib
import io
import json
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alr_fast.data.images.sources import BrokenImage
from alr_fast.errors import UserError
from alr_fast.labels.report import marks_file
from alr_fast.labels.report import server as module
from alr_fast.labels.report.thumbnails import image_kind
from helpers.patience import PATIENCE
from helpers.review import JSON, ask, lines_of, mark, serving


@pytest.fixture
def path(tmp_path):
    return tmp_path / "marks.csv"


@pytest.fixture
def server(path):
    with serving(path) as server:
        yield server


def test_only_this_machine_is_listened_to(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 32
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", server.server_port), timeout=2)


def test_the_page_and_its_headers(server):
    answer = ask(server)
    assert answer.status == 200 and answer.body == server.page
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Set-Cookie"] is None
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    for place in ("", "marks", "image/4", "image/3", "nothing"):
        headers = ask(server, place).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None
        assert headers["Server"] == "alr_fast"  # no versions
        if place:
            assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "token", ["", "wrong", "..", "%2e%2e", "a" * 9000, "{token}x", "{token}"[:-2]]
)
@pytest.mark.parametrize("place", ["", "marks", "image/4"])
def test_without_the_token_there_is_nothing(server, token, place):
    answer = ask(server, place, token=token.replace("{token}", server.token))
    assert answer.status == 404
    assert server.token not in answer.text and "marks" not in answer.text


def test_marks_need_the_token(server, path):
    assert mark(server, {"4": "keep"}, token="wrong").status == 404
    assert not path.exists()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", None, "[::1]:80",
             "127.0.0.1:", "127.0.0.1:80@evil.example", "0.0.0.0", "127.0.0.1, evil.example"]
)  # fmt: skip
def test_other_hosts_are_refused(server, path, host):
    """A page whose name leads to this machine by a change in the DNS."""
    assert ask(server, Host=host).status == 421
    assert mark(server, {"4": "keep"}, Host=host, Origin=f"http://{host}").status == 421
    assert not path.exists()


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1:9999", "localhost"])
def test_a_forwarded_port_is_no_other_host(server, path, host):
    assert ask(server, Host=host).status == 200
    assert mark(server, {"4": "keep"}, Host=host, Origin=f"http://{host}").json == {"count": 1}


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1",
               "http://localhost:{port}", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}/"]
)  # fmt: skip
def test_marks_are_taken_from_the_page_alone(server, path, origin):
    origin = origin and origin.format(port=server.server_port)
    assert mark(server, {"4": "keep"}, Origin=origin).status == 403
    assert not path.exists()


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "x"])
def test_marks_are_json(server, path, kind):
    """A form of another page can send only other types without being asked first."""
    assert mark(server, {"4": "keep"}, Content_Type=kind).status == 415
    assert not path.exists()


@pytest.mark.parametrize(
    "method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT"]
)
def test_other_methods(server, method):
    assert ask(server, "marks", method=method).status == 501
    assert ask(server, "", method="POST").status == 404


BODIES = [
    b"", b"{", b"null", b"[]", b"7", b'"marks"', b"{}", b'{"marks": 1}', b'{"marks": ["4"]}',
    b'{"marks": {"4": "keep"}, "more": 1}', b'{"marks": {"4": 1}}', b'{"marks": {"4": ["keep"]}}',
    b'{"marks": {"4": "KEEP"}}', b'{"marks": {"4": "fix"}}', b'{"marks": {"4": "fix x"}}',
    b'{"marks": {"4": "fix 99"}}', b'{"marks": {"4": "fix -1"}}', b'{"marks": {"4": "fix 1"}}',
    b'{"marks": {"4": "keep\\n"}}', b'{"marks": {"4": "fix 0 "}}', b'{"marks": {"60": "keep"}}',
    b'{"marks": {"-1": "keep"}}', b'{"marks": {"4.0": "keep"}}', b'{"marks": {"": "keep"}}',
    b'{"marks": {"\xd9\xa4": "keep"}}', b'{"marks": {"99999999999999999999": "keep"}}',
    b'{"marks": {"4": "keep", "5": "none"}}', b"[" * 100_000, b"\xff\xfe\x00", b'{"marks": NaN}',
    b'{"marks": {"4": ' + b"9" * 10_000 + b"}}",
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body[:40]))
def test_what_is_no_mark_changes_nothing(server, path, body):
    assert ask(server, "marks", method="POST", body=body).status == 400
    assert not path.exists() and ask(server, "marks").json == {"marks": {}}


@settings(max_examples=20, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["keep", "fix 0"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("marks"), inner),
    )
)
def test_any_json_is_answered(content):
    """Whatever is sent, the answer is a refusal or a count."""
    body = json.dumps(content).encode()
    try:
        assert all(isinstance(id, int) for id in module._changes(body))
    except module._Refused as error:
        assert error.status == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Length": str(1 << 40)}, 413),
        ({"Content_Length": "5000000"}, 413),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "1e3"}, 411),
        ({"Content_Length": "9" * 300}, 411),
        ({"Content_Length": "2", "Transfer_Encoding": "chunked"}, 400),
    ],
)
def test_sizes_are_limited(server, headers, status):
    body = b"{}" if headers["Content_Length"] == "2" else None
    assert ask(server, "marks", method="POST", body=body, **headers).status == status


def connected(server):
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE)


def test_a_body_that_is_cut_off(server, path):
    with connected(server) as client:
        host = f"127.0.0.1:{server.server_port}"
        head = [
            f"POST /{server.token}/marks HTTP/1.0", f"Host: {host}", f"Origin: http://{host}",
            f"Content-Type: {JSON}", "Content-Length: 100", "", '{"marks": {"4": "keep"}}',
        ]  # fmt: skip
        client.sendall("\r\n".join(head).encode())
        client.shutdown(socket.SHUT_WR)
        assert b" 400 " in client.recv(100)
    assert not path.exists()


@pytest.mark.parametrize(
    "text", [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01", b"GET / HTTP/9.9\r\n\r\n",
             b"GET /\xe9/ HTTP/1.0\r\nHost: localhost\r\n\r\n",
             b"GET x HTTP/1.0\r\nHost: localhost\r\n\r\n",
             b"GET /\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.0\r\n\r\n", b"X" * 1000 + b"\n",
             b"GET / HTTP/1.0\r\n" + b"".join(b"A%d: b\r\n" % k for k in range(300)) + b"\r\n"]
)  # fmt: skip
def test_what_is_no_request(server, text, capfd):
    with connected(server) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                answer += piece
    assert server.token.encode() not in answer and b"<script" not in answer
    assert ask(server).status == 200  # the server goes on
    assert capfd.readouterr() == ("", "")


def test_silent_connections_do_not_last(path, monkeypatch):
    monkeypatch.setattr(module._Handler, "timeout", 0.1)
    with serving(path) as server, connected(server) as client:
        assert client.recv(1) == b""
        assert ask(server).status == 200


def test_connections_beyond_the_room_are_closed_at_once(path, monkeypatch):
    monkeypatch.setattr(module, "_CONNECTIONS", 4)
    with serving(path) as server, contextlib.ExitStack() as silent:
        for _ in range(4):
            silent.enter_context(connected(server))
        with connected(server) as more:
            assert more.recv(1) == b""


def test_threads_that_cannot_be_started_take_no_room(path, monkeypatch):
    class NoThread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "_CONNECTIONS", 2)
    with serving(path) as server:
        with monkeypatch.context() as few:
            few.setattr(threading, "Thread", NoThread)
            for _ in range(3):
                with connected(server) as no:
                    assert no.recv(1) == b""
        assert ask(server).status == 200


# --- images -------------------------------------------------------------------------------------


def test_an_image_by_its_number(server):
    answer = ask(server, "image/4")
    assert answer.headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(answer.body)).size == (200, 200)
    missing = ask(server, "image/3")
    assert (missing.status, missing.text) == (404, "no such file\n")


@pytest.mark.parametrize(
    "place", ["image/", "image/x", "image/-1", "image/4/", "image/4?x", "image/../marks", "image",
              "image/%34", "image/..%2f..%2fetc%2fpasswd", "../image/4", "image/" + "4" * 40,
              "/etc/passwd", "marks/", "marks?x", "index.html", "%00", "image/4%00"]
)  # fmt: skip
def test_no_address_is_a_path(server, place):
    answer = ask(server, place)
    assert answer.status == 404 and b"root:" not in answer.body


def test_a_decoder_that_fails_is_an_answer(path, monkeypatch):
    from alr_fast.labels.report.views import Views

    def broken(row):
        raise {0: BrokenImage("cut off"), 1: MemoryError(), 2: OSError(5, "Input/output error")}[
            row
        ]

    views = Views(broken)
    with serving(path) as server:
        server._picture = lambda id: views.picture(id, *module.SIZE)
        assert ask(server, "image/0").text == "cut off\n"
        for id in (1, 2):
            assert ask(server, f"image/{id}").status == 404
        assert ask(server, "marks").status == 200


def test_what_is_served_was_encoded_anew(tmp_path):
    """An image that is a script as well does not reach the browser as it is."""
    from alr_fast.labels.report.views import Views

    file = tmp_path / "both.png"
    Image.new("RGB", (2000, 1000), "red").save(file)
    file.write_bytes(file.read_bytes() + b"<script>alert(1)</script>")
    data, problem = Views(lambda row: file).picture(0, *module.SIZE)
    assert problem == "" and b"<script" not in data
    assert image_kind(data) == "image/webp" and Image.open(io.BytesIO(data)).size == (1024, 512)


# --- marks --------------------------------------------------------------------------------------


def test_marks_are_in_the_file_at_once(server, path):
    assert mark(server, {"4": "fix 2", "7": "keep"}).json == {"count": 2}
    rows = lines_of(path)
    assert (rows[4]["mark"], rows[4]["label"], rows[4]["label_name"]) == ("fix", "2", "frog")
    assert (rows[7]["mark"], rows[7]["label"], rows[7]["label_name"]) == ("keep", "0", "cat")
    assert mark(server, {"7": "unsure"}).json == {"count": 2}
    assert (lines_of(path)[7]["mark"], lines_of(path)[7]["label"]) == ("unsure", "")
    assert ask(server, "marks").json == {"marks": {"4": "fix 2", "7": "unsure"}}
    assert mark(server, {"4": None}).json == {"count": 1}
    assert list(lines_of(path)) == [7]
    assert mark(server, {"7": None, "8": None}).json == {"count": 0}
    assert lines_of(path) == {} and ask(server, "marks").json == {"marks": {}}


def test_marks_of_many_windows_at_once(server, path):
    """None is lost; the last one of a sample counts."""

    def window(number):
        for id in range(number, 60, 6):
            for text in ("unsure", None, "keep"):
                assert mark(server, {str(id): text}).status == 200

    threads = [threading.Thread(target=window, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id: row["mark"] for id, row in lines_of(path).items()} == dict.fromkeys(
        range(60), "keep"
    )
    assert sorted(p.name for p in path.parent.iterdir()) == ["marks.csv"]


def test_what_cannot_be_written_is_said_and_not_counted(server, path, monkeypatch):
    mark(server, {"4": "keep"})

    def full(target):
        raise UserError(f"{target}: No space left on device; free some space and try again")

    with monkeypatch.context() as patch:
        patch.setattr(marks_file, "replacing", full)
        answer = mark(server, {"5": "keep"})
        assert answer.status == 500
        assert answer.text == (f"{path}: No space left on device; free some space and try again\n")
        assert ask(server, "marks").json == {"marks": {"4": "keep"}}
    assert mark(server, {"5": "keep"}).json == {"count": 2}


def test_a_folder_that_is_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with serving(folder / "marks.csv") as server:
        folder.rmdir()
        answer = mark(server, {"4": "keep"})
        assert answer.status == 500 and answer.text.startswith(str(folder / "marks.csv"))
        folder.mkdir()
        assert mark(server, {"4": "keep"}).status == 200


def test_an_ended_review_writes_nothing(server, path):
    server.marks.close()
    assert mark(server, {"4": "keep"}).status == 500
    assert not path.exists()

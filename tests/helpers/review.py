"""A server of marks for the tests, and requests to it."""

import contextlib
import csv
import functools
import http.client
import json
import threading
from dataclasses import replace

import numpy as np

from alr_fast.labels import find_issues
from alr_fast.labels.report.marks_file import MarksFile
from alr_fast.labels.report.page import render
from alr_fast.labels.report.server import ReviewServer
from helpers.patience import PATIENCE
from helpers.report_pages import report, thumbnail

JSON = "application/json"


def labels_of_page(**changes):
    """The samples of the usual page, see `helpers.report_pages.report`, with their labels."""
    content = report()
    suspects = sorted(content.suspects, key=lambda s: s.id)
    rows = np.full((len(suspects), len(content.class_names)), 0.01)
    rows[range(len(rows)), [s.refined for s in suspects]] = 0.96
    values = {
        "labels": [s.given for s in suspects],
        "class_names": content.class_names,
        "paths": [s.path for s in suspects],
        "sample_ids": [s.id for s in suspects],
    }
    return find_issues(**(values | changes), probabilities=rows)


_usual_labels = functools.cache(labels_of_page)


def picture(sample_id):
    """An image for each sample but 3."""
    return (None, "no such file") if sample_id == 3 else (thumbnail(sample_id, size=200), "")


def page_for(path, **changes):
    """The usual page, with marks in this file."""
    served = {"marks": "marks", "file": str(path)}
    return render(replace(report(panels=[]), **changes), server=served)


@contextlib.contextmanager
def serving(path, page="<!doctype html><title>page</title>"):
    """Serves a page with the usual samples; yields the server."""
    marks = MarksFile(path, _usual_labels())
    server = ReviewServer(page, picture, marks)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answer:
    """An answer to a request."""

    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)


def ask(server, place="", *, method="GET", token=None, body=None, **headers):
    """Sends a request; a header that is None is left out."""
    host = f"127.0.0.1:{server.server_port}"
    usual = {"Host": host}
    if method == "POST":
        usual |= {"Origin": f"http://{host}", "Content-Type": JSON}
        usual["Content-Length"] = str(len(body or b""))
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    with contextlib.closing(connection):
        address = f"/{server.token if token is None else token}/{place}"
        connection.putrequest(method, address, skip_host=True, skip_accept_encoding=True)
        for name, value in (usual | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        return Answer(connection.getresponse())


def mark(server, marks, **headers):
    """Sends marks."""
    return ask(
        server, "marks", method="POST", body=json.dumps({"marks": marks}).encode(), **headers
    )


def lines_of(path):
    """The marks in a file, by sample id."""
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["id"]): row for row in csv.DictReader(file)}

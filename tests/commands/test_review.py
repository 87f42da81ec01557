"""The command: from a run to its page, to marks, and to a training with them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from alr_fast import review
from alr_fast.data.datasets import open_dataset
from alr_fast.data.label_files.label_table import read_marks
from alr_fast.export import main as export
from alr_fast.labels.report.server import ReviewServer
from alr_fast.train import main as train
from alr_fast.utils.files import locked
from helpers.documents import blocks
from helpers.report_browser import Page, emulate
from helpers.review import ask, lines_of, mark

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def serve(monkeypatch, capsys):
    """Runs the command; returns its exit status and output.

    Without ``signal``, ``during(server)`` is called in place of serving. With it, in a thread while
    the server answers; the signal then ends the command.
    """

    def serve(*argv, during=lambda server: None, number=None):
        failed = []

        def serve_forever(self, poll_interval):
            if number is None:
                during(self)
                return
            thread = threading.Thread(target=act, args=(self,))
            thread.start()
            try:
                real(self, poll_interval)
            finally:
                thread.join()

        def act(server):
            try:
                during(server)
            except BaseException as error:
                failed.append(error)
            os.kill(os.getpid(), number)

        real = ReviewServer.serve_forever
        with monkeypatch.context() as patch:
            patch.setattr(ReviewServer, "serve_forever", serve_forever)
            status = review.main(list(map(str, argv)))
        if failed:
            raise failed[0]
        return status, capsys.readouterr()

    return serve


class LoopPage(Page):
    """A page by its address."""

    def open(self):
        self.driver.get(self.path)
        return self

    def is_saved(self):
        return self.text("#marks-kept").startswith("Marks are saved in")


def test_look_mark_train_again(run, serve, driver, tmp_path, monkeypatch, capsys):
    """The whole loop: the page in a browser, marks by keys, the command that is printed."""
    file = run / "marks.csv"
    driver.get_log("browser")
    emulate(driver, "light")
    ids = []

    def look_and_mark(server):
        page = LoopPage(driver, server.address).open()
        page.until(page.is_saved)
        ids.extend(page.ids()[:3])
        for id, key in zip(ids, "213", strict=True):
            page.focus(id)
            page.press(key)
        page.until(lambda: file.exists() and len(lines_of(file)) == 3)
        page.until(page.is_saved)

    status, output = serve(run, "--most", "30", during=look_and_mark, number=signal.SIGINT)
    assert status == 0 and output.err == "" and driver.get_log("browser") == []
    lines = output.out.splitlines()
    assert f"marks are written to {file}" in lines
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", lines[-2])
    found = re.fullmatch(rf"3 marks are in {file}; this trains with them: (.*)", lines[-1])
    rows = lines_of(file)
    assert [rows[id]["mark"] for id in ids] == ["fix", "keep", "unsure"]
    # What is printed can be pasted, with options after it, from any folder.
    monkeypatch.chdir(tmp_path)
    words = shlex.split(found[1])
    words = words[words.index("--config") :]
    short = ["--optim.epochs", "1", "--methods", "alr", "--alr.momentum", "1"]
    short += ["--alr.warmup_epochs", "0", "--runs", str(tmp_path / "runs"), "--log.to", "csv"]
    assert train([*words, *short, "--log.show", "lines"]) == 0
    assert f"marks: 2 labels from {file}; 1 differ" in capsys.readouterr().out
    before = load_file(run / "alr_bank.safetensors")
    after = load_file(tmp_path / "runs/latest/alr_bank.safetensors")
    wanted = before["given_labels"].clone()  # the noise is the same
    wanted[before["ids"].tolist().index(ids[0])] = int(rows[ids[0]]["label"])
    assert torch.equal(after["given_labels"], wanted)
    assert not torch.equal(wanted, before["given_labels"])
    assert torch.equal(after["clean_labels"], before["clean_labels"])


def test_sigterm_ends_it(run, serve):
    before = signal.getsignal(signal.SIGTERM)

    def during(server):
        id = re.search(r'"suspects":\[\{"id":(\d+)', ask(server).text)[1]
        assert mark(server, {id: "keep"}).json == {"count": 1}

    status, output = serve(run, "--most", "3", during=during, number=signal.SIGTERM)
    assert status == 0 and output.err == ""
    assert output.out.splitlines()[-1].startswith(f"1 mark is in {run}/marks.csv; ")
    assert signal.getsignal(signal.SIGTERM) is before
    assert "ssh -N" not in output.out


def test_a_second_review_is_refused(run, serve):
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(run / review.LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        status, output = serve(run, "--most", "3")
        other.stdin.close()
    assert (status, output.out) == (2, "")
    assert output.err == (
        f"error: {run}: is being reviewed already; go on there, or end that review first\n"
    )
    assert serve(run, "--most", "3")[0] == 0


@pytest.mark.parametrize(("port", "option"), [("22", ""), ("2222", "-p 2222 ")])
def test_over_ssh_the_line_that_forwards_the_port(run, serve, monkeypatch, port, option):
    monkeypatch.setenv("SSH_CONNECTION", f"10.0.0.1 50000 10.0.0.2 {port}")
    ports = []
    _, output = serve(run, "--most", "3", during=lambda server: ports.append(server.server_port))
    forward = rf"ssh -N -L {ports[0]}:127\.0\.0\.1:{ports[0]} {option}[^ ]+@10\.0\.0\.2"
    lines = output.out.splitlines()
    assert any(re.fullmatch(f"on your own machine first: {forward}", line) for line in lines)
    monkeypatch.setenv("SSH_CONNECTION", "strange")
    assert "ssh -N" not in serve(run, "--most", "3")[1].out


def test_no_marks(run, serve):
    status, output = serve(run, "--most", "3")
    assert status == 0 and output.out.splitlines()[-1] == "no marks were made"
    assert not (run / "marks.csv").exists()


def test_marks_of_the_folder_are_shown_and_those_of_other_data_refused(run, serve):
    serve(run, "--most", "3", during=lambda server: server.marks.update({7: "keep"}))
    seen = []
    _, output = serve(run, "--most", "3", during=lambda server: seen.append(server.marks.marks()))
    assert seen == [{7: "keep"}]
    assert f"marks are written to {run / 'marks.csv'}, 1 so far" in output.out
    text = (run / "marks.csv").read_text()
    (run / "marks.csv").write_text(text.replace("digits/", "elsewhere/a"))
    status, output = serve(run, "--most", "3")
    assert status == 2 and output.err.startswith(f"error: {run / 'marks.csv'}: ")
    assert output.err.count("\n") == 1


def test_marks_that_a_run_was_trained_with_are_taken_over(run, serve, tmp_path):
    """Of the loop, the second time."""
    earlier = tmp_path / "earlier.csv"
    serve(run, "--most", "3", during=lambda server: server.marks.update({7: "keep", 9: "unsure"}))
    (run / "marks.csv").rename(earlier)
    config = run / "config.yaml"
    config.write_text(re.sub(r"  marks: null", f"  marks: {earlier}", config.read_text()))
    seen = []
    _, output = serve(run, "--most", "3", during=lambda server: seen.append(server.marks.marks()))
    assert seen == [{7: "keep", 9: "unsure"}]
    assert f"2 marks are taken over from {earlier}" in output.out
    serve(run, "--most", "3", during=lambda server: server.marks.update({9: None}))
    assert list(lines_of(run / "marks.csv")) == [7]
    earlier.unlink()
    (run / "marks.csv").unlink()
    status, output = serve(run, "--most", "3")
    assert status == 0 and f"{earlier} is gone" in output.out


def test_images_of_a_folder_in_full(moved, serve):
    root, run = moved
    answers = []

    def during(server):
        ids = [int(id) for id in re.findall(r'\{"id":(\d+)', server.page.decode())]
        answers.extend(server.picture(id) for id in ids)
        answers.append(server.picture(10**6))

    status, output = serve(run, "--data-root", root, during=during)
    assert status == 0, output.err
    assert answers.pop() == (None, "not on the page")
    assert answers and all(data[:4] == b"\x89PNG" for data, _ in answers)
    answers.clear()
    serve(run, during=during)  # the images are elsewhere
    assert answers and all(data is None and problem for data, problem in answers[:-1])


def test_a_folder_that_cannot_be_written_to(run, serve, monkeypatch):
    """The page is served; marks stay in the browser until they can be written."""
    real = locked

    def refuse(path, *, busy):
        if path.name == review.LOCK:
            (path.parent / path.name).mkdir(exist_ok=True)
        return real(path, busy=busy)

    monkeypatch.setattr(review, "locked", refuse)
    status, output = serve(run, "--most", "3")
    assert status == 0
    assert "marks cannot be written, and stay in the browser: " in output.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "--port 70000: must lie between 0 and 65535"),
        (["--port", "-1"], "--port -1: must lie between 0 and 65535"),
        (["--port", "x"], "--port x: must be an integer"),
        (["--most", "-1"], "--most -1: must lie between 0 and 20000"),
        (["--method", "sat"], "--method sat: not trained by"),
        (["--unknown"], "--unknown: no such option"),
    ],
)
def test_wrong_options(run, capsys, argv, message):
    before = sorted(run.iterdir())
    assert review.main([str(run), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_a_port_that_is_taken(run, serve):
    ports = []

    def during(server):
        ports.append(server.server_port)
        copy = shutil.copytree(run, run.parent / "copy")
        assert review.main([str(copy), "--port", str(server.server_port), "--most", "3"]) == 2

    status, output = serve(run, "--most", "3", during=during)
    assert status == 0
    assert (
        output.err
        == f"error: --port {ports[0]}: Address already in use; leave it out for a free one\n"
    )


def test_open_shows_the_page(run, serve, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    addresses = []
    serve(run, "--most", "3", during=lambda server: addresses.append(server.address))
    assert opened == []
    serve(run, "--most", "3", "--open", during=lambda server: addresses.append(server.address))
    assert opened == [addresses[1]] and addresses[0] != addresses[1]


def test_latest_is_the_folder_behind_it(run, serve, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(run)
    _, output = serve(link, "--most", "3", during=lambda server: server.marks.update({7: "keep"}))
    assert f"1 mark is in {run}/marks.csv; " in output.out and str(link) not in output.out


def test_programs_that_the_training_would_run_are_named(run, serve):
    """The run may be somebody else's."""
    config = run / "config.yaml"
    config.write_text(re.sub(r"(?m)^plugins: .*$", "plugins: [./evil.py]", config.read_text()))
    _, output = serve(run, "--most", "3", during=lambda server: server.marks.update({7: "keep"}))
    line = "the training runs programs that the run names: ./evil.py; read them first"
    assert line in output.out.splitlines()


def test_the_files_of_a_review(run, serve):
    before = {path.name for path in run.iterdir()}
    serve(run, "--most", "3", during=lambda server: server.marks.update({7: "keep"}))
    assert {path.name for path in run.iterdir()} - before == {"marks.csv", ".marks.lock"}


def test_the_example_of_the_document(run, tmp_path, monkeypatch):
    """A program in the place of the reviewer: the first 100 with their true labels."""
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "latest")
    monkeypatch.chdir(tmp_path)
    assert export(["runs/latest", "--csv"]) == 0
    (code,) = [b.code for b in blocks("python") if b.document.name == "review.md"]
    exec(compile(code, "review.md", "exec"), {})
    index = open_dataset("digits", None).split("train").index
    read = read_marks(tmp_path / "runs/latest/marks.csv", index)
    assert len(read.rows) == 100
    assert read.labels.tolist() == index.labels[read.rows].tolist()

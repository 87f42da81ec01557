import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from alr_fast.labels import find_issues
from alr_fast.training.output import display as module
from alr_fast.training.output.display import RunDisplay
from alr_fast.training.output.records import method_summary
from helpers.records import record
from helpers.terminal import open_terminal

EPOCH = (
    "  alr  epoch 2/3  loss 0.3888  acc 65.8%  test acc 98.9%  changed 34.0%"
    "  label acc 98.0%  1,234 samples/s"
)
SHARES = {"data": (0.125, 0.25), "forward": (75.0, 0.75)}


class Clock:
    """Replaces time.monotonic; a test sets the time."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch):
    """Opens a terminal of a given width as standard output."""
    return lambda columns: open_terminal(monkeypatch, columns)


def everything(console):
    """Calls each method that a run calls."""
    console.log("hello a:100:b [bold]x")
    console.warn("look out")
    assert list(console.track([1, 2], description="decoding", total=2)) == [1, 2]
    history = [record(e) for e in (1, 2, 3)]
    with console.training("alr", epochs=3, steps=4) as display:
        for done in history:
            display.step(done.epoch - 1, 2, 1.5, 0.25, 777.0)
            display.epoch(done)
    results = {"alr": method_summary(history, 0.6)}
    console.table(results, epochs=3, folder=Path("runs/x"))
    console.shares("Steps 10 to 20", SHARES)
    return results


def train_lines(capsys, clock, *, epochs, seconds=1.0, start=0, **changes):
    """Returns the numbers of the epochs that have a line, and the lines."""
    console = RunDisplay("lines")
    with console.training("alr", epochs=epochs, steps=4, start_epoch=start) as display:
        for epoch in range(start + 1, epochs + 1):
            clock.now += seconds
            display.epoch(record(epoch, **changes))
    lines = capsys.readouterr().out.splitlines()
    return [int(line.split("epoch")[1].split("/")[0]) for line in lines], lines


@pytest.mark.parametrize("show", ["auto", "lines"])
def test_lines_without_a_terminal(capsys, clock, show):
    everything(RunDisplay(show))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["hello a:100:b [bold]x", "decoding: 2"]
    assert lines[3].startswith(EPOCH)
    assert [line.startswith("  alr  epoch") for line in lines[2:6]] == [True, True, True, False]
    assert "\x1b" not in out
    assert err == "warning: look out\n"
    assert lines[-4:] == [
        "Steps 10 to 20",
        "               time  share",
        "data       125.0 ms  25.0%",
        "forward  1 min 15 s  75.0%",
    ]


def test_lines_on_a_terminal_draw_no_bar(terminal, capsys):
    out = terminal(100)
    everything(RunDisplay("lines"))
    assert EPOCH in out.getvalue()
    assert "━╸" not in out.getvalue()
    assert "777 samples/s" not in out.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_bar_on_a_terminal(terminal, capsys, clock, columns):
    out = terminal(columns)
    console = RunDisplay()
    with console.training("alr", epochs=60, steps=4, start_epoch=30) as display:
        clock.now += 5
        display.step(30, 2, 1.5, 0.25, 777.0)
        display._progress.refresh()
        text = out.getvalue()
        assert "31/60 loss 1.500 acc 25.0% 777 samples/s" in text
        assert "4 min 55 s left" in text  # 2 of 120 steps in 5 s
        display.epoch(record(31, samples_per_second=888.0))
        display._progress.refresh()
        assert "loss 0.389 acc 65.8% 888 samples/s test 98.9%" in out.getvalue()
        (task,) = display._progress.tasks
        assert (task.completed, task.total) == (31 * 4, 240)
        console.warn("look out")
    assert "alr  epoch" not in out.getvalue()  # no line in addition to the bar
    assert ("0:00:0" in out.getvalue()) == (columns == 120)
    assert capsys.readouterr().err == "warning: look out\n"  # standard error is no terminal here


def test_a_resumed_bar_starts_where_the_run_is(terminal):
    terminal(100)
    with RunDisplay().training("alr", epochs=6, steps=4, start_epoch=2, start_step=3) as display:
        (task,) = display._progress.tasks
        assert (task.completed, task.fields["epoch"]) == (11, 3)


def test_quiet_prints_warnings_and_the_table(capsys):
    everything(RunDisplay("quiet"))
    out, err = capsys.readouterr()
    assert out.startswith("Last of 3 epochs")
    assert out.count("\n") == 6
    assert err == "warning: look out\n"


def test_quiet_on_a_terminal_draws_no_bar(terminal):
    out = terminal(100)
    everything(RunDisplay("quiet"))
    assert "samples/s test" not in out.getvalue()
    assert "decoding" not in out.getvalue()
    assert "method" in out.getvalue()


def test_json_is_an_object_a_line(capsys, clock):
    results = everything(RunDisplay("json"))
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [event.pop("event") for event in events] == [
        "message", "warning", "message", "progress", "epoch", "epoch", "epoch", "summary",
        "profile",
    ]  # fmt: skip
    assert events[0] == {"text": "hello a:100:b [bold]x"}
    assert events[1] == {"text": "look out"}
    assert events[2] == {"text": "decoding: 2"}
    assert events[3] == {
        "method": "alr", "epoch": 1, "epochs": 3, "step": 2, "steps": 4, "loss": 1.5,
        "accuracy": 0.25, "samples_per_second": 777.0, "seconds_left": 0.0,
    }  # fmt: skip
    assert events[5] == {**asdict(record(2)), "epochs": 3, "seconds_left": 0.0}
    assert events[7] == {"epochs": 3, "methods": results, "folder": "runs/x", "finished": True}
    assert events[8]["phases"]["data"] == {"seconds": 0.125, "share": 0.25}


def test_json_has_no_progress_more_than_once_a_second(capsys, clock):
    with RunDisplay("json").training("ce", epochs=1, steps=9) as display:
        for step, late in enumerate([0, 0.5, 0.75, 1.0, 1.5, 2.25], start=1):
            clock.now = 2000 + late
            display.step(0, step, 1.0, 0.5, 10.0)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4, 6]


def test_json_has_null_for_nan_and_infinity(capsys):
    with RunDisplay("json").training("alr", epochs=1, steps=1) as display:
        display.epoch(record(1, test_loss=float("nan"), train_loss=float("inf")))
    event = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (event["test_loss"], event["train_loss"], event["second_test_accuracy"]) == (None,) * 3


@pytest.mark.parametrize("show", ["auto", "lines", "quiet", "json"])
@pytest.mark.parametrize("columns", [None, 100])
def test_other_processes_print_nothing(terminal, capsys, show, columns):
    out = terminal(columns) if columns else None
    everything(RunDisplay(show, main=False))
    assert tuple(capsys.readouterr()) == ("", "")
    assert out is None or out.getvalue() == ""


def test_twenty_epochs_have_a_line_each(capsys, clock):
    assert train_lines(capsys, clock, epochs=20)[0] == list(range(1, 21))


def test_of_more_epochs_about_ten_have_a_line(capsys, clock):
    assert train_lines(capsys, clock, epochs=60)[0] == [1, *range(6, 61, 6)]
    # Epochs that divide the run, and always the last epoch.
    assert train_lines(capsys, clock, epochs=34)[0] == [1, *range(3, 34, 3), 34]
    # A resumed run has a line for its own first epoch.
    assert train_lines(capsys, clock, epochs=60, start=43)[0] == [44, 48, 54, 60]


def test_slow_epochs_have_a_line_each(capsys, clock):
    assert train_lines(capsys, clock, epochs=60, seconds=10.5)[0] == list(range(1, 61))
    # 3 s each: the fourth after a line is more than 10 s later.
    shown = train_lines(capsys, clock, epochs=60, seconds=3.0)[0]
    assert shown[:6] == [1, 5, 6, 10, 12, 16]


def test_time_left_is_estimated_from_the_epochs_of_this_process(capsys, clock):
    _, lines = train_lines(capsys, clock, epochs=10, seconds=60.0, start=6)
    assert [line.split("samples/s")[1] for line in lines] == [
        "  3 min 00 s left",
        "  2 min 00 s left",
        "  1 min 00 s left",
        "",
    ]


def test_a_run_resumed_within_an_epoch_counts_its_own_steps(capsys, clock):
    console = RunDisplay("lines")
    with console.training("alr", epochs=4, steps=10, start_epoch=1, start_step=8) as display:
        clock.now += 6
        display.epoch(record(2))  # 2 steps in 6 s, 20 more
    assert capsys.readouterr().out.endswith("  1 min 00 s left\n")


def test_no_time_is_estimated_before_the_first_step(capsys, clock):
    with RunDisplay("json").training("alr", epochs=4, steps=10, start_epoch=1) as display:
        clock.now += 6
        display.step(1, 0, 1.0, 0.5, 10.0)
    assert json.loads(capsys.readouterr().out)["seconds_left"] is None


def test_parts_of_a_line_that_are_optional(capsys, clock):
    _, (line,) = train_lines(capsys, clock, epochs=1)
    assert "skipped" not in line
    _, (line,) = train_lines(capsys, clock, epochs=1, skipped_steps=3, label_accuracy=None)
    assert line.endswith("1,234 samples/s  skipped steps 3")
    assert "label acc" not in line


def test_lines_are_not_wider_than_120_columns(capsys, clock):
    _, lines = train_lines(capsys, clock, epochs=120, seconds=0.4)
    assert "  48 s left" in lines[0]
    assert max(map(len, lines)) <= 120


TABLE = """\
Last of 60 epochs (the best one is shown, never selected)
┏━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━┓
┃ method ┃ test acc ┃ best (epoch) ┃ label acc ┃ after ┃ changed ┃ samples/s ┃       time ┃
┡━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━┩
│ ce     │    98.9% │    98.9% (1) │     64.4% │ 98.0% │   34.0% │     1,234 │     29.7 s │
│ alr    │    98.9% │    98.9% (1) │         - │ 98.0% │   34.0% │    12,345 │ 3 h 05 min │
└────────┴──────────┴──────────────┴───────────┴───────┴─────────┴───────────┴────────────┘
"""


def results():
    return {
        "ce": method_summary([record(1, "ce", seconds=29.7)], 0.644),
        "alr": method_summary([record(1, seconds=11_100, samples_per_second=12_345.0)], None),
    }


def test_table(capsys):
    RunDisplay().table(results(), epochs=60, folder=Path("x"))
    assert capsys.readouterr().out == TABLE


def test_a_narrow_terminal_has_fewer_columns(terminal):
    out = terminal(80)
    RunDisplay().table(results(), epochs=60, folder=Path("x"))
    assert "samples/s" not in out.getvalue()
    assert "changed" not in out.getvalue()
    assert "3 h 05 min" in out.getvalue()


@pytest.mark.parametrize("show", ["quiet", "json"])
def test_suspects_with_non_utf8_names_can_be_printed(monkeypatch, show):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdout", screen)
    labels = find_issues([0, 0], [[0.1, 0.9], [0.9, 0.1]], class_names=["caf\udce9", "[b]x"])
    sample = {"id": 3, "path": "a/\udce9.png", "given_name": "caf\udce9", "refined_name": "[b]x",
              "score": 0.75}  # fmt: skip
    RunDisplay(show).suspects(labels, [sample], review="alr-fast review runs/x")
    screen.flush()
    text = screen.buffer.getvalue().decode("utf-8").replace("\\\\", "\\")
    for part in (r"a/\xe9.png", r"caf\xe9", "[b]x", "0.75", "alr-fast review runs/x"):
        assert part in text


@pytest.mark.parametrize(
    ("held_out", "shown"), [(None, "acc 65.8%  changed"), (0.25, "acc 65.8%  held out acc 25.0%  ")]
)
def test_without_test_samples_no_test_accuracy_is_shown(capsys, clock, terminal, held_out, shown):
    changes = {"test_loss": None, "test_accuracy": None, "validation_accuracy": held_out}
    (line,) = train_lines(capsys, clock, epochs=1, **changes)[1]
    assert shown in line and "test" not in line
    with RunDisplay("json").training("alr", epochs=1, steps=4) as display:
        display.epoch(record(1, **changes))
    event = json.loads(capsys.readouterr().out)
    assert (event["test_accuracy"], event["validation_accuracy"]) == (None, held_out)
    results = {"alr": method_summary([record(1, **changes)], None)}
    RunDisplay("quiet").table(results, epochs=1, folder=Path("runs/x"))
    table = capsys.readouterr().out
    assert "no test samples" in table and "test acc" not in table and "best" not in table
    assert ("held out" in table) == ("not measured" not in table) == (held_out is not None)
    out = terminal(120)
    with RunDisplay().training("alr", epochs=2, steps=4) as display:
        display.epoch(record(1, **changes))
        display._progress.refresh()
    assert ("held out 25.0%" in out.getvalue()) == (held_out is not None)
    assert "test" not in out.getvalue()


@pytest.mark.parametrize(
    ("accuracy", "balanced", "worst", "line"),
    [
        (0.9, 0.8, 0.7, "alr: balanced accuracy 80.0%; worst classes: cat (70.0%), [b] (75.0%)"),
        (0.9, 0.88, 0.7, "alr: balanced accuracy 88.0%; worst classes: cat (70.0%), [b] (75.0%)"),
        (0.9, 0.89, 0.86, None),
        (0.9, None, None, None),
    ],
)
def test_unequal_classes_have_a_line(capsys, accuracy, balanced, worst, line):
    history = [record(1, test_accuracy=accuracy, test_balanced_accuracy=balanced)]
    summary = method_summary(history, None)
    if worst is not None:
        summary["worst_classes"] = {"cat": worst, "[b]": worst + 0.05}
    RunDisplay("lines").table({"alr": summary}, epochs=1, folder=Path("runs"))
    lines = capsys.readouterr().out.splitlines()
    assert [text for text in lines if text.startswith("alr: ")] == ([line] if line else [])


def test_a_suspect_that_keeps_its_label_is_shown_with_the_next_class(capsys):
    labels = find_issues([0, 1], [[0.9, 0.1], [0.1, 0.9]], class_names=["cat", "dog"])
    sample = {"id": 3, "path": "a.png", "given_name": "cat", "refined_name": "cat", "score": 0.75}
    display = RunDisplay("lines")
    display.suspects(labels, [sample | {"next_name": "dog"}], review="alr-fast review runs/x")
    assert "cat (next: dog)" in capsys.readouterr().out
    for other in ({"next_name": None}, {"refined_name": "dog", "next_name": "dog"}):
        display.suspects(labels, [sample | other], review="alr-fast review runs/x")
    assert "next" not in capsys.readouterr().out.replace("next highest", "")

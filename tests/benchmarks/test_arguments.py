"""The arguments of the benchmarks' commands: mistakes are one line, as in all others."""

import pytest

from benchmarks.harness.command import new_parser, parse


@pytest.fixture
def parser():
    return new_parser("Measures.", device="cpu", threads="of all", seconds=(1, "in total"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--devic", "cpu"], "--devic: no such option; did you mean --device?"),
        (["-device", "cpu"], "-device: no such option; did you mean --device?"),
        (["--device", "gpu"], "--device gpu: must be one of cpu, cuda; did you mean cpu?"),
        (["--threads="], "--threads: the value is empty (a variable that is not set?); pass one"),
        (["--threads", "0"], "--threads 0: pass 1 or more"),
        (["--threads", "x"], "--threads x: must be an integer"),
        (["--seconds", "-1"], "--seconds -1.0: pass 0 or more"),
        (["--json", "/nowhere/rows"], "--json /nowhere/rows: there is no such folder"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_mistake_is_one_line(parser, words, error, capsys):
    with pytest.raises(SystemExit) as end:
        parse(parser, words)
    assert end.value.code == 2
    out, shown = capsys.readouterr()
    assert (out, shown.count("\n")) == ("", 1)
    assert shown.startswith(f"error: {error}")

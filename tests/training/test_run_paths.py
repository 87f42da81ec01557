"""Which folder a path of a run means."""

from pathlib import Path

import pytest

from alr_fast import export
from alr_fast.training.config.command_line import parse
from alr_fast.training.run_paths import actual_path, run_of

NAMES = ["20260131-000001-digits", "20260131-000002-digits", "20260131-000003-digits"]


@pytest.fixture
def runs(tmp_path):
    """Three runs, of which the last has not finished."""
    for name in NAMES:
        (tmp_path / name / "checkpoints" / "000000007").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 3\n")
    for name in NAMES[:2]:
        (tmp_path / name / "summary.json").touch()
    return tmp_path


def test_latest_is_the_newest_finished_run_where_there_is_no_link(runs):
    assert actual_path(runs / "latest") == runs / NAMES[1]
    assert actual_path(runs / "latest" / "config.yaml") == runs / NAMES[1] / "config.yaml"
    for path in (runs, runs / NAMES[2], runs / "other" / "latest", Path("latest")):
        assert actual_path(path) == path
    (runs / "latest").symlink_to(NAMES[0])
    assert actual_path(runs / "latest") == runs / "latest"


def test_the_run_of_a_path(runs, monkeypatch):
    run = runs / NAMES[1]
    monkeypatch.chdir(run)
    (runs / "latest").symlink_to(NAMES[1])
    for path in (run, run / "checkpoints/000000007", runs / "latest", Path()):
        assert run_of(path) == run
    for path in (runs, runs / "none", run / "checkpoints"):
        assert run_of(path) is None


def test_commands_find_the_latest_run_without_a_link(runs, capsys):
    assert export.main([str(runs / "latest")]) == 2
    assert f"{runs / NAMES[1]}/config.yaml" in capsys.readouterr().err
    assert parse(["--config", str(runs / "latest" / "config.yaml")]).seed == 3

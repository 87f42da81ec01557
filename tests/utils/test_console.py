from alr_fast.utils.console import Console
from helpers.terminal import open_terminal


def test_track_shows_a_bar_on_a_terminal(monkeypatch):
    out = open_terminal(monkeypatch, 100)
    assert list(Console().track([1, 2], description="decoding", total=2)) == [1, 2]
    assert "100%" in out.getvalue()
    assert "decoding: 2" not in out.getvalue()

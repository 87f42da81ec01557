import errno
import os

import pytest

from alr_fast.errors import UserError
from alr_fast.utils.files import replacing, writing


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "Disk quota exceeded; free some space"),
        (errno.EROFS, "Read-only file system; make it writable"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path, number, remedy):
    with pytest.raises(UserError) as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{tmp_path / 'x'}: {remedy} and try again"

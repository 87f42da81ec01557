"""What a system, a file system or a container may refuse."""

import errno
import os
import pwd

import pytest

from alr_fast.utils.command import exit_status
from alr_fast.utils.system import NO_HOME, home_folder, make_link, provide_home, set_mode, user_name


def failing(number, filename=None):
    def call(*arguments, **options):
        raise OSError(number, os.strerror(number), *([filename] if filename else []))

    return call


@pytest.fixture
def nobody(monkeypatch):
    """A user whose number has no entry in the list of users, without HOME."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", dict().__getitem__)


def test_a_user_without_a_home_gets_one_that_is_not_there(nobody):
    assert home_folder() == NO_HOME
    provide_home()
    assert os.environ["HOME"] == str(NO_HOME)
    assert os.path.expanduser("~/x") == f"{NO_HOME}/x"


def test_a_user_without_a_name(nobody, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert user_name() is None
    monkeypatch.setenv("USER", "ada")
    assert user_name() == "ada"


@pytest.mark.parametrize(("home", "expected"), [("/x", "/x"), ("", "/"), ("x", str(NO_HOME))])
def test_a_home_of_the_environment(monkeypatch, home, expected):
    monkeypatch.setenv("HOME", home)
    assert str(home_folder()) == expected
    provide_home()
    assert os.environ["HOME"] == (str(NO_HOME) if home == "x" else home)


def test_a_home_of_the_list_of_users(monkeypatch):
    monkeypatch.delenv("HOME")
    provide_home()
    assert "HOME" not in os.environ


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "symlink", failing(number))
    assert make_link(tmp_path / "link", "target") is False


def test_a_link_that_cannot_be_made(tmp_path, monkeypatch):
    assert make_link(tmp_path / "link", "target") is True
    monkeypatch.setattr(os, "symlink", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        make_link(tmp_path / "other", "target")


def test_a_file_system_without_modes(monkeypatch):
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    set_mode(1, 0o600)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "change its permissions"),
        (errno.ENOSPC, "free some space"),
        (errno.ELOOP, "remove the link"),
        (errno.EMFILE, "raise the limit on open files (ulimit -n)"),
        (errno.ENXIO, "check it"),
    ],
)
def test_a_refusal_that_nobody_has_handled_is_one_line(capsys, number, remedy):
    assert exit_status(failing(number, "/a/b")) == 2
    message = f"error: /a/b: {os.strerror(number)}; {remedy} and try again\n"
    assert capsys.readouterr().err == message


def test_a_refusal_without_a_name_is_a_fault_of_the_program():
    with pytest.raises(OSError, match="Bad file descriptor"):
        exit_status(failing(errno.EBADF))

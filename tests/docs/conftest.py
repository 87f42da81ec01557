"""The site of the documentation, built once."""

import os
import subprocess
import sys

import pytest

from helpers.documents import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folder of the site, built as `make docs` builds it: any warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    words = ["-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return folder

"""Fixtures for several folders of tests."""

import os
import shutil
import signal

# Several processes share the cores (`make test`); torch and its children read this at the start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from alr_fast._loading import HAS_CUDA

_CHROMIUM = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)


# The first backward pass of a process decides whether autograd starts threads for other devices,
# with which a process cannot be forked any more. A fake device, as the compiler adds it, counts.
torch.ones(1, requires_grad=True).sum().backward()


# A shell starts a process in the background with Ctrl-C ignored; some tests press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Examples of property tests: the same in each run, new ones where slow tests run, too."""
    settings.register_profile("repeatable", derandomize=True, database=None)
    if "slow" not in config.option.markexpr.replace("not slow", ""):
        settings.load_profile("repeatable")


def _devices():
    yield pytest.param(torch.device("cpu"), id="cpu")
    if torch.cuda.is_available() and HAS_CUDA:
        yield pytest.param(torch.device("cuda", 0), id="cuda")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keeps cached files of the tests out of the user's cache, in child processes as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=list(_devices()))
def device(request):
    """Device of a test: the CPU, and a GPU if there is one that the build supports."""
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """Torch with one thread: faster for small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Headless Chromium at desktop size; it saves files in `driver.downloads`."""
    from selenium import webdriver  # not installed for the tests of a wheel
    from selenium.webdriver.chrome.service import Service

    chromedriver = shutil.which("chromedriver")
    browsers = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser = next(filter(None, browsers), None)
    if chromedriver is None or browser is None:
        missing = "chromedriver" if browser else "chromium"
        pytest.skip(f"no {missing} on this machine (Debian: chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in _CHROMIUM:
        options.add_argument(argument)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With a given driver, selenium does not search the network for one.
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.downloads = downloads
    yield driver
    driver.quit()

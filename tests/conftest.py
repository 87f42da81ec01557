"""Fixtures of more than one folder of tests."""

import shutil

import pytest
import torch

from alr_fast._operators import HAS_CUDA

_CHROMIUM = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)


def _devices():
    yield pytest.param(torch.device("cpu"), id="cpu")
    if torch.cuda.is_available() and HAS_CUDA:
        yield pytest.param(torch.device("cuda", 0), id="cuda")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """What the tests cache stays out of the user's cache, in child processes, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=list(_devices()))
def device(request):
    """Where a test runs: the CPU, and a GPU where there is one that the build has kernels for."""
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: faster for small nets."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Headless Chromium, at desktop size; `driver.downloads` is where it saves files."""
    from selenium import webdriver  # the tests of a wheel have none
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
    # Given a driver, selenium looks for none on the network.
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.downloads = downloads
    yield driver
    driver.quit()

"""The examples of frameworks refine labels, with few lines of code."""

import importlib
import sys
from pathlib import Path

import pytest

from helpers.process_groups import run_group

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {
    "plain_loop": (),
    "timm_train": ("timm",),
    "hugging_face": ("transformers", "accelerate"),
    "accelerate_loop": ("accelerate",),
    "lightning_module": ("lightning",),
    "fsdp": (),
}
MOST_LINES = 12


def run_example(name: str) -> tuple[float, float]:
    """Runs an example; returns the share of right labels before and after."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name).main()
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("name", [name for name in NEEDS if name != "fsdp"])
def test_an_example_refines_labels(name):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    before, after = run_example(name)
    assert 0.55 < before < 0.65 and after > 0.9


@pytest.mark.parametrize("processes", [1, 2])
def test_the_example_of_sharded_parameters_refines_labels(processes):
    from helpers.example_workers import run_fsdp

    for before, after in run_group(processes, run_fsdp, str(FOLDER)):
        assert 0.55 < before < 0.65 and after > 0.9


@pytest.mark.parametrize("name", NEEDS)
def test_lines_of_label_refinement_are_few_and_marked(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    marked = [line for line in lines if line.endswith("  # alr")]
    assert len(marked) <= MOST_LINES
    body = lines[lines.index('"""', 1) :] if '"""' in lines[1:] else lines
    names = ("alr_fast", "ALR", "LabelBank", "IndexedDataset", "OwnedRows", "set_epoch", "check()")
    for line in body:
        words = line.strip()
        if words.startswith(('"""', "#")) or not any(name in words for name in names):
            continue
        # A call over several lines is marked in those that mention the refinement.
        assert line in marked or words == "trainer = ALRTrainer(", line


def test_every_example_is_here():
    imports = "from digits import"
    found = {p.stem for p in FOLDER.glob("*.py") if imports in p.read_text()}
    assert found == set(NEEDS)

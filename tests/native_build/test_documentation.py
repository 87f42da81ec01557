"""The page about the build quotes messages that exist."""

import re

from helpers.source_tree import ROOT

SOURCES = ("setup.py", "Makefile", "CMakeLists.txt", "cmake/cuda.cmake", "scripts/check_tools.sh")
OF_PIP = {"Using cached", "No matching distribution found for setuptools"}
# What the sources have in place of an example.
VARIABLES = {
    "cmake was": "{name} was",
    "ninja was": "{name} was",
    ".venv/bin/python": "$python",
    ".venv": "$venv",
    "12.4": "${CUDA_VERSION}",
    "13.0": "${TORCH_CUDA_VERSION}",
}


def test_the_symptoms_of_failed_builds_are_messages():
    page = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")
    section = page.split("## If a build fails\n")[1].split("\n## ")[0]
    symptoms = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    quoted = [text for symptom in symptoms for text in re.findall("`([^`]+)`", symptom)]
    sources = "".join((ROOT / name).read_text(encoding="utf-8") for name in SOURCES)
    assert len(quoted) > 12
    for text in set(quoted) - OF_PIP:
        for example, variable in VARIABLES.items():
            text = text.replace(example, variable)
        for part in re.split(r"\.\.\.|[():;]", text):
            assert part.strip() in sources, text

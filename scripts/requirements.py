"""Prints the requirements in pyproject.toml: `requirements.py build test` for build and tests.

pip cannot install the dependencies of a package without building it first, and the build needs
torch.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def requirements(project: dict, names: list[str]) -> list[str]:
    """The dependencies of the package and of the named extras, which may include other extras."""
    lines = list(project["project"]["dependencies"])
    queue = list(names)
    while queue:
        name = queue.pop()
        if name == "build":
            lines += project["build-system"]["requires"]
            continue
        for line in project["project"]["optional-dependencies"][name]:
            if line.startswith(project["project"]["name"] + "["):
                queue += line.split("[")[1].rstrip("]").split(",")
            else:
                lines.append(line)
    return sorted(set(lines))


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    print("\n".join(requirements(tomllib.loads(text), sys.argv[1:])))

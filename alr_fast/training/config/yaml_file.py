"""Files of options in YAML, which may be anybody's. YAML is imported when it is needed."""

from pathlib import Path
from typing import Any

from alr_fast.utils.files import open_regular

_LONGEST = 100_000  # bytes; a configuration has some thousand
_MOST_NODES = 100_000


def options_text(options: dict[str, Any]) -> str:
    """Options as YAML, in their order."""
    import yaml

    return yaml.safe_dump(options, sort_keys=False)


def read_options(path: Path) -> dict[str, Any]:
    """The options in a file; none if it is empty.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no YAML, contains something else than options, or is too large.
    """
    import yaml

    with open_regular(path, _LONGEST) as file:
        text = file.read()
    try:
        content = _load(text.decode("utf-8"))
    except (yaml.YAMLError, RecursionError, OverflowError, TypeError) as error:
        raise ValueError(f"not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError("must contain options as 'name: value' lines")
    return content


def _load(text: str) -> Any:
    """Builds plain values only, and refuses nested aliases that stand for more than they say."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: Any, known: dict[int, int]) -> int:
    """Number of values of a node, those of an alias counted where it stands."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # until it is known: an alias inside of its own anchor
        children = node.value if isinstance(node.value, list) else []  # of a mapping: pairs
        parts = [part for child in children
                 for part in (child if isinstance(child, tuple) else (child,))]  # fmt: skip
        known[id(node)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(node)]

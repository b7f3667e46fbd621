"""Read YAML strictly: no key twice, nothing endless, and the line of each key."""

import re
from typing import Any

import yaml

_MOST_DEPTH = 50
_MOST_NODES = 100_000


class NotYaml(ValueError):
    """A text cannot be read. `line` counts from 1; None if it is unknown. The error text contains no value."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def read_yaml(text: str, lines: dict[str, int] | None = None) -> Any:
    """Read YAML of plain values, in which no key is written twice and nothing contains itself.

    `lines` receives the line of each key and item, such as `server.hosts[0]`.

    Raises:
        NotYaml: with the reason.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_endless(node)
        value = loader.construct_document(node)
        if lines is not None:
            _add_lines(node, "", lines)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise NotYaml(_without_value(error.problem or ""), mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError) as error:
        raise NotYaml(" ".join(str(error).split())) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # PyYAML's own, as for `!!bool maybe`
        raise NotYaml("a value does not match its tag") from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses deep nesting and duplicate keys. YAML itself would keep the last of duplicate keys."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self._depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", parent.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value} is written twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _add_lines(node: yaml.Node, path: str, lines: dict[str, int]) -> None:
    parts: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        parts = [(join_path(path, key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(f"{path}[{index}]", item, item) for index, item in enumerate(node.value)]
    for name, marked, value in parts:
        lines[name] = marked.start_mark.line + 1
        _add_lines(value, name, lines)


def _refuse_endless(root: yaml.Node) -> None:
    """Refuse a document whose aliases contain themselves or expand to millions of values."""
    waiting = [(root, 0)]
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        node, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, "nested too deeply, or an alias refers to a value that contains it", node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]
    raise yaml.MarkedYAMLError(None, None, "too many values", root.start_mark)


def _without_value(problem: str) -> str:
    """Remove the alias or tag that PyYAML quotes: it may be a password that begins with * or !."""
    hidden = re.sub(r"(alias|tag) (?:handle )?'.*'", r"\1", problem, flags=re.DOTALL)
    return problem if hidden == problem else f"{hidden}; a text that begins with * or ! needs quotes"


def join_path(path: str, key: object) -> str:
    """Return the path of a key inside the mapping at `path`."""
    return f"{path}.{key}" if path else str(key)

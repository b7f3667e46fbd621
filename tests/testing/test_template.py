"""The template of `candled plugin new`: its files, and the distribution that is made from them."""

import ast
import re
import tomllib

import pytest
import yaml

from candled.cli import main
from candled.testing.template import FILES, render_files


def test_the_files_are_valid_and_name_the_exchange():
    files = render_files("coin-fair")
    assert len(files) == len(FILES)
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "candled-coin-fair"
    assert project["project"]["entry-points"]["candled"] == {"coin-fair": "candled_coin_fair"}
    steps = yaml.safe_load(files[".github/workflows/test.yml"])["jobs"]["test"]["steps"]
    assert steps[1]["with"]["python-version"] == "${{ matrix.python }}"
    for path, text in files.items():
        assert "$" not in text.replace("${{", ""), path
        if path.endswith(".py"):
            assert max(map(len, text.splitlines())) <= 120
            compile(text, path, "exec")


def test_four_functions_are_to_be_filled_in():
    tree = ast.parse(render_files("coinfair")["candled_coinfair/exchange.py"])
    empty = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "NotImplementedError" in ast.unparse(node)
    ]
    assert empty == ["subscribe", "read_frame", "fetch_markets", "fetch_history"]


def test_the_tests_of_the_template_are_six_lines():
    text = render_files("coinfair")["tests/test_candled_coinfair.py"]
    assert len([line for line in text.splitlines() if line]) <= 6


@pytest.mark.parametrize("name", ["", "Coinfair", "1coin", "a/b", "../a", "a--b", "coin fair", "class"])
def test_a_name_that_no_exchange_can_have_is_refused(name, tmp_path, capsys):
    assert main(["plugin", "new", name, "--directory", str(tmp_path)]) == 2
    assert "expected a name such as coinfair" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(tmp_path, capsys):
    assert main(["plugin", "new", "coinfair", "--directory", str(tmp_path)]) == 0
    assert re.search(
        r"fill in the four functions of .*candled-coinfair/candled_coinfair/exchange.py", capsys.readouterr().out
    )
    assert main(["plugin", "new", "coinfair", "--directory", str(tmp_path)]) == 2
    assert "candled-coinfair: cannot be written: File exists" in capsys.readouterr().err

"""Values inside branches, shown outside in the child; and the nodes of all bodies, told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import UnsupportedError
from graphopt.isolated_bodies import flat_nodes
from graphopt.isolation import Worker

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
NESTED = (
    HEAD
    + """
g (bool c, bool d, float[2] x) => (float[2] y)
{
  y = If (c) <
    then_branch = one () => (float[2] t) <float[2] a> {
      a = Neg (x)
      t = If (d) <
        then_branch = deep () => (float[2] p) { p = Add (a, x) },
        else_branch = low () => (float[2] q) <float[2] b> { b = Exp (a) q = Sqrt (b) }
      >
    },
    else_branch = two () => (float[2] e) { e = Abs (x) }
  >
}
"""
)
X = np.array([1.0, -2.0], np.float32)


def saved(text: str, folder: Path) -> Path:
    model = onnx.parser.parse_model(text)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def shown(path: Path, c: bool, d: bool, *names: str) -> dict[str, Any]:
    feed = {"c": np.array(c), "d": np.array(d), "x": X}
    with Worker() as worker:
        found = worker.run_model(path, feed, optimize=False, extra_outputs=names)
        assert set(found) == {"y", *names}
        return found


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("d", [True, False])
def test_values_of_nested_branches_have_elements_where_the_branch_was_taken(
    c: bool, d: bool, tmp_path: Path
) -> None:
    found = shown(saved(NESTED, tmp_path), c, d, "a", "p", "b", "q", "e")
    taken = {
        "a": -X if c else None,
        "p": 0 * X if c and d else None,
        "b": np.exp(-X) if c and not d else None,
        "q": np.sqrt(np.exp(-X)) if c and not d else None,
        "e": None if c else np.abs(X),
    }
    for name, wanted in taken.items():
        if wanted is None:
            assert found[name].size == 0
            assert found[name].dtype == np.float32
        else:
            np.testing.assert_allclose(found[name], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["y"], next(found[n] for n in "epq" if found[n].size))


def test_a_value_in_a_loop_is_refused(tmp_path: Path) -> None:
    text = HEAD + (
        "g (float[2] x) => (float[2] y) <int64 n = {2}, bool t = {1}> {"
        " y = Loop (n, t, x) <body = b (int64 i, bool c, float[2] s) => (bool o, float[2] u)"
        " <float[2] v> { o = Identity (c) v = Neg (s) u = Exp (v) }> }"
    )
    with Worker() as worker, pytest.raises(UnsupportedError, match="'v' is inside Loop"):
        worker.run_model(saved(text, tmp_path), {"x": X}, optimize=False, extra_outputs=["v"])


def test_a_value_of_unknown_type_is_refused(tmp_path: Path) -> None:
    path = saved(NESTED.replace("<float[2] b>", ""), tmp_path)
    with pytest.raises(UnsupportedError, match="'b' is inside a branch, and its type"):
        shown(path, True, True, "b")


def test_an_output_with_the_name_that_a_value_would_get(tmp_path: Path) -> None:
    path = saved(NESTED, tmp_path)
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[0].output[0] = "a/outside/1"
    onnx.save(model, path)
    feed = {"c": np.array(False), "d": np.array(False), "x": X}
    with Worker() as worker:
        found = worker.run_model(path, feed, optimize=False, extra_outputs=["e"])
        assert list(found) == ["a/outside/1", "e"]
        with pytest.raises(UnsupportedError, match="has '/outside/' in its name"):
            worker.run_model(path, feed, optimize=False, extra_outputs=["a"])


def test_names_of_bodies_that_do_not_see_each_other_are_told_apart() -> None:
    text = (
        HEAD
        + """
g (bool c, float[2] x) => (float[2] y, float[2] z)
{
  z = Neg (x)
  y = If (c) <
    then_branch = one () => (float[2] t) { m = Exp (z) t = Sqrt (m) },
    else_branch = two () => (float[2] t) { m = Abs (x) t = Neg (m) }
  >
}
"""
    )
    nodes = flat_nodes(onnx.parser.parse_model(text).graph)
    assert [(n["op"], n["inputs"], n["outputs"]) for n in nodes] == [
        ("Neg", ["x"], ["z"]),
        ("If", ["c"], ["y"]),
        ("Exp", ["z"], ["m"]),
        ("Sqrt", ["m"], ["t"]),
        ("Abs", ["x"], ["m in graph 2"]),
        ("Neg", ["m in graph 2"], ["t in graph 2"]),
    ]

"""ONNX's own backend suite through the loader, a compile without passes, and the default pipeline.

Every case must load, survive a compile without passes and be saved equal; every case that
onnxruntime runs must give the outputs of the suite after the default pipeline.

    python benchmarks/backend_suite.py [--every N] [--list]

A case counts as *equal* when the saved file has the same nodes, attributes, initializers, inputs
and outputs as the original; what the loader normalizes (functions inlined, initializers taken out
of the inputs, nodes sorted, dimensions named) is compared by its outputs in place of its text.
"""

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass
class Case:
    """One case of the suite with its data."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@dataclass
class Outcome:
    """What became of a case; an empty text is success."""

    name: str
    load: str = ""
    equal: str = ""
    runs: str = ""
    pipeline: str = ""
    too_old: str = ""
    untyped: str = ""


def cases() -> Iterator[Case]:
    """Yield every case of the suite with data."""
    from onnx.backend.test.loader import load_model_tests

    for kind in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_model_tests(kind=kind)
        for case in found:
            if case.model is not None:
                data: list[Any] = list(case.data_sets or ())
                yield Case(case.name, case.model, data, case.rtol, case.atol)
            else:
                folder = Path(case.model_dir or "")
                model = onnx.load(str(folder / "model.onnx"))
                data = [_read_set(model, part) for part in sorted(folder.glob("test_data_set_*"))]
                yield Case(case.name, model, data, case.rtol, case.atol)


def _read_set(model: onnx.ModelProto, folder: Path) -> tuple[list[Any], list[Any]]:
    sides = []
    for side, infos in (("input", model.graph.input), ("output", model.graph.output)):
        arrays = []
        for index in range(len(list(folder.glob(f"{side}_*.pb")))):
            text = (folder / f"{side}_{index}.pb").read_bytes()
            tensor = onnx.TensorProto()
            tensor.ParseFromString(text)
            arrays.append(numpy_helper.to_array(tensor))
        assert len(arrays) <= len(infos)
        sides.append(arrays)
    return sides[0], sides[1]


def same_model(original: onnx.ModelProto, saved: onnx.ModelProto) -> str:
    """Return "" when both say the same, else the first difference."""
    if list(map(_node, original.graph.node)) != list(map(_node, saved.graph.node)):
        return "nodes differ"
    tensors = [{t.name: t for t in m.graph.initializer} for m in (original, saved)]
    if tensors[0].keys() != tensors[1].keys():
        return "initializers differ"
    for name, tensor in tensors[0].items():
        left, right = numpy_helper.to_array(tensor), numpy_helper.to_array(tensors[1][name])
        if left.dtype != right.dtype or left.tobytes() != right.tobytes():
            return f"initializer '{name}' differs"
    for side in ("input", "output"):
        left_infos, right_infos = getattr(original.graph, side), getattr(saved.graph, side)
        if [i.name for i in left_infos] != [i.name for i in right_infos]:
            return f"{side}s differ"
        for a, b in zip(left_infos, right_infos, strict=True):
            if a.type.tensor_type.elem_type != b.type.tensor_type.elem_type:
                return f"type of {side} '{a.name}' differs"
    opsets = [{i.domain: i.version for i in m.opset_import} for m in (original, saved)]
    return "" if opsets[0] == opsets[1] else "opset imports differ"


def _node(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes: list[Any] = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            bodies = [attribute.g, *attribute.graphs]
            attributes.append((attribute.name, [list(map(_node, b.node)) for b in bodies]))
        elif attribute.type == onnx.AttributeProto.TENSOR:
            array = numpy_helper.to_array(attribute.t)
            plain = array.tolist() if array.dtype == object else array.tobytes()
            attributes.append((attribute.name, (str(array.dtype), array.shape, plain)))
        else:
            bare = onnx.AttributeProto()
            bare.CopyFrom(attribute)
            bare.ClearField("doc_string")
            attributes.append((attribute.name, bare.SerializeToString(deterministic=True)))
    domain = "" if node.domain == "ai.onnx" else node.domain
    return node.op_type, domain, list(node.input), list(node.output), attributes


def close(case: Case, found: list[Any], expected: list[Any]) -> str:
    """Return "" when outputs are the suite's within the suite's tolerance."""
    for index, (a, b) in enumerate(zip(expected, found, strict=False)):
        if isinstance(a, list) or isinstance(b, list):
            if not (isinstance(a, list) and isinstance(b, list) and len(a) == len(b)):
                return f"output {index}: sequences of different length"
            if wrong := close(case, b, a):
                return f"sequence {wrong}"
            continue
        left, right = np.asarray(a), np.asarray(b)
        if left.dtype.kind in "OUS":
            if left.astype(str).tolist() != right.astype(str).tolist():
                return f"output {index}: strings differ"
            continue
        if left.shape != right.shape:
            return f"output {index}: shape {right.shape} in place of {left.shape}"
        if left.dtype != right.dtype:
            return f"output {index}: {right.dtype} in place of {left.dtype}"
        if left.dtype.kind not in "biufc":
            left, right = left.astype(np.float32), right.astype(np.float32)
        if not np.allclose(left, right, rtol=case.rtol, atol=case.atol, equal_nan=True):
            return f"output {index}: values differ"
    return ""


class Runner:
    """Takes cases through graphopt; native code runs in one isolated child."""

    def __init__(self, folder: Path) -> None:
        from graphopt.isolation import Worker

        self.folder = folder
        self.worker = Worker()

    def run(self, case: Case) -> Outcome:
        """Take one case through everything."""
        import graphopt

        outcome = Outcome(case.name)
        original = self.folder / "original.onnx"
        original.write_bytes(case.model.SerializeToString())
        saved = self.folder / "saved.onnx"
        try:
            result = graphopt.compile(original, passes=(), verify=False)
            result.save(saved)
        except graphopt.GraphoptError as error:
            outcome.load = f"{type(error).__name__} {error.code}: {error.message}"
            return outcome
        except Exception as error:
            outcome.untyped = f"{type(error).__name__}: {error}"
            return outcome
        outcome.equal = same_model(case.model, onnx.load(str(saved)))
        before = self._outputs(case, original, len(case.data))
        if isinstance(before, str):
            outcome.runs = before
            if outcome.equal and result.program.notes:
                outcome.equal = ""  # normalized, and nothing here can run it
            return outcome
        if outcome.equal and result.program.notes:
            outcome.equal = self._against(case, saved)
        try:
            full = graphopt.compile(original, verify=False)
            full.save(saved)
        except graphopt.GraphoptError as error:
            text = f"{type(error).__name__} {error.code}: {error.message}"
            if error.code == "opset-too-old":
                outcome.too_old = text
            else:
                outcome.pipeline = text
            return outcome
        except Exception as error:
            outcome.untyped = f"{type(error).__name__}: {error}"
            return outcome
        outcome.pipeline = self._against(case, saved)
        return outcome

    def _outputs(self, case: Case, path: Path, count: int) -> list[list[Any]] | str:
        import graphopt
        from graphopt.frontends.onnx_loader import load_onnx

        names = [v.name or "" for v in load_onnx(path).graph.inputs]
        results = []
        try:
            for inputs, _ in case.data[:count]:
                feed = dict(zip(names, map(_plain, inputs), strict=False))
                found = self.worker.run_model(path, feed, optimize=False)
                results.append(list(found.values()))
        except graphopt.GraphoptError as error:
            return f"{error.code}: {error.message}"
        for found_set, (_, expected) in zip(results, case.data, strict=False):
            wrong = close(case, found_set, list(map(_plain, expected)))
            if wrong:
                return f"onnxruntime differs from the suite: {wrong}"
        return results

    def _against(self, case: Case, path: Path) -> str:
        found = self._outputs(case, path, len(case.data))
        return found if isinstance(found, str) else ""


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def sweep(every: int = 1) -> list[Outcome]:
    """Take every ``every``-th case through everything."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        try:
            return [runner.run(c) for i, c in enumerate(cases()) if i % every == 0]
        finally:
            runner.worker.close()


def main() -> None:
    """Print the counts; exit 1 when a case ends in an untyped error or a wrong output."""
    parser = argparse.ArgumentParser(description="ONNX's backend suite through graphopt")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="list every case that fails")
    options = parser.parse_args()
    outcomes = sweep(options.every)
    print(f"cases {len(outcomes)}")
    for field, text in (
        ("untyped", "end in an untyped error"),
        ("load", "are refused with a typed error"),
        ("equal", "are saved differently"),
        ("runs", "do not run in onnxruntime as the suite says"),
        ("too_old", "run, and the pipeline refuses their opset (below 7)"),
        ("pipeline", "run, but not after the default pipeline"),
    ):
        failed = [o for o in outcomes if getattr(o, field)]
        print(f"{len(failed):>6} {text}")
        kinds = Counter(getattr(o, field).split(":")[0] for o in failed)
        for kind, count in kinds.most_common(6):
            print(f"         {count:>5} {kind}")
        if options.list:
            for outcome in failed:
                print(f"         {outcome.name}: {getattr(outcome, field)[:200]}")
    good = [o for o in outcomes if not (o.untyped or o.load or o.runs or o.pipeline or o.too_old)]
    print(f"{len(good):>6} go through the default pipeline with the outputs of the suite")
    if any(o.untyped or o.pipeline or o.equal for o in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

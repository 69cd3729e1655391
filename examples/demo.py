"""The main job on a real network: MobileNetV2 from torch, compiled, planned, verified, reported."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import graphopt  # noqa: E402 - the checkout must be on the path for `models`
from models import build  # noqa: E402


def main() -> None:
    """Compile, print the table, write the model and the report under ``out/``."""
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    sample = build("mobilenet_v2")
    result = graphopt.compile(
        sample.module,
        sample.example_inputs,
        target="cpu",
        dynamic_shapes=sample.dynamic_shapes,
        bindings={"batch": 1},
        memory_limit="32MiB",
    )
    files = result.save(out / "mobilenet_v2.opt.onnx")
    report = result.to_html(out / "mobilenet_v2.html")
    print(result)
    print("\nWhy is the peak where it is?")
    print(result.explain(result.plan.peak.owners[0].name))
    print("\nwrote " + ", ".join(str(path.relative_to(ROOT)) for path in (*files, report)))
    try:
        graphopt.compile(
            sample.module,
            sample.example_inputs,
            target="stm32h743",
            dynamic_shapes=sample.dynamic_shapes,
            bindings={"batch": 1},
            verify=False,
        )
    except graphopt.DoesNotFitError as error:
        print(f"\nThe same network on a microcontroller:\n{error}")


if __name__ == "__main__":
    main()

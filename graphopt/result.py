"""What a compile returns: the model, its plan, the evidence, and ways to look at them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import OptionError
from graphopt.ir.program import Program
from graphopt.memory.plan import MemoryPlan
from graphopt.numerics.compare import Comparison
from graphopt.pipeline.pipeline import PassReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from graphopt.numerics.half import HalfReport
    from graphopt.numerics.hessians import WeightReport
    from graphopt.numerics.quantization_report import Quantization
    from graphopt.report.html import ReportData

_TORCH_SUFFIXES = (".ts", ".pt2")
_HINT = "save as .onnx, .ts (TorchScript) or .pt2"


@dataclass
class CompileResult:
    """A compiled model.

    Attributes:
        program: The optimized model.
        plan: The memory plan of the result.
        baseline: The memory plan of the model as it came in.
        report: What each pass did.
        verification: The comparison with the original; None when it was turned off.
        warnings: Sentences the user should read.
        title: Name of the model, for tables and the report.
        limits: Bytes allowed per pool.
        input_files: Files that belong to the input and are never written.
        input_bytes: Size of the input files; None for a model from memory.
        example_inputs: The user's samples, which the torch formats are traced and compared on;
            None: seeded ones.
        output_bytes: Size of the files of the last ``save``.
        quantization: What quantization measured, and why each node is integer or float; None when
            nothing was quantized.
        half: Which nodes stayed float32 in half precision, and why; None for other precisions.
        rounding: How the weights of each product were rounded on samples, and what that costs;
            None where no samples were given, or the precision is not one of weights.
    """

    program: Program
    plan: MemoryPlan
    baseline: MemoryPlan
    report: list[PassReport]
    verification: Comparison | None
    warnings: tuple[str, ...] = ()
    title: str = "model"
    limits: Mapping[str, int] = field(default_factory=dict)
    input_files: tuple[Path, ...] = ()
    input_bytes: int | None = None
    output_bytes: int | None = None
    example_inputs: Any = field(default=None, repr=False)
    quantization: "Quantization | None" = None
    half: "HalfReport | None" = None
    rounding: "WeightReport | None" = None

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        arena: bool = False,
    ) -> list[Path]:
        """Write the model; the suffix of ``path`` chooses the format.

        Args:
            path: ``.onnx``, ``.ts`` (TorchScript) or ``.pt2`` (an exported program of torch). The
                torch formats are read back and, when the compile was verified, compared with the
                program in onnxruntime before anything is written. What one call of an ordinary
                ``.ts`` file is predicted to take is then in ``plan.predictions["torchscript"]``.
            external_data: Weights beside the model (True), inside it (False), or by size (None:
                beside it above 1 GiB).
            arena: For ``.ts``: every intermediate lies at a planned offset of one buffer per data
                type, made when the file is loaded. The module takes the sizes of the plan only;
                ``docs/torchscript.md`` has the rules. What torch cannot direct into the arena
                becomes a warning of this result.

        Returns:
            The files written, the model first.

        Raises:
            OptionError: the suffix names no format, or the format has no such option.
            UnsupportedError: the model has no torch form, or torch is not installed.
            VerificationError: the file, read back, does not compute what the program computes.
            OutputError: nothing could be written; what was there before is still there.
        """
        target = Path(path)
        if arena and target.suffix != ".ts":
            raise OptionError(
                "arena-format",
                f"only a '.ts' file can hold a module with an arena: '{target}'",
                hint="leave arena out, or save as .ts",
            )
        if target.suffix in _TORCH_SUFFIXES:
            if external_data:
                raise OptionError(
                    "external-data-format",
                    f"a '{target.suffix}' file holds its weights itself: '{target}'",
                    hint="leave external_data out, or save as .onnx",
                )
            files = self._save_for_torch(target, arena=arena)
            self.output_bytes = sum(file.stat().st_size for file in files)
            return files
        if target.suffix != ".onnx":
            raise OptionError(
                "format-unknown",
                f"no format has the suffix '{target.suffix}': '{target}'",
                hint=_HINT,
            )
        from graphopt.backends.emit_onnx import emit_onnx

        files = emit_onnx(
            self.program,
            target,
            plan=self.plan,
            external_data=external_data,
            inputs=self.input_files,
        )
        self.output_bytes = sum(file.stat().st_size for file in files)
        return files

    def _save_for_torch(self, path: Path, *, arena: bool) -> list[Path]:
        from graphopt.numerics.torch_files import save_for_torch, save_with_arena
        from graphopt.quantization.interface import integer_samples

        options: dict[str, Any] = {
            "verify": self.verification is not None,
            "tolerance": None if self.verification is None else self.verification.tolerance,
            "example_inputs": integer_samples(self.program.model, self.example_inputs),
            "inputs": self.input_files,
        }
        if not arena:
            return save_for_torch(
                self.program, path, plan=self.plan, note=self._note_plan, **options
            )
        files, report = save_with_arena(self.program, path, plan=self.plan, **options)
        self.warnings += tuple(w for w in report.warnings() if w not in self.warnings)
        return files

    def _note_plan(self, plan: MemoryPlan) -> None:
        self.plan = plan

    def run(self, feeds: "Mapping[str, npt.NDArray[Any]]") -> "dict[str, npt.NDArray[np.generic]]":
        """Run the result in onnxruntime on one set of inputs, in a child process.

        Args:
            feeds: By name of input. Where inputs and outputs of the result are integers in the
                place of floats, floats are converted by the scales that it states and so are the
                outputs; integers are fed as they are, and give integers.

        Raises:
            UnsupportedError: onnxruntime cannot run it.
        """
        from graphopt.numerics.verify import run_program
        from graphopt.quantization.interface import interface_of, with_float_interface

        converted = [port.name for port in interface_of(self.program.model).inputs]
        floats = any(getattr(feeds.get(name), "dtype", None) == "float32" for name in converted)
        return run_program(
            with_float_interface(self.program) if floats else self.program, dict(feeds)
        )

    def explain(self, name: str) -> str:
        """Say where a tensor lies and why it is alive at the peak, or what became of a node.

        Raises:
            OptionError: nothing in the plan or the passes has that name.
        """
        from graphopt.explain import explain_name

        return explain_name(
            name,
            self.plan,
            self.program,
            self.report,
            self.quantization,
            self.half,
            self.rounding,
        )

    def report_data(self) -> "ReportData":
        """Return the data that tables and the HTML report show."""
        from graphopt.report.html import ReportData

        sizes = None
        if self.input_bytes is not None and self.output_bytes is not None:
            sizes = (self.input_bytes, self.output_bytes)
        return ReportData(
            title=self.title,
            plan=self.plan,
            baseline=self.baseline,
            passes=tuple(self.report),
            verification=None if self.verification is None else self.verification.to_dict(),
            limit_bytes=self.limits.get(self.plan.arena_pool.name),
            warnings=self.warnings,
            file_bytes=sizes,
            quantization=None if self.quantization is None else self.quantization.to_dict(),
        )

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report, one file without any outside reference.

        Raises:
            OutputError: it could not be written.
        """
        from graphopt.report.html import render_html
        from graphopt.safe_files import write_file

        return write_file(
            Path(path), render_html(self.report_data()).encode(), inputs=self.input_files
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, the form ``--json`` prints."""
        return {
            "title": self.title,
            "plan": self.plan.model_dump(mode="json"),
            "baseline": self.baseline.model_dump(mode="json"),
            "passes": [report.to_dict() for report in self.report],
            "verification": None if self.verification is None else self.verification.to_dict(),
            "warnings": list(self.warnings),
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
            "half": None if self.half is None else self.half.to_dict(),
            "rounding": None if self.rounding is None else self.rounding.to_dict(),
        }

    def summary(self, *, width: int = 100, unicode: bool = True) -> str:
        """Return the before/after table as text."""
        from graphopt.report.tables import summary_text

        return summary_text(self.report_data(), width=width, unicode=unicode)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from graphopt.report.html import render_notebook

        return render_notebook(self.report_data())

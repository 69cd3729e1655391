"""What every error code means, in two sentences: what happened, and what to do.

Shown by ``graphopt explain CODE``. A test compares this list with the codes in the source.
"""

from graphopt.error_codes_parts import CODES_OF_PARTS

CODES: dict[str, str] = {
    "activation-unknown": (
        "An option of fuse-activation names an operator that no convolution kernel fuses. "
        "Choose one that the message lists."
    ),
    "attribute-reference": (
        "A node outside of a function refers to a parameter of a function. The file was damaged "
        "or edited by hand: export it again."
    ),
    "attribute-type": (
        "An attribute has a type that ONNX does not define. The file was damaged or edited by "
        "hand: export it again."
    ),
    "bisect-bad-input": (
        "The property that bisect looks for is lost before any pass runs. Bisect the tool that "
        "made the model, or choose another metric or tolerance."
    ),
    "bounds-empty": (
        "The bounds of a dimension leave no size at all. Give a smallest size that is not above "
        "the largest."
    ),
    "checker-refused": (
        "The checker of the ONNX project refuses the model. Repair it, or export it again with "
        "a newer exporter."
    ),
    "code-unknown": (
        "No error has the code that was asked for. `graphopt explain` without a code lists them "
        "all."
    ),
    "config-key-unknown": (
        "A configuration file holds a key that is no option. Correct it; `graphopt compile "
        "--help` lists the options."
    ),
    "config-type": (
        "An option in a configuration file has a value of the wrong type. Correct the value; "
        "`--save-config` writes a file with the right types."
    ),
    "config-unreadable": (
        "A configuration file does not exist, cannot be read, or is no TOML. Correct the path "
        "or the file."
    ),
    "constant-not-as-inferred": (
        "Folding a constant gave another type or shape than inference had promised: a defect of "
        "graphopt. Leave the pass out (`--skip-pass fold-constants`) and report the model."
    ),
    "dataflow-invalid": "A dataflow breaks its own rules: a defect of graphopt. Report the model.",
    "dim-unreadable": "A `--dim` is not NAME=SIZE. Write `--dim batch=4`.",
    "dimension-division-by-zero": "A shape divides by zero at the given sizes. Bind other sizes.",
    "dimension-negative": (
        "A tensor states a negative dimension. Export the model again; dynamic dimensions are "
        "names or left out."
    ),
    "dimension-out-of-bounds": (
        "A dimension is bound to a size outside of the bounds that the model states. Bind a "
        "size inside them."
    ),
    "dimension-unknown": (
        "No input of the model has a dimension of that name. `graphopt inspect` lists the names."
    ),
    "does-not-fit": (
        "The plan takes more bytes than the pool offers. Use smaller inputs, a smaller network "
        "or data type, or another target; the message names who holds the bytes."
    ),
    "dump-folder-not-ours": (
        "The folder for dumps holds files that are no dumps, so nothing in it is cleared. Name "
        "a new or an empty folder."
    ),
    "dump-not-written": (
        "A dump could not be written. Choose a folder that you may write to and that has room."
    ),
    "duplicate-attribute": "A node gives an attribute twice. Export the model again.",
    "duplicate-function": "A model defines a function twice. Export the model again.",
    "duplicate-value-name": (
        "Two values of one graph have the same name. Every value needs a name of its own: "
        "export the model again."
    ),
    "effort-unknown": 'The effort of a search is neither "greedy" nor "exact". Use one of them.',
    "element-type-unknown": (
        "A tensor has an element type that ONNX does not define. Export the model again with a "
        "version that this installation knows."
    ),
    "external-data-format": (
        "External data was asked for a torch file, which holds its weights itself. Leave it out."
    ),
    "external-data-key": (
        "The reference to external data has a key that is missing, repeated or unknown. Save "
        "the model again."
    ),
    "external-data-length": (
        "The external data of a tensor has another length than its type and shape need. Save "
        "the model again."
    ),
    "external-data-link": (
        "The file with the weights is a symbolic link or has several names, which can lead "
        "outside of the model's folder. Copy the weights beside the model as a plain file."
    ),
    "external-data-missing": (
        "The file with the weights is not there or cannot be read. It must lie beside the "
        "model, under the name the model states."
    ),
    "external-data-no-folder": (
        "The weights are in another file, but the model did not come from a file, so there is "
        "no folder to look in. Pass the path of the model."
    ),
    "external-data-not-a-file": (
        "The weights are said to be in a folder, a pipe or a device. Copy them beside the model "
        "as a plain file."
    ),
    "external-data-overlap": (
        "Two tensors share a part of their bytes. They may share all or none: save the model again."
    ),
    "external-data-path": (
        "The model points at a file outside of its own folder, by an absolute path or `..`. "
        "Such paths can leak or destroy other files: copy the weights beside the model."
    ),
    "external-data-range": (
        "The offset or length of external data is no whole number, or lies outside of the file. "
        "Copy or save the model again."
    ),
    "file-changed": (
        "The model file changed while it was being read. Do not write to a model while it is "
        "compiled."
    ),
    "file-empty": "The file has no bytes. Copy or download it again.",
    "file-length": (
        "A file did not get the length that was computed for it: a defect of graphopt. Report "
        "the model."
    ),
    "file-not-found": "The file does not exist. Correct the path.",
    "file-too-large": (
        "The file is larger than an .onnx file can be. Store the weights as external data."
    ),
    "file-truncated": (
        "The file ends in the middle of a field. Copy or download it again and compare its size "
        "with the source."
    ),
    "file-unreadable": (
        "The operating system does not let the file be read. Correct its permissions or the path."
    ),
    "format-unknown": "No format has that name or suffix. Use one that the message lists.",
    "function-expansion": (
        "Inlining the functions of the model would make it enormous. No real model does that: "
        "the file is damaged or made to exhaust memory."
    ),
    "function-not-inlinable": (
        "A function of the model cannot be inlined. Inline it where the model is made, with "
        "onnx.inliner."
    ),
    "function-recursive": (
        "Functions of the model call themselves, which ONNX does not allow. Export the model again."
    ),
    "graph-cyclic": (
        "Nodes wait for each other in a circle. An ONNX graph has no circles: export the model "
        "again."
    ),
    "graph-has-cycle": (
        "Nodes read from each other in a circle. An ONNX graph has no circles: export the model "
        "again."
    ),
    "graph-invalid": (
        "A graph breaks a structural rule, which the message names. For a model of your own, "
        "repair it; after a pass it is a defect of graphopt: report it."
    ),
    "inference-refused": (
        "ONNX shape inference found a contradiction in the model. Export it again."
    ),
    "initializer-contradicts-input": (
        "An initializer and the graph input of the same name have different types or shapes. "
        "Export the model again."
    ),
    "initializer-empty": "An initializer lost its data: a defect of graphopt. Report the model.",
    "initializer-size": (
        "The data of an initializer does not have the bytes that its type and shape need. Copy "
        "or save the model again."
    ),
    "input-not-dense": (
        "An input is no dense tensor with known rank, so no samples can be made. Give example "
        "inputs, or turn verification off."
    ),
    "ir-version": (
        "The file has a version of the ONNX format that is not supported. Save it with another "
        "version of its exporter."
    ),
    "isolated-start-failed": (
        "The child process for native code did not start. Check that this Python can import "
        "onnx and onnxruntime."
    ),
    "isolated-task-failed": (
        "A task in the child process failed in a way that is no fault of the model: a defect of "
        "graphopt. Report it."
    ),
    "keyword-unknown": (
        "`compile()` got a keyword it does not have. Use the one the message proposes."
    ),
    "limit-missing": (
        "Nothing limits the search: neither the target nor the call states bytes to fit into. "
        "Give --memory-limit SIZE."
    ),
    "limit-not-provable": (
        "A limit is set, but some sizes are unknown, so nothing can be promised. Bind the named "
        "dimensions, or give them upper bounds."
    ),
    "malformed-node": (
        "A node lacks an input or attribute that its operator needs. The file was not written "
        "by a working exporter."
    ),
    "metric-unknown": "`bisect` knows the metrics error and peak. Use one of them.",
    "model-unknown": (
        "The object is no kind of model that graphopt takes. Pass a path, an ONNX model or a "
        "torch module."
    ),
    "model-unreadable": (
        "The file could not be turned into a graph. Check it with onnx.checker; if that accepts "
        "it, report it."
    ),
    "name-control-character": (
        "A name in the model holds control characters, which can deceive terminals and logs. "
        "Rename it with a tool that you trust."
    ),
    "name-missing": "Something that needs a name has none. Export the model again.",
    "name-too-long": (
        "A name in the model is longer than any real name. The file is damaged or made to "
        "exhaust memory."
    ),
    "name-unknown": (
        "Neither a tensor nor a node of the result has that name. `graphopt plan --steps` lists "
        "them."
    ),
    "native-crash": (
        "The model crashes native code of onnx or onnxruntime; graphopt runs that in a child "
        "process and is unharmed. Do not load the model elsewhere either."
    ),
    "native-limit": "Native code ran out of its time or memory. Use smaller inputs.",
    "nesting-too-deep": (
        "Graphs are nested deeper than any real model nests them. The file is damaged or made "
        "to exhaust memory."
    ),
    "no-outputs": "A graph has no outputs. The file may be cut short: copy or download it again.",
    "no-shape-rule": (
        "The shape of a value is not known and no rule infers it. Declare it in the file."
    ),
    "not-a-file": "The path is a folder, a pipe or a device. Pass the .onnx file.",
    "not-onnx": (
        "The file is something else than an ONNX model. The message says what it looks like."
    ),
    "not-utf8": "A text in the model is not UTF-8. The file is damaged: copy or export it again.",
    "opset-import-duplicate": "The model states two versions of one operator set. Export it again.",
    "opset-import-missing": (
        "The model does not say which operator set it uses. Add an opset_import of the default "
        "domain."
    ),
    "opset-too-new": (
        "The model uses an operator set that is newer than what is supported. Export it with a "
        "lower opset_version."
    ),
    "opset-too-old": (
        "The model uses an operator set that is older than what is supported. Convert it with "
        "onnx.version_converter."
    ),
    "option-not-served": (
        "An option asks for something this version does not do yet. Leave it at its default."
    ),
    "option-type": "An option has a value of the wrong type. The message says what was expected.",
    "output-exists": "The output exists and may not be replaced. Choose another path.",
    "output-folder-missing": "The folder of the output does not exist. Make it first.",
    "output-is-input": "The output would replace an input of the same run. Choose another path.",
    "output-is-link": (
        "The output is a symbolic link, and what it points to is not replaced by surprise. Name "
        "the file itself."
    ),
    "output-missing": "Nothing says where the result goes. Give -o OUT.onnx, or --dry-run.",
    "output-no-space": "The disk is full; what was there before is still there. Make room.",
    "output-not-a-file": "The output path is a folder or a device. Name a file.",
    "output-not-dense": (
        "An output is no tensor and cannot be compared. Turn the comparison off for this model."
    ),
    "output-not-writable": (
        "The folder or file may not be written. Choose another folder, or change its permissions."
    ),
    "output-not-written": (
        "The output could not be written; what was there before is still there. The message has "
        "the reason of the operating system."
    ),
    "output-repeated": "Two outputs of one run have the same path. Give them different names.",
    "pass-failed": (
        "A pass failed or broke the graph. Leave it out with --skip-pass, and report the model; "
        "--dump keeps what reproduces it."
    ),
    "pass-option-type": (
        "An option of a pass has a value of the wrong type. `graphopt passes show NAME` lists "
        "the options."
    ),
    "pass-option-unknown": (
        "A pass does not have that option. `graphopt passes show NAME` lists the options."
    ),
    "pass-order": "A pass stands before one that it must run after. Change the order.",
    "pass-unknown": (
        "No pass has that name, or it is not in the pipeline. `graphopt passes list` lists them."
    ),
    "pass-unreadable": "The text is no pass. Write name or name{option=value,...}.",
    "placement-invalid": (
        "A placement breaks a rule: a defect of the planner. Report it with the problem as CSV."
    ),
    "plan-invalid": (
        "A plan breaks a rule: a defect of graphopt, or a plan that was changed. Report it, or "
        "make the plan again."
    ),
    "plan-rejected": "The plan is wrong for this model. Make it again from this very file.",
    "plan-unreadable": (
        "The file is no memory plan of this version. Make it with `graphopt plan --format json`."
    ),
    "pool-unknown": "The target has no pool of that name. The message lists its pools.",
    "problem-csv-invalid": (
        "The file is no placement problem. The format is id,lower,upper,size[,offset], one "
        "buffer a row."
    ),
    "problem-csv-unwritable": (
        "The placement problem could not be written. Choose a folder that you may write to."
    ),
    "problem-invalid": (
        "An item of a placement problem makes no sense. The message says which and why: correct it."
    ),
    "rank-too-large": (
        "A tensor has more dimensions than are supported. No runtime takes such a tensor."
    ),
    "runtime-failed": (
        "onnxruntime loads the model, but fails on these inputs. Give sizes or samples that the "
        "model accepts."
    ),
    "runtime-refused": (
        "onnxruntime cannot load the model. The message has its reason: a missing kernel, an "
        "unknown domain, a newer format."
    ),
    "samples-mismatch": (
        "The example inputs do not fit the inputs of the model. The message lists its inputs."
    ),
    "shape-mismatch": (
        "Shapes contradict each other, so the model cannot run at these sizes. Bind other "
        "sizes, or export the model again."
    ),
    "shape-too-complex": (
        "A symbolic shape grew beyond what is useful. Give the named dimensions fixed sizes."
    ),
    "shape-too-large": (
        "A tensor would have more elements than any memory holds. The file is damaged or made "
        "to exhaust memory."
    ),
    "size-unreadable": (
        "The text is no size in bytes. Write a number, or a number with a unit such as 320KiB."
    ),
    "solver-missing": (
        "The second opinion on a placement comes from OR-Tools, which is not installed. Install "
        "the extra: `pip install 'graphopt[solver]'`."
    ),
    "solver-unknown": "`graphopt pack --solver` takes `own` or `cp-sat`. Use one of them.",
    "source-type": (
        "The object cannot be loaded as an ONNX model. Pass a path, an onnx.ModelProto or an "
        "onnx_ir.Model."
    ),
    "sparse-tensor": (
        "The model stores tensors sparsely, which is not supported. Store them as dense tensors."
    ),
    "target-invalid": (
        "A descriptor is no TOML, has wrong fields, or breaks a physical rule. Correct each "
        "listed field; `graphopt targets validate FILE` lists all problems at once."
    ),
    "target-unknown": (
        "The target is neither a known name nor a path. Use the suggested name, or see "
        "`graphopt targets list`."
    ),
    "target-unreadable": (
        "The descriptor does not exist or cannot be read. Correct the path or its permissions."
    ),
    "temporary-files": (
        "Temporary files cannot be written. Make room in the temporary folder, or name another "
        "one with TMPDIR."
    ),
    "tensor-segment": (
        "A tensor is stored in segments, which is not supported. Save the model again."
    ),
    "text-form": "The file is a model in text form. Convert it to the binary form first.",
    "too-many-attributes": (
        "A node has more attributes than any real node. The file is damaged or made to exhaust "
        "memory."
    ),
    "too-many-nodes": (
        "The model has more nodes than are supported. The file is damaged or made to exhaust "
        "memory."
    ),
    "too-many-parts": (
        "The model has more parts than any real model. The file is damaged or made to exhaust "
        "memory."
    ),
    "type-missing": "A value has no type. Export the model again.",
    "value-type": (
        "A value has a type that is not served. Dense tensors, sequences and optional values are."
    ),
    "value-undefined": (
        "A graph reads or returns a value that nothing defines. Export the model again."
    ),
    "verification-failed": (
        "The result does not compute what the original computes within the tolerance, so it is "
        "not written. `graphopt bisect` names the pass; --rtol accepts a larger error."
    ),
    "verification-impossible": (
        "The original model does not run in onnxruntime on any samples that were tried, so the "
        "result cannot be compared. Give example inputs or sizes, or accept it with --no- "
        "verify."
    ),
    "weights-too-large-for-one-file": (
        "The weights do not fit into one protobuf file of 2 GiB. Write them beside the model "
        "with --external-data."
    ),
}

CODES |= CODES_OF_PARTS

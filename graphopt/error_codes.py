"""What every error code means, in two sentences: what happened, and what to do.

Shown by ``graphopt explain CODE``. A test compares this list with the codes in the source.
"""

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
    "calibration-empty": (
        "The calibration data held no sample. Make a new generator for each compile."
    ),
    "calibration-method": (
        "No calibration method has that name. Use min-max, percentile, entropy or mse."
    ),
    "calibration-missing": (
        "int8 needs ranges and nothing gives them. Give calibration_data, or --calib FOLDER."
    ),
    "calibration-type": (
        "The calibration data is no iterable of samples. Give dictionaries, tuples or a folder."
    ),
    "calibration-unreadable": (
        "The folder or a .npz file in it cannot be read. Give one .npz per sample, one array "
        "per input."
    ),
    "calibration-unused": (
        'Calibration data was given, but nothing needs it. Say precision="int8", or leave it out.'
    ),
    "capture-differs": (
        "The model that torch's exporter made does not compute what the torch module computes "
        "on the example inputs. Report it to the exporter's project, or accept a larger error "
        "with --rtol."
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
    "dynamic-shapes-invalid": (
        "`dynamic_shapes` is not what torch.export takes for these inputs. Write a dictionary "
        "from axis to dimension per input, or None."
    ),
    "dynamic-shapes-refused": (
        "torch.export found that the model does not work for all sizes that `dynamic_shapes` "
        "allows. Narrow the range of the dimension it names, or leave it fixed."
    ),
    "dynamic-shapes-unreadable": (
        '`dynamic_shapes` for an ONNX model is in another form than expected. Write `{"input": '
        '{0: ("batch", 1, 8)}}`: name, smallest and largest size.'
    ),
    "effort-unknown": 'The effort of a search is neither "greedy" nor "exact". Use one of them.',
    "element-type-unknown": (
        "A tensor has an element type that ONNX does not define. Export the model again with a "
        "version that this installation knows."
    ),
    "example-inputs-mismatch": (
        "The example inputs do not fit the signature of forward. Give a tuple by position or a "
        "dictionary by name."
    ),
    "example-inputs-missing": (
        "A torch module is captured by running it once, which needs inputs. Pass `example_inputs`."
    ),
    "example-inputs-type": (
        "The example inputs are neither a tuple, a dictionary nor a tensor. Pass one of these."
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
    "factory-arguments": (
        "The arguments of a factory do not fit its signature. Give them as name(key=value)."
    ),
    "factory-failed": (
        "The function that builds the model raised an error. It is the model's own code: the "
        "message shows its last line."
    ),
    "factory-file-missing": (
        "The file that should build the model does not exist. Correct the path."
    ),
    "factory-module-missing": (
        "The module that should build the model cannot be imported. Correct its name, or run "
        "where it is installed."
    ),
    "factory-not-callable": (
        "The name after the colon is no function. Name a function that returns the module and "
        "its example inputs."
    ),
    "factory-not-found": (
        "The file or module has no function of that name. The message lists what it has."
    ),
    "factory-result": (
        "The function returned something that is no model. Return a module, or (module, "
        "example_inputs), or these and dynamic_shapes."
    ),
    "factory-unreadable": (
        "The text is no `package.module:function` and no `file.py:function`. Write one of these "
        "forms."
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
    "module-in-training-mode": (
        "The module is in training mode, so dropout and batch statistics would be captured. "
        "Call `.eval()` first."
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
    "not-pt2": "The file is no archive of torch.export. Write one with torch.export.save.",
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
    "plan-run-failed": (
        "Executing the plan inside one arena gave wrong results or wrote where it must not. The "
        "plan is wrong: make it again from this very file, and report it if it was."
    ),
    "plan-run-impossible": (
        "The model does not run on the samples, so executing the plan proves nothing. Give "
        "other sizes with --dim."
    ),
    "plan-run-no-kernel": (
        "No library here executes one node of the model by itself. The plan is proven by the "
        "verifier; only its execution is not."
    ),
    "plan-run-random": (
        "The model draws random numbers, so two runs differ. The plan is proven by the "
        "verifier; only its execution is not."
    ),
    "plan-run-too-large": (
        "The plan takes more memory than this machine has. Check it on a larger machine or at "
        "smaller sizes."
    ),
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
    "pt2-damaged": "The .pt2 archive is damaged. Copy or download it again.",
    "pt2-holds-pickles": (
        "The .pt2 archive holds pickles, which run code when they are read. Save the program "
        "again with plain tensors only."
    ),
    "pt2-layout": (
        "The .pt2 archive has a layout that holds pickles. Save the program again with a newer "
        "torch."
    ),
    "pt2-needs-trust": (
        "Loading a .pt2 archive can run code that is in it. If you know who made it, allow it "
        "with --trust."
    ),
    "pt2-unreadable": (
        "torch cannot load the archive. It may come from another version of torch: save it again."
    ),
    "pt2-unsafe-archive": (
        "The archive has members that torch never writes. It is damaged or made to do harm: "
        "save the program again."
    ),
    "quantization-error": (
        "The quantized model is below the accepted signal-to-noise ratio. Accept less with "
        "Tolerance(sqnr_db=), or calibrate on more samples."
    ),
    "quantization-full-integer": (
        "The target wants integer inputs and outputs, which is not served. Use the vendor's "
        "quantizer."
    ),
    "quantization-opset": (
        "The opset is below 13, which integer weights per channel need. Run raise-opset; its "
        "skips say why it could not."
    ),
    "quantization-range": "The text of a range is unreadable. Write value=low:high.",
    "quantization-scheme": (
        "The integer types that the target describes are not served. Describe uint8 or int8 "
        "activations with int8 weights."
    ),
    "quantization-target": (
        "The target describes no integer kernels. Choose another one, or describe them."
    ),
    "quantization-type": "The activation option is no type that is served. Use uint8 or int8.",
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
    "torch-capture-failed": (
        "torch runs the model but refuses to trace or export it. Try the other torch format, or "
        ".onnx."
    ),
    "torch-control-flow": (
        "An If or Loop depends on the inputs in a way that torch cannot trace. Save as .onnx."
    ),
    "torch-dtype-missing": "torch has no tensors of that type. Save as .onnx.",
    "torch-file-differs": (
        "The file as read back differs from the program in onnxruntime, and nothing was "
        "written. Report it, or accept more with --rtol."
    ),
    "torch-file-refuses": (
        "The file as read back does not run at a size that the model accepts, and nothing was "
        "written. Narrow the bounds, or save as .onnx."
    ),
    "torch-input-written": (
        "The module writes into one of its inputs, which an ONNX model cannot do. Use the "
        "operation that returns a new tensor."
    ),
    "torch-missing": "torch is not installed. Install graphopt[torch], or save as .onnx.",
    "torch-model-type": (
        "The object is no torch module. Pass an nn.Module, a GraphModule or an ExportedProgram."
    ),
    "torch-no-onnx-form": (
        "Something in the module has no form in ONNX. The message says what and what to use in "
        "its place."
    ),
    "torch-not-capturable": (
        "torch.export cannot capture the module. The message shows the line of your code and "
        "what to change."
    ),
    "torch-not-convertible": (
        "The exporter of torch cannot translate the module. The message shows its reason."
    ),
    "torch-operator-form": "The operator is lowered to torch, but not in this form. Save as .onnx.",
    "torch-operator-missing": (
        "An operator has no torch form. Save as .onnx, or replace the operator."
    ),
    "torch-operator-unsupported": "An operator of torch has no form in ONNX. Replace it by others.",
    "torch-sample-refused": (
        "No sample size runs, so there is nothing to trace. Compile with example inputs."
    ),
    "torch-script-module": (
        "The object is a TorchScript module, which torch.export does not take. Pass the "
        "nn.Module that it was made from."
    ),
    "torch-unregistered-state": (
        "State of the module is kept in a plain attribute, which a captured model would freeze. "
        "Register it with register_buffer."
    ),
    "torch-value-missing": (
        "A value has neither data nor a producer. The model is broken: export it again."
    ),
    "torch-weights-without-data": (
        "A weight is on the meta device and has no values. Load the weights first."
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

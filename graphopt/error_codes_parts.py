"""Error codes of the parts one may never meet: torch, factories, int8, executed plans."""

CODES_OF_PARTS: dict[str, str] = {
    "arena-format": (
        "Only TorchScript files can hold a module with an arena. Save as .ts, or leave arena out."
    ),
    "arena-overload": (
        "TorchScript chose another form of an operator than the one that was tried. That is a bug "
        "in graphopt: report it with the model."
    ),
    "arena-sizes-open": (
        "An arena is planned for one size of every dimension, and one has none. Bind it with "
        "bindings, or --dim NAME=SIZE."
    ),
    "arena-tensor-kind": (
        "A tensor cannot lie in an arena of one data type: a view of another type, a sparse layout "
        "or a tensor that changes in size. Save without arena."
    ),
    "arena-values-decide": (
        "What the model computes depends on values of its inputs: a branch, a loop count or a "
        "size taken from data. Save without arena, which keeps the decision in the file."
    ),
    "arena-write-outside": (
        "An operator writes over an input or a weight, which belong to the caller. Save without "
        "arena."
    ),
    "calibration-empty": (
        "The calibration data held no sample. Make a new generator for each compile."
    ),
    "calibration-method": (
        "No calibration method has that name. Use auto, min-max, percentile, entropy or mse."
    ),
    "calibration-missing": (
        "int8 needs ranges, or weights should be rounded for samples, and nothing gives them. "
        "Give calibration_data, or --calib FOLDER."
    ),
    "calibration-type": (
        "The calibration data is no iterable of samples. Give dictionaries, tuples or a folder."
    ),
    "calibration-unreadable": (
        "The folder or a .npz file in it cannot be read. Give one .npz per sample, one array "
        "per input."
    ),
    "calibration-unused": (
        "Calibration data or a calibration method was given, but nothing needs it. Say "
        'precision="int8", or leave it out.'
    ),
    "capture-differs": (
        "The model that torch's exporter made does not compute what the torch module computes "
        "on the example inputs. Report it to the exporter's project, or accept a larger error "
        "with --rtol."
    ),
    "codebook-no-kernel": (
        "The target has no kernel that reads weights through a table of values that are not evenly "
        "spaced, so floats would be made of them and only the file would be smaller. Use "
        "int4-weights, or a target that stores nf4."
    ),
    "cuda-allocator": (
        "Bytes on a GPU are counted by torch's own CUDA allocator, and another one is in use. "
        "Leave 'backend' out of PYTORCH_CUDA_ALLOC_CONF."
    ),
    "cuda-graph-inputs": (
        "The tensors do not fit the module or the CUDA graph: another number, sizes, type or "
        "device. Give contiguous tensors of the sizes of the plan, on the GPU of the module."
    ),
    "cuda-graph-memory": (
        "While the CUDA graph was captured, operators took more memory beside the arena than was "
        "allowed, and a graph keeps it. Allow it with most_bytes, or call the module itself."
    ),
    "cuda-graph-module": (
        "A CUDA graph replays fixed addresses at fixed sizes, which only a module with an arena "
        "has. Save with arena=True, and load the file."
    ),
    "cuda-graph-refused": (
        "CUDA cannot capture what the module does, for example because it waits for the GPU. Call "
        "the module without a graph."
    ),
    "cuda-missing": (
        "The target is a GPU, and what was asked for is tried out on one, but torch sees none "
        "here. Do it on a machine with CUDA, or compile for the CPU."
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
    "example-inputs-mismatch": (
        "The example inputs do not fit the signature of forward. Give a tuple by position or a "
        "dictionary by name."
    ),
    "example-inputs-missing": (
        "A torch module is captured by running it once, which needs inputs. Pass `example_inputs`."
    ),
    "equalize-options": (
        "An option of equalize-channels is out of its range. Give an alpha between 0 and 1, and "
        "an insert of 0 or more."
    ),
    "example-inputs-type": (
        "The example inputs are neither a tuple, a dictionary nor a tensor. Pass one of these."
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
    "full-integer-operator": (
        "The target computes nothing but integers and has no integer kernel for these nodes. "
        "Rewrite or cut off what they do, name further operators in its [quantization] when its "
        "compiler has them, or choose another target."
    ),
    "half-error": (
        "The model in half precision is below the accepted signal-to-noise ratio. Accept less with "
        "Tolerance(sqnr_db=), or keep nodes float32."
    ),
    "half-keep-unknown": (
        "An entry of the list of nodes that stay float32 names nothing in the model. Correct the "
        "name; globs and operators are allowed, too."
    ),
    "half-no-gain": (
        "So few nodes can be converted to the half precision asked for that no memory is saved. "
        "Use fp16, export the model with a newer opset, or accept a larger error."
    ),
    "half-samples": (
        "Half precision is judged on samples, and none runs through the model. Give example "
        "inputs, or sizes with --dim."
    ),
    "half-type": "The type is no half precision. Use float16 (fp16) or bfloat16 (bf16).",
    "integer-interface": (
        "The metadata that state scales of integer inputs and outputs do not describe this model. "
        "Compile the float model again, or remove the entry."
    ),
    "metric-drop": (
        "The result is worse by the metric than max_drop allows, although the best candidate was "
        "kept. Accept a larger drop, calibrate on more samples, or choose a finer precision."
    ),
    "metric-failed": (
        "The function that was given as metric raised an error of its own. It is called with one "
        "argument, run: run(feed) returns the outputs of the model under test."
    ),
    "metric-options": (
        "A metric and the drop that it allows must be given together, and without decibels. Write "
        "Tolerance(metric=function, max_drop=0.01), or --metric FILE.py:FUNCTION --max-drop 0.01."
    ),
    "metric-precision": (
        "Nothing is chosen by a metric at this precision: results are judged by rtol or decibels. "
        "A metric serves int8, int8-weights and int4-weights."
    ),
    "metric-value": (
        "The function that was given as metric returned no finite number. Return a float that is "
        "higher for a better model."
    ),
    "module-in-training-mode": (
        "The module is in training mode, so dropout and batch statistics would be captured. "
        "Call `.eval()` first."
    ),
    "not-pt2": "The file is no archive of torch.export. Write one with torch.export.save.",
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
    "precision-no-kernel": (
        "The target cannot store weights of these bits, has no kernel that reads them beside "
        "float activations, or does not compute in the half precision asked for. Choose another "
        "precision or target; the message says what it takes."
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
        "Tolerance(sqnr_db=), calibrate on more samples, or on x86 with VNNI use target cpu-vnni."
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
    "torch-branch-sizes": (
        "torch.export captures both branches of an If at the same sizes, and one of them takes "
        "none of the sizes of the samples. Give example inputs that take it, fix the dimensions "
        "first (pass fix-dimensions), or save as .onnx or .ts."
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
    "torch-probe-refused": (
        "An operator of a TorchScript file does not run alone, so the peak of the file is not "
        "predicted. The file itself is not concerned."
    ),
    "torch-sample-refused": (
        "No sample size runs, so there is nothing to trace. Compile with example inputs."
    ),
    "torch-script-module": (
        "The object is a TorchScript module, which torch.export does not take. Pass the "
        "nn.Module that it was made from."
    ),
    "torch-sizes-open": (
        "The peak of a TorchScript file is predicted at the sizes of the plan, and an input has "
        "none. Bind its dimensions; the file itself is not concerned."
    ),
    "torch-unregistered-state": (
        "State of the module is kept in a plain attribute, which a captured model would freeze. "
        "Register it with register_buffer."
    ),
    "torch-value-missing": (
        "A value has neither data nor a producer. The model is broken: export it again."
    ),
    "torch-values-decide": (
        "What a TorchScript file computes depends on values of its inputs, so its peak does not "
        "follow from sizes and is not predicted. The file itself is not concerned."
    ),
    "torch-weights-without-data": (
        "A weight is on the meta device and has no values. Load the weights first."
    ),
    "weight-not-finite": (
        "A weight that should be stored in few bits holds infinities or NaN, which no scale fits. "
        "Leave it alone with quantize-weights{keep=[NAME]}, or repair the model."
    ),
    "weight-scheme": (
        "An option of quantize-weights has a value that it does not take. The message names the "
        "values that exist."
    ),
}

"""Calibration splits of the trained networks: samples that none of their metrics is computed on.

Images come from the calibration folders of the assets. Sound is the evaluated recording, there
is no other, at other speeds. Text is Shakespeare for the sentence
splitter, and what the language model itself writes, seeded, for the language model. Files for the
file-type network are the sources of this project and of Python's own library.
"""

import csv
import os
import sysconfig
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Feed = dict[str, np.ndarray]


def assets() -> Path:
    """Return the folder that holds ``models/`` and ``data/``."""
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        raise SystemExit("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder


def data(*parts: str) -> Path:
    """Return a path below ``data/``."""
    return assets().joinpath("data", *parts)


def network(name: str) -> Any:
    """Return a session of the float network ``name``."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    path = assets() / "models" / f"{name}.onnx"
    return ort.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])


def _first_input(name: str) -> str:
    import onnx

    graph = onnx.load(assets() / "models" / f"{name}.onnx", load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return str(next(value.name for value in graph.input if value.name not in weights))


def _images(name: str, make: Callable[[], Iterator[np.ndarray]]) -> Iterator[Feed]:
    value = _first_input(name)
    for array in make():
        yield {value: np.ascontiguousarray(array, np.float32)}


def squeezenet() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted(data("imagenet_calib32").glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        yield (pixels[..., ::-1] - (104.007, 116.669, 122.679)).transpose(2, 0, 1)[None]


def cifar() -> Iterator[np.ndarray]:
    images = np.load(data("cifar10.npz"))["calib"].astype(np.float32) / 255
    for image in (images - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225):
        yield image.transpose(2, 0, 1)[None]


def cifar_nhwc() -> Iterator[np.ndarray]:
    for image in np.load(data("cifar10.npz"))["calib"]:
        yield image[None]


def mnist() -> Iterator[np.ndarray]:
    for image in np.load(data("mnist.npz"))["calib"]:
        yield image[None, None]


def keywords() -> Iterator[np.ndarray]:
    arrays = np.load(data("kws_mfcc.npz"))
    name = next(n for n in arrays.files if n.startswith("calib"))
    for clip in arrays[name]:
        yield ((clip.astype(np.float32) - arrays["zero_point"]) * arrays["scale"])[None]


def plates() -> Iterator[np.ndarray]:
    from PIL import Image

    for row in csv.DictReader(data("plates", "labels.csv").open(encoding="utf-8")):
        if row["use"] != "eval":
            image = Image.open(data("plates", row["file"])).convert("RGB")
            pixels = np.asarray(image.resize((94, 24), Image.Resampling.BILINEAR), np.float32)
            yield ((pixels[..., ::-1] - 127.5) / 128).transpose(2, 0, 1)[None]


def coco_letterboxed() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted(data("coco_calib").glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        ratio = min(416 / image.width, 416 / image.height)
        size = (int(image.width * ratio), int(image.height * ratio))
        small = np.asarray(image.resize(size, Image.Resampling.BILINEAR))[..., ::-1]
        canvas = np.full((416, 416, 3), 114, np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small
        yield canvas.transpose(2, 0, 1)[None]


def photos(width: int, height: int, shift: float, scale: float) -> Iterator[np.ndarray]:
    """Yield photos that no metric is computed on: the COCO and ImageNet calibration splits."""
    from PIL import Image

    folders = [data("coco_calib"), data("imagenet_calib32")]
    files = [file for folder in folders for file in sorted(folder.glob("*.jpg"))]
    for file in files[:24]:
        image = Image.open(file).convert("RGB")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        yield (pixels * scale + shift).transpose(2, 0, 1)[None]


def sinet() -> Iterator[np.ndarray]:
    mean = np.array([102.890434, 111.25247, 126.91212])[None, :, None, None]
    deviation = np.array([62.93292, 62.82138, 66.355705])[None, :, None, None]
    for image in photos(320, 320, 0.0, 1.0):
        yield (image[:, ::-1] - mean) / deviation / 255


def text_photos() -> Iterator[np.ndarray]:
    mean = np.array([0.485, 0.456, 0.406])[None, :, None, None]
    deviation = np.array([0.229, 0.224, 0.225])[None, :, None, None]
    for index, image in enumerate(photos(640, 480, 0.0, 1 / 255)):
        if index < 16:
            yield (image[:, ::-1] - mean) / deviation


def luma() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted(data("imagenet_calib32").glob("*.jpg"))[:16]:
        image = Image.open(file).convert("YCbCr").split()[0]
        side = min(image.size)
        small = image.crop((0, 0, side, side)).resize((80, 80), Image.Resampling.BICUBIC)
        yield np.asarray(small, np.float32)[None, None] / 255


def at_speed(name: str, speed: float) -> np.ndarray:
    """Return a recording of the assets played at another speed."""
    with wave.open(os.fspath(data("audio", f"{name}_16k.wav"))) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    places = np.arange(0, len(sound) - 1, speed)
    played = np.interp(places, np.arange(len(sound)), sound)
    return np.asarray(played / 32768, np.float32)


def _windows(sound: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(sound) - 511, 128):
        yield sound[start : start + 512]


def _dtln(second: bool) -> Iterator[Feed]:
    one, two = network("dtln_1"), network("dtln_2")
    names = [[value.name for value in each.get_inputs()] for each in (one, two)]
    first_state = second_state = np.zeros((1, 2, 128, 2), np.float32)
    for step, window in enumerate(_windows(at_speed("speech_noisy", 1.1))):
        spectrum = np.fft.rfft(window)
        magnitude = np.abs(spectrum)[None, None].astype(np.float32)
        feed = dict(zip(names[0], (magnitude, first_state), strict=True))
        mask, first_state = one.run(None, feed)
        sound = np.fft.irfft(spectrum * mask[0, 0])[None, None].astype(np.float32)
        other = dict(zip(names[1], (sound, second_state), strict=True))
        _, second_state = two.run(None, other)
        if step % 16 == 8:
            yield other if second else feed


def _voice() -> Iterator[Feed]:
    net = network("silero_vad")
    sound = np.concatenate([at_speed("noise", 1.1)[:32000], at_speed("speech_noisy", 1.1)])
    state, tail = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    for step in range(len(sound) // 512):
        piece = np.concatenate([tail, sound[step * 512 : step * 512 + 512]])
        feed = {"input": piece[None], "state": state, "sr": np.array(16000)}
        _, state = net.run(None, feed)
        tail = piece[-64:]
        if step % 4 == 2:
            yield feed


def _scored_sound() -> Iterator[Feed]:
    for name in ("speech_clean", "speech_noisy", "noise"):
        for speed in (0.9, 1.1):
            sound = np.resize(at_speed(name, speed), 144160 + 8000)
            yield {"input_1": sound[None, :144160]}
            yield {"input_1": sound[None, 8000:]}


def _sentences() -> Iterator[Feed]:
    text = data("text", "tinyshakespeare.txt").read_bytes().replace(b"\n", b" ")
    for start in range(0, 16 * 500, 500):
        raw = np.frombuffer(text[start : start + 400], np.uint8)
        yield {"input": np.pad(raw, 5)[None]}


def _files() -> Iterator[Feed]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(ROOT.glob("docs/*.*")), *sorted(ROOT.glob("*.toml"))]
    files += [*sorted(ROOT.glob("graphopt/report/*.*")), *sorted(library.glob("*.py"))[:16]]
    for file in files:
        content = file.read_bytes()
        raw = content.strip()
        first, last = raw[:1024], raw[-1024:]
        whole = np.full(2048, 256, np.int32)
        whole[: len(first)] = np.frombuffer(first, np.uint8)
        whole[2048 - len(last) :] = np.frombuffer(last, np.uint8)
        yield {"bytes": whole[None]}


def stories(count: int = 8, length: int = 160) -> Iterator[np.ndarray]:
    """Yield token ids of stories that the language model itself writes, seeded."""
    net, rng = network("stories260k_prefill"), np.random.default_rng(0)
    for _ in range(count):
        ids = [1]
        while len(ids) < length:
            logits = net.run(None, {"tokens": np.array([ids])})[0][0, -1].astype(np.float64)
            chances = np.exp(logits - logits.max())
            ids.append(int(rng.choice(len(chances), p=chances / chances.sum())))
        yield np.array(ids)


def _prompts() -> Iterator[Feed]:
    for ids in stories():
        yield {"tokens": ids[None]}


def _steps() -> Iterator[Feed]:
    net = network("stories260k_decode")
    for ids in stories(4):
        k = v = np.zeros((5, 1, 4, 0, 8), np.float32)
        for step, token in enumerate(ids):
            feed = {"token": np.array([[token]]), "past_k": k, "past_v": v}
            _, k, v = net.run(None, feed)
            # The first token is like no other: all later ones look at it.
            if step % 2 == 0:
                yield feed


def _of(name: str, make: Callable[[], Iterator[np.ndarray]]) -> Callable[[], Iterator[Feed]]:
    return lambda: _images(name, make)


SPLITS: dict[str, Callable[[], Iterator[Feed]]] = {
    "mnist_cntk": _of("mnist_cntk", mnist),
    "resnet8_cifar10_nhwc": _of("resnet8_cifar10_nhwc", cifar_nhwc),
    "resnet20_cifar10": _of("resnet20_cifar10", cifar),
    "resnet56_cifar10": _of("resnet56_cifar10", cifar),
    "dscnn_kws": _of("dscnn_kws", keywords),
    "squeezenet1_1_imagenet": _of("squeezenet1_1_imagenet", squeezenet),
    "lprnet_plate": _of("lprnet_plate", plates),
    "ultraface_rfb320": _of("ultraface_rfb320", lambda: photos(320, 240, -127 / 128, 1 / 128)),
    "yolox_nano_416": _of("yolox_nano_416", coco_letterboxed),
    "espcn_x3": _of("espcn_x3", luma),
    "sinet_portrait": _of("sinet_portrait", sinet),
    "deeplabv3_mnv2_portrait": _of(
        "deeplabv3_mnv2_portrait", lambda: photos(513, 513, -1.0, 1 / 127.5)
    ),
    "ppocr_det_v1_1": _of("ppocr_det_v1_1", text_photos),
    "dnsmos_sig_bak_ovr": _scored_sound,
    "dtln_1": lambda: _dtln(second=False),
    "dtln_2": lambda: _dtln(second=True),
    "silero_vad": _voice,
    "nnsplit_en": _sentences,
    "magika_v3_3": _files,
    "stories260k_prefill": _prompts,
    "stories260k_decode": _steps,
}

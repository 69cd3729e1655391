"""The palette can be told apart: contrast to the page, and pairs under colour-vision deficiency.

Contrast is that of WCAG 2.1 (3:1 for graphics, 4.5:1 for text). Deficiency is simulated with the
matrices of Machado, Oliveira and Fernandes (2009) at full severity; distance is CIE76 in Lab.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

Vector = npt.NDArray[np.float64]

CSS = Path(__file__).resolve().parent.parent.parent / "graphopt/report/report.css"
KINDS = ("activation", "state", "input", "output", "scratch", "weight")
CLASSES = tuple(f"c{i}" for i in range(8))
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def palettes() -> dict[str, dict[str, str]]:
    text = CSS.read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    first = dict(re.findall(r"--([\w-]+): (#\w+)", light))
    return {"light": first, "dark": first | dict(re.findall(r"--([\w-]+): (#\w+)", dark))}


def linear(colour: str) -> Vector:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float((TO_XYZ @ linear(c))[1]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Vector) -> Vector:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_to_the_page(scheme: str) -> None:
    palette = palettes()[scheme]
    for name in KINDS + CLASSES:
        assert contrast(palette[name], palette["page"]) >= 3, name
    for name in ("ink", "dim", "good", "bad", "doubt", "focus"):
        assert contrast(palette[name], palette["page"]) >= 4.5, name
        assert contrast(palette[name], palette["soft"]) >= 4.5, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("names", [KINDS, CLASSES], ids=["kinds", "classes"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_can_be_told_apart(scheme: str, names: tuple[str, ...], deficiency: str) -> None:
    palette = palettes()[scheme]
    seen = {n: lab(DEFICIENCIES[deficiency] @ linear(palette[n])) for n in names}
    for one, other in combinations(names, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 17, (one, other)

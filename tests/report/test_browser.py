"""The script runs in a real browser under the policy of the page, when one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from graphopt.report.html import ReportData, render_html
from tests.report.hostile import hostile_report
from tests.report.page import Element, read_page
from tests.report.sample_plan import chain_plan, mobilenet_report, plan_only

SCRIPT = Path(__file__).resolve().parent.parent.parent / "graphopt/report/report.js"
CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_script_parses() -> None:
    subprocess.run(["node", "--check", str(SCRIPT)], check=True)


def after_script(data: ReportData, folder: Path) -> Element:
    """Return the page as the browser has it once the script has run."""
    assert CHROMIUM is not None
    path = folder / "report.html"
    path.write_text(render_html(data), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
            "--dump-dom", path.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    assert b"CONSOLE" not in done.stderr, done.stderr.decode(errors="replace")
    # The script element prints its own source, which the parser of this test would misread.
    return read_page(done.stdout.decode())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("which", ["sample", "hostile", "many"])
def test_script_runs_to_its_end(which: str, tmp_path: Path) -> None:
    data = {
        "sample": mobilenet_report,
        "hostile": hostile_report,
        "many": lambda: plan_only(chain_plan(6000)),
    }[which]()
    page = after_script(data, tmp_path)
    (html,) = page.all("html")
    assert html.attributes["class"] == "js"
    rows = page.by_id("operators").rows
    assert len(rows) == min(400, len(data.plan.steps))
    assert rows[0][3].text == f"{data.plan.steps[0].live_bytes:,}"
    static = read_page(render_html(data)).by_id("operators").rows
    if which != "many":
        shown = [[cell.text.strip() for cell in row] for row in rows]
        assert shown == [[cell.text.strip() for cell in row] for row in static]
    (readout,) = page.all("p", class_="readout")
    assert readout.text.startswith("Point at a step")
    assert len(page.all("input", type="radio")) == 2
    assert [b.text.split()[0] for b in page.all("div", class_="tabs")[0].all("button")] == [
        "Operators", "Buffers",
    ]  # fmt: skip
    assert len(page.all("canvas")) == (which == "many")

"""The page: self-contained, escaped, complete, equal to the plan, small and quick."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphopt.memory.plan import MemoryPlan, PlannedBuffer
from graphopt.report.html import ReportData, render_html, render_notebook
from graphopt.report.text import visible
from tests.report.hostile import NAMES, hostile_report
from tests.report.page import Element, read_page
from tests.report.sample_plan import (
    altered,
    chain_plan,
    empty_plan,
    mobilenet_plan,
    mobilenet_report,
    one_step_plan,
    plan_only,
    verification,
    with_unplanned,
)

# As long as a hostile name at its longest, so that both are elided alike.
HARMLESS = "harmless" * 12
MINUS = "\N{MINUS SIGN}"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def report() -> ReportData:
    return mobilenet_report()


@pytest.fixture(scope="module")
def page(report: ReportData) -> Element:
    return read_page(render_html(report))


def anatomy(page: Element) -> dict[str, set[str]]:
    """Return the attributes that each tag uses anywhere."""
    found: dict[str, set[str]] = {}
    for element in page.walk():
        found.setdefault(element.tag, set()).update(element.attributes)
    return found


def headings(page: Element) -> list[str]:
    return [e.text for e in page.walk() if e.tag == "h2"]


# ---- self-contained -----------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(report: ReportData) -> None:
    html = render_html(report)
    page = read_page(html)
    for element in page.walk():
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(element.attributes)
        assert element.tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
    urls = set(re.findall(r"\w+://[^\s\"'<>)]*", html))
    assert urls == {"http://www.w3.org/2000/svg"}, "only the namespace of SVG, which names no file"
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_forbids_everything_but_the_one_script(page: Element) -> None:
    (meta,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert meta.attributes["http-equiv"] == "Content-Security-Policy"
    policy = dict(part.strip().split(" ", 1) for part in meta.attributes["content"].split(";"))
    data, code = page.all("script")
    assert data.attributes == {"type": "application/json", "id": "plan-data"}
    assert code.attributes == {}
    digest = base64.b64encode(hashlib.sha256(code.text.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_script_builds_no_markup_from_text() -> None:
    script = (ROOT / "graphopt/report/report.js").read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in script
    assert "</" not in script, "the script stands inside an element"


# ---- escaped ------------------------------------------------------------------------------------


def test_hostile_names_add_no_tag_and_no_attribute() -> None:
    harmless = anatomy(read_page(render_html(hostile_report(names=(HARMLESS,)))))
    hostile = anatomy(read_page(render_html(hostile_report())))
    assert hostile == harmless
    assert not [a for names in hostile.values() for a in names if a.startswith("on")]


def test_hidden_characters_are_spelt_out() -> None:
    html = render_html(hostile_report())
    assert not [c for c in html if not (c.isprintable() or c == "\n")]
    listed = {item.text for item in read_page(html).all("ul", class_="warnings")[0].all("li")}
    for name in NAMES:
        assert [text for text in listed if text.endswith(visible(name))], name
    assert [text for text in listed if text.endswith(r"\u202egnp.exe \u2066x\u2069 \u200b\ufeff")]


def test_embedded_data_cannot_close_its_element() -> None:
    data = read_page(render_html(hostile_report())).by_id("plan-data").text
    assert data.isascii()
    assert not set("<>&") & set(data)
    assert "\\u003c/script\\u003e" in data


def test_notebook_escapes_too() -> None:
    hostile = anatomy(read_page(render_notebook(hostile_report())))
    assert hostile == anatomy(read_page(render_notebook(hostile_report(names=(HARMLESS,)))))
    assert "script" not in hostile


def test_long_names_are_elided_in_the_middle_and_kept_in_the_title() -> None:
    name = "/" + "a" * 5000 + "<&>" + "b" * 5000 + "/tail"
    plan = chain_plan(3, name=name)
    html = render_html(plan_only(plan))
    page = read_page(html)
    cells = [row[2] for row in page.by_id("operators").rows]
    for cell in cells:
        (shown,) = cell.all("bdi")
        assert shown.attributes["title"] == name
        assert len(shown.text) == 96
        assert "…" in shown.text
        assert shown.text.endswith("b/tail")
    assert len(html) < 200_000
    assert max(len(line) for line in render_notebook(plan_only(plan)).splitlines()) < 60_000


# ---- complete -----------------------------------------------------------------------------------


def test_sections_stand_in_their_order(page: Element) -> None:
    assert headings(page) == [
        "✕Does not fit: 56.69 KiB over the limit",
        "Live bytes",
        "Arena",
        "Passes",
        "Operators",
        "Pools",
        "Verification",
        "Assumptions and gaps",
        "Facts",
    ]
    for table in ("owners", "passes", "skips", "operators", "pools", "verification"):
        assert page.by_id(table).rows


def test_ids_are_unique_and_references_resolve(page: Element) -> None:
    ids = [e.attributes["id"] for e in page.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in page.walk():
        for name in element.attributes.get("aria-labelledby", "").split():
            assert name in ids


def test_charts_have_titles_and_descriptions(page: Element) -> None:
    charts = page.all("svg")
    assert len(charts) == 2
    for chart in charts:
        assert chart.attributes["role"] == "img"
        assert chart.all("title")[0].text
        assert chart.all("desc")[0].text
    assert "376.69 KiB at step 4" in charts[0].all("desc")[0].text


def test_charts_and_tables_can_be_reached_by_keyboard(page: Element) -> None:
    reachable = [e for e in page.walk() if e.attributes.get("tabindex") == "0"]
    assert len(reachable) == 3
    assert all("aria-label" in e.attributes or "aria-labelledby" in e.attributes for e in reachable)


@pytest.mark.parametrize(
    ("changes", "state", "headline"),
    [
        ({}, "does-not-fit", "Does not fit: 56.69 KiB over the limit"),
        ({"limit_bytes": 400 << 10}, "fits", "Fits with 23.31 KiB to spare"),
        ({"limit_bytes": None}, "fits", "Fits with 135.31 KiB to spare"),
    ],
)
def test_headline_is_the_verdict(changes: dict[str, Any], state: str, headline: str) -> None:
    page = read_page(render_html(mobilenet_report(**changes)))
    verdict = page.by_id("verdict")
    assert verdict.attributes["class"] == f"verdict {state}"
    assert headline in verdict.text


def test_without_any_limit_there_is_no_verdict(report: ReportData) -> None:
    pools = tuple(
        p.model_copy(update={"limit_bytes": None, "capacity_bytes": None})
        for p in report.plan.pools
    )
    free = replace(report, plan=altered(report.plan, pools=pools), limit_bytes=None)
    page = read_page(render_html(free))
    assert page.by_id("verdict").attributes["class"] == "verdict no-limit"
    assert "No limit set" in page.by_id("verdict").text
    assert "not bounded" in page.by_id("pools").text


def test_values_without_a_size_make_the_verdict_undecided(report: ReportData) -> None:
    data = replace(report, plan=with_unplanned(report.plan), limit_bytes=400 << 10)
    page = read_page(render_html(data))
    assert page.by_id("verdict").attributes["class"] == "verdict undecided"
    assert "Cannot be decided: 2 values not planned" in page.by_id("verdict").text
    rows = [[cell.text for cell in row] for row in page.by_id("not-planned").rows]
    assert rows == [
        ["boxes", "/NonMaxSuppression", "size of 'n' has no upper bound"],
        ["labels", "/Gather_9", "shape is unknown"],
    ]


def test_an_excess_is_certain_even_when_values_have_no_size(report: ReportData) -> None:
    page = read_page(render_html(replace(report, plan=with_unplanned(report.plan))))
    assert page.by_id("verdict").attributes["class"] == "verdict does-not-fit"
    assert "2 values in no figure" in page.by_id("verdict").text


def test_failed_verification_is_said(report: ReportData) -> None:
    failed = verification(passed=False)
    failed["outputs"][0] |= {"accepted": False, "reason": "error 0.02 above 0.01"}
    page = read_page(render_html(replace(report, verification=failed)))
    assert "FAILED: 1 output on 8 seeded samples" in page.by_id("verification-section").text
    assert "outside the tolerance: error 0.02 above 0.01" in page.by_id("verification").text


def test_missing_verification_is_said(report: ReportData) -> None:
    page = read_page(render_html(replace(report, verification=None)))
    assert "Not verified" in page.by_id("verification-section").text


def test_a_plan_alone_has_no_before_and_no_passes() -> None:
    page = read_page(render_html(plan_only(mobilenet_plan(optimized=True))))
    assert "Passes" not in headings(page)
    assert "Verification" not in headings(page)
    assert not page.all("p", class_="was")


# ---- equal to the plan --------------------------------------------------------------------------


def test_cards_show_before_and_after(report: ReportData, page: Element) -> None:
    cards = {c.all("h3")[0].text: c for c in page.all("div", class_="card")}
    plan, base = report.plan, report.baseline
    assert base is not None
    assert cards["Peak of live bytes"].figures == [plan.peak_bytes, base.peak_bytes]
    assert cards["Arena"].figures == [plan.arena_bytes, base.arena_bytes]
    weights = [p.bytes_by_kind["weight"] for p in (plan, base)]
    assert cards["Weights"].figures == weights
    assert cards["Model file"].figures == [1_702_118, 6_671_902]
    assert cards["Nodes"].all("p", class_="big")[0].text == "65"
    assert [cards[name].all("span")[0].text for name in cards] == [
        f"{MINUS}84.3 %", f"{MINUS}84.3 %", f"{MINUS}75.0 %", f"{MINUS}74.5 %", f"{MINUS}57.2 %",
    ]  # fmt: skip


def test_owners_of_the_peak_add_up(report: ReportData, page: Element) -> None:
    rows = page.by_id("owners").rows
    assert [row[2].figures[0] for row in rows] == [o.bytes for o in report.plan.peak.owners]
    assert sum(row[2].figures[0] for row in rows) == report.plan.peak_bytes


def test_owners_beyond_the_first_are_summed() -> None:
    plan = chain_plan(400)
    rows = read_page(render_html(plan_only(plan))).by_id("owners").rows
    assert len(rows) == 7
    assert rows[-1][1].text == f"{len(plan.peak.owners) - 6} more"
    assert sum(row[2].figures[0] for row in rows) == plan.peak_bytes


def test_operators_show_every_step(report: ReportData, page: Element) -> None:
    shown = [
        (c[0].text, c[1].text, c[2].text, c[3].text, c[5].text.strip())
        for c in page.by_id("operators").rows
    ]
    assert shown == [
        (
            str(i),
            s.op,
            s.node,
            f"{s.live_bytes:,}",
            f"{s.scratch_bytes:,}" if s.scratch_bytes else "",
        )
        for i, s in enumerate(report.plan.steps)
    ]


def test_pools_show_every_figure(report: ReportData, page: Element) -> None:
    sram, flash = page.by_id("pools").rows
    pool = report.plan.pools[0]
    figures = [cell.figures[0] if cell.figures else cell.text for cell in sram]
    assert figures == [
        "axi-sram", pool.capacity_bytes, 320 << 10, pool.total_bytes, pool.arena_bytes, 0, 0,
        pool.lower_bound_bytes, "0 %", 0, "first-fit by size, proven optimal",
    ]  # fmt: skip
    assert "over" in sram[3].attributes["class"]
    assert flash[3].figures == [report.plan.pools[1].total_bytes]


def test_passes_show_their_effect_and_the_idle_ones_are_named(page: Element) -> None:
    rows = [[cell.text for cell in row] for row in page.by_id("passes").rows]
    assert [row[1] for row in rows] == [
        "fuse-batch-norm", "reuse-in-place", "insert-qdq{scheme=int8,per-channel=true}",
    ]  # fmt: skip
    assert [row[3] for row in rows] == ["=", f"{MINUS}30.0 %", f"{MINUS}77.6 %"]
    assert rows[0][6] == f"100 {MINUS}52"
    (idle,) = page.all("p", class_="idle-passes")
    assert idle.text == "1 pass changed nothing: fold-constants."
    skips = [[cell.text for cell in row][:3] for row in page.by_id("skips").rows]
    assert skips == [
        ["reuse-in-place", "read-later", "2"],
        ["reuse-in-place", "size-differs", "1"],
        ["insert-qdq", "no-kernel", "1"],
    ]


def test_waterfall_bars_span_before_and_after(report: ReportData, page: Element) -> None:
    top = max(p for r in report.passes for p in (r.peak_before, r.peak_after) if p is not None)
    for row, done in zip(page.by_id("passes").rows, report.passes[1:], strict=True):
        (bar,) = row[4].all("i")
        assert done.peak_before is not None
        assert done.peak_after is not None
        left, width = re.findall(r"([\d.]+)%", bar.attributes["style"])
        assert float(left) == pytest.approx(done.peak_after / top * 100, abs=0.01)
        expected = (done.peak_before - done.peak_after) / top * 100
        assert float(width) == pytest.approx(expected, abs=0.01)


def test_peak_of_unknown_size_is_not_drawn(report: ReportData) -> None:
    first = replace(report.passes[1], peak_before=None, peak_after=None)
    page = read_page(render_html(replace(report, passes=(first,))))
    (row,) = page.by_id("passes").rows
    assert row[2].text == "unknown"
    assert not row[4].all("i")


def test_facts_name_tool_model_and_sources(page: Element) -> None:
    facts = page.by_id("facts-section").text
    for expected in ("graphopt 0.1.0", "a3" * 32, "5f" * 32, "batch = 1 (1 to 8)", "RM0433"):
        assert expected in facts


# ---- sizes, time, determinism -------------------------------------------------------------------


def test_two_thousand_steps_stay_below_300_kb() -> None:
    plan = chain_plan(2000)
    assert len(plan.steps) == len(plan.buffers) == 2000
    html = render_html(plan_only(plan))
    assert len(html.encode()) < 300_000
    assert len(read_page(html).by_id("operators").rows) == 250


def test_twenty_thousand_steps_take_less_than_three_seconds() -> None:
    plan = chain_plan(20_000)
    started = time.process_time()
    html = render_html(plan_only(plan))
    assert time.process_time() - started < 15
    assert len(html.encode()) < 1_600_000
    text = read_page(html).text
    assert "The 3,000 largest of 20,000 buffers are drawn" in text
    assert "The 250 steps that hold most of 20,000" in text


def test_notebook_is_small_and_scoped(report: ReportData) -> None:
    fragment = render_notebook(report)
    assert len(fragment.encode()) < 60_000
    page = read_page(fragment)
    assert not {"html", "body", "head", "script"} & {e.tag for e in page.walk()}
    assert not [e for e in page.walk() if "id" in e.attributes]
    (style,) = page.all("style")
    selectors = re.findall(r"([^{}]+)\{", style.text)
    assert all(s.strip().startswith(".graphopt-report") for g in selectors for s in g.split(","))
    assert len(render_notebook(plan_only(chain_plan(20_000))).encode()) < 60_000


_DIGEST = """
import hashlib
from graphopt.report.html import render_html, render_notebook
from graphopt.report.trace import chrome_trace
from tests.report.hostile import hostile_report
data = hostile_report()
text = render_html(data) + render_notebook(data) + chrome_trace(data.plan)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_output_does_not_depend_on_the_hash_seed() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_importing_the_report_loads_neither_jinja_nor_rich() -> None:
    code = (
        "import sys, graphopt.report.html, graphopt.report.tables, graphopt.report.trace;"
        "print(sorted({'jinja2', 'rich', 'markupsafe', 'pydantic', 'onnx_ir'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- extremes -----------------------------------------------------------------------------------


def test_plan_without_steps() -> None:
    page = read_page(render_html(plan_only(empty_plan())))
    assert "The plan has no steps." in page.text
    assert "Arena" not in headings(page)
    assert "Operators" not in headings(page)
    assert read_page(render_notebook(plan_only(empty_plan())))


def test_plan_without_pools() -> None:
    plan = altered(empty_plan(), pools=())
    page = read_page(render_html(plan_only(plan)))
    assert "No memory is planned" in page.by_id("verdict").text
    assert "Pools" not in headings(page)
    assert read_page(render_notebook(plan_only(plan)))


def test_plan_of_one_step() -> None:
    page = read_page(render_html(plan_only(one_step_plan())))
    assert len(page.by_id("operators").rows) == 1
    assert page.by_id("owners").figures == [64, 64]


def _with_zero_bytes(plan: MemoryPlan) -> MemoryPlan:
    empty = [
        PlannedBuffer(
            **(b.model_dump() | {"name": f"empty {i}", "bytes": 0, "padded_bytes": 0, "values": ()})
        )
        for i, b in enumerate(plan.buffers[:3])
    ]
    return altered(plan, buffers=(*plan.buffers, *empty))


def test_buffers_of_zero_bytes_are_not_drawn() -> None:
    plan = mobilenet_plan(optimized=True)
    with_empty = _with_zero_bytes(plan)
    assert len(with_empty.buffers) == len(plan.buffers) + 3
    assert render_html(plan_only(with_empty)) == render_html(plan_only(plan))


def test_plan_of_zero_bytes_only() -> None:
    plan = one_step_plan()
    buffers = tuple(b.model_copy(update={"bytes": 0, "padded_bytes": 0}) for b in plan.buffers)
    steps = tuple(s.model_copy(update={"live_bytes": 0}) for s in plan.steps)
    pools = tuple(
        p.model_copy(update={"arena_bytes": 0, "total_bytes": 0, "lower_bound_bytes": 0})
        for p in plan.pools
    )
    peak = plan.peak.model_copy(update={"bytes": 0, "owners": ()})
    data = plan_only(altered(plan, buffers=buffers, steps=steps, pools=pools, peak=peak))
    page = read_page(render_html(data))
    assert "peak 0 B" in page.text
    assert read_page(render_notebook(data))


def test_limit_far_above_the_peak_is_said_and_not_drawn(report: ReportData) -> None:
    page = read_page(render_html(replace(report, limit_bytes=1 << 40, baseline=None)))
    assert "The limit leaves the arena 1.00 TiB, above the scale." in page.text
    assert not page.all("span", class_="limit-label")


def test_limit_line_leaves_room_for_what_else_lies_in_the_pool(report: ReportData) -> None:
    first, second = report.plan.pools
    shared = first.model_copy(
        update={"io_bytes": 20 << 10, "total_bytes": first.total_bytes + (20 << 10)}
    )
    plan = altered(report.plan, pools=(shared, second))
    page = read_page(render_html(replace(report, plan=plan)))
    (label,) = page.all("span", class_="limit-label")
    assert label.text == "room for the arena 300.00 KiB"


QUANTIZED = {
    "samples": 12,
    "method": "mse",
    "sqnr_db": {"logits": 31.24, "boxes": 40.0},
    "wanted_db": 28.0,
    "tried": [{"what": "everything", "sqnr_db": 31.24}],
    "returned": ["stem"],
    "reasons": {
        "stem": {"reason": "kept-float", "detail": ""},
        "softmax": {"reason": "form-without-kernel", "detail": "axis\u202e"},
    },
    "kernels": {
        "kernels": {"conv": "QLinearConv", "head": "Gemm"},
        "float_nodes": {"head": "no integer kernel"},
    },
    "layers": {"conv": 42.06, "head": 33.0},
    "equalized": "",
    "metric": None,
}


def test_quantization_has_a_row_for_each_node(report: ReportData) -> None:
    page = read_page(render_html(replace(report, quantization=QUANTIZED)))
    section = page.by_id("quantization-section").text
    assert "12 samples, ranges by mse; worst output 31.2 dB, 28 dB asked for" in section
    assert "2 nodes placed as int8; 1 returned to float" in section
    rows = [[cell.text.strip() for cell in row] for row in page.by_id("quantization").rows]
    assert rows == [
        ["head", "int8", "Gemm", "33.0", "no integer kernel"],
        ["conv", "int8", "QLinearConv", "42.1", ""],
        ["softmax", "float", "", "\N{EN DASH}", "form-without-kernel axis\\u202e"],
        ["stem", "float", "", "\N{EN DASH}", "costs too much accuracy in int8"],
    ]


def test_the_page_says_the_metric_and_what_evened_out_channels(report: ReportData) -> None:
    metric = {"name": "accuracy", "before": 0.98, "after": 0.97, "max_drop": 0.02}
    changed = QUANTIZED | {"metric": metric, "equalized": "equalize-channels{alpha=0.5}"}
    page = read_page(render_html(replace(report, quantization=changed)))
    section = page.by_id("quantization-section").text
    assert "metric accuracy 0.98 before and 0.97 after, a drop of 0.02 allowed" in section
    assert "channels evened out by equalize-channels{alpha=0.5}" in section


def test_many_nodes_are_cut_off(report: ReportData) -> None:
    layers = {f"node{i:03}": float(i) for i in range(250)}
    page = read_page(render_html(replace(report, quantization=QUANTIZED | {"layers": layers})))
    rows = page.by_id("quantization").rows
    assert len(rows) == 200 + 1
    assert rows[-1][0].text.strip() == "52 more"

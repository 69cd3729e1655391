(() => {
  "use strict";

  const raw = JSON.parse(document.getElementById("plan-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const CANVAS_ABOVE = 5000;
  const FIRST_ROWS = 400;
  const RELATIONS = {
    view: ["View", " of "],
    "in-place": ["In place", " over "],
    part: ["Part", " of "],
  };
  const GRAPH_INPUT = "graph input";
  document.documentElement.classList.add("js");

  // ---- data: the inverse of payload.py -------------------------------------------------------

  function summed(gaps) {
    let at = 0;
    return gaps.map((gap) => (at += gap));
  }

  function dense(pairs, length, fallback = 0) {
    const list = new Array(length).fill(fallback);
    for (const [index, value] of pairs) list[index] = value;
    return list;
  }

  const strings = [];
  for (let i = 0; i < raw.strings.length; i += 2) {
    const before = strings.length ? strings[strings.length - 1] : "";
    strings.push(before.slice(0, raw.strings[i]) + raw.strings[i + 1]);
  }

  const count = raw.steps.op.length;
  const scratch = dense(raw.steps.scratch, count);
  const again = dense(raw.steps.again, count);
  const steps = summed(raw.steps.nameGap).map((name, index) => ({
    index,
    name: strings[name],
    op: raw.ops[raw.steps.op[index]],
    opClass: raw.opClass[raw.steps.op[index]],
    live: raw.steps.live[index] * raw.unit,
    scratch: scratch[index],
    again: again[index] ? strings[again[index] - 1] : "",
  }));
  const peak = steps.reduce((best, step) => (step.live > best ? step.live : best), 0);
  const peakStep = steps.findIndex((step) => step.live === peak);

  const pools = raw.pools.map((pool) => {
    const length = pool.size.length;
    const [pad, lag, types, starts] = [
      dense(pool.pad, length),
      dense(pool.lag, length),
      pool.types,
      summed(pool.startGap),
    ];
    const outside = new Map(pool.from);
    const buffers = summed(pool.nameGap).map((name, i) => {
      const by = outside.has(i) ? -1 : starts[i] - lag[i];
      return {
        name: strings[name],
        kind: raw.kinds[pool.kind[i]],
        start: starts[i],
        end: starts[i] + pool.span[i],
        offset: pool.offset[i] * raw.unit,
        padded: pool.size[i] * raw.unit,
        bytes: pool.size[i] * raw.unit - pad[i],
        type: types[pool.type[i]],
        step: by,
        producer: by >= 0 ? steps[by].name : outside.get(i) >= 0 ? strings[outside.get(i)] : "",
        opClass: by >= 0 ? steps[by].opClass : raw.classes.length - 1,
        shared: [],
      };
    });
    for (const [i, relation, value, of, at] of pool.shared) {
      buffers[i].shared.push([strings[value], relation, strings[of], at]);
    }
    return { name: pool.name, height: pool.height, buffers };
  });

  // ---- text ----------------------------------------------------------------------------------

  function grouped(number) {
    return number.toLocaleString("en-US");
  }

  function formatBytes(number) {
    if (Math.abs(number) < 1024) return number + " B";
    let value = number / 1024;
    for (const unit of ["KiB", "MiB", "GiB"]) {
      if (Math.abs(value) < 1024) return value.toFixed(2) + " " + unit;
      value /= 1024;
    }
    return value.toFixed(2) + " TiB";
  }

  function elide(text, longest = 96) {
    if (text.length <= longest) return text;
    const head = Math.floor((longest - 1) * 0.4);
    return text.slice(0, head) + "…" + text.slice(text.length - (longest - 1 - head));
  }

  function make(tag, className = "", text = "") {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== "") element.textContent = text;
    return element;
  }

  function makeName(text) {
    const element = make("bdi");
    for (const part of elide(text).split(/(?<=\/)/)) element.append(part, make("wbr"));
    if (text.length > 96) element.title = text;
    return element;
  }

  function makeSvg(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  // ---- the step under the pointer, in every chart at once --------------------------------------

  const plots = [...document.querySelectorAll(".plot")].map((figure) => {
    const area = figure.querySelector(".area");
    const overlay = makeSvg("svg", {
      viewBox: `0 0 ${Math.max(count, 1)} 1000`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    const cursor = overlay.appendChild(makeSvg("path", { class: "cursor" }));
    area.append(overlay);
    return { figure, area, overlay, cursor };
  });
  const live = plots.find((plot) => plot.figure.dataset.chart === "live");
  const readout = live ? live.figure.querySelector(".readout") : make("p");
  let heldStep = -1;

  function drawCursor(step) {
    const path = step < 0 ? "" : `M${step + 0.5} 0V1000`;
    for (const plot of plots) plot.cursor.setAttribute("d", path);
  }

  function showStep(index) {
    drawCursor(index);
    readout.replaceChildren();
    if (index < 0) {
      readout.append(make("span", "dim", "Point at a step, or use the arrow keys; a click holds it."));
      return;
    }
    const step = steps[index];
    const totals = new Map();
    for (const pool of pools) {
      for (const buffer of pool.buffers) {
        if (buffer.start <= index && index < buffer.end) {
          totals.set(buffer.kind, (totals.get(buffer.kind) || 0) + buffer.padded);
        }
      }
    }
    const parts = raw.kinds.filter((kind) => totals.get(kind));
    readout.append(
      make("b", "", `Step ${index}: ${formatBytes(step.live)}`),
      ` ${step.op} `,
      makeName(step.name),
      make("br"),
      make("span", "dim", parts.map((k) => `${k} ${formatBytes(totals.get(k))}`).join(", ")),
    );
  }

  function stepAt(event, area) {
    const box = area.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    return Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  }

  function holdStep(index) {
    heldStep = index;
    showStep(index);
    for (const row of document.querySelectorAll("#operators .picked")) row.classList.remove("picked");
    const row = document.querySelector(`#operators [data-step="${index}"]`);
    if (row) row.classList.add("picked");
  }

  function startLive() {
    const { area } = live;
    area.addEventListener("pointermove", (event) => showStep(stepAt(event, area)));
    area.addEventListener("pointerleave", () => showStep(heldStep));
    area.addEventListener("click", (event) => holdStep(stepAt(event, area)));
    area.addEventListener("keydown", (event) => {
      const far = event.shiftKey ? Math.max(1, Math.round(count / 20)) : 1;
      const from = heldStep < 0 ? peakStep : heldStep;
      const to = {
        ArrowLeft: from - far,
        ArrowRight: from + far,
        Home: 0,
        End: count - 1,
        Escape: -1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      holdStep(event.key === "Escape" ? -1 : Math.min(count - 1, Math.max(0, to)));
    });
    showStep(-1);
  }

  // ---- arena maps ----------------------------------------------------------------------------

  const colourings = {
    kind: { label: "kind", of: (b) => b.kind, style: (k) => "k-" + k, order: raw.kinds },
    operator: {
      label: "operator class",
      of: (b) => (b.producer ? raw.classes[b.opClass] : GRAPH_INPUT),
      style: (name) => (name === GRAPH_INPUT ? "k-input" : "c-" + raw.classes.indexOf(name)),
      order: [...raw.classes, GRAPH_INPUT],
    },
  };

  function startMap(plot) {
    const pool = pools[Number(plot.figure.dataset.pool)];
    const { area, overlay } = plot;
    const panel = plot.figure.parentElement.querySelector(".panel");
    const detail = panel.querySelector(".detail");
    const legend = panel.querySelector(".legend");
    const svg = area.querySelector("svg.rects");
    const group = svg.querySelector("g");
    const labels = area.querySelector(".labels");
    const halo = overlay.appendChild(makeSvg("path", { class: "chosen-halo" }));
    const ring = overlay.appendChild(makeSvg("path", { class: "chosen" }));
    const canvas = pool.buffers.length > CANVAS_ABOVE ? make("canvas") : null;
    let colouring = colourings.kind;
    let pinned = null;
    let shown = null;

    const y = (bytes) => 1000 - (bytes / pool.height) * 1000;

    function outline(buffer) {
      const [top, low] = [y(buffer.offset + buffer.padded), y(buffer.offset)];
      const width = buffer.end - buffer.start;
      return `M${buffer.start} ${top}h${width}V${low}h-${width}z`;
    }

    function groups() {
      const found = new Map(colouring.order.map((name) => [name, []]));
      for (const buffer of pool.buffers) found.get(colouring.of(buffer)).push(buffer);
      return [...found].filter(([, members]) => members.length);
    }

    function paint() {
      legend.tHead.rows[0].cells[0].textContent =
        colouring.label[0].toUpperCase() + colouring.label.slice(1);
      const rows = groups().map(([name, members]) => {
        const row = make("tr");
        const cell = row.appendChild(make("td"));
        cell.append(make("i", "swatch " + colouring.style(name)), name);
        const largest = members.reduce((most, b) => Math.max(most, b.padded), 0);
        row.append(make("td", "n", grouped(members.length)), make("td", "n", formatBytes(largest)));
        return row;
      });
      legend.tBodies[0].replaceChildren(...rows);
      if (canvas) paintCanvas();
      else paintSvg();
    }

    function paintSvg() {
      group.replaceChildren(
        ...groups().map(([name, members]) =>
          makeSvg("path", { class: colouring.style(name), d: members.map(outline).join("") }),
        ),
      );
    }

    function paintCanvas() {
      const scale = window.devicePixelRatio || 1;
      const [width, height] = [area.clientWidth, area.clientHeight];
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      const context = canvas.getContext("2d");
      context.scale(canvas.width / Math.max(count, 1), canvas.height / pool.height);
      const thinnest = pool.height / canvas.height;
      const sample = panel.appendChild(make("i"));
      for (const [name, members] of groups()) {
        sample.className = colouring.style(name);
        context.fillStyle = getComputedStyle(sample).backgroundColor;
        for (const b of members) {
          const tall = Math.max(b.padded, thinnest);
          context.fillRect(b.start, pool.height - b.offset - tall, b.end - b.start, tall);
        }
      }
      sample.remove();
    }

    function bufferAt(event) {
      const box = area.getBoundingClientRect();
      const step = stepAt(event, area);
      const offset = (1 - (event.clientY - box.top) / box.height) * pool.height;
      // A thin buffer is as hard to hit as it is to see: take the nearest within three pixels.
      const reach = (3 / box.height) * pool.height;
      let best = null;
      let nearest = reach;
      for (const b of pool.buffers) {
        if (step < b.start || step >= b.end) continue;
        const away = Math.max(b.offset - offset, offset - b.offset - b.padded, 0);
        if (away === 0) return b;
        if (away < nearest) [best, nearest] = [b, away];
      }
      return best;
    }

    function show(buffer) {
      if (buffer === shown && detail.childElementCount) return;
      shown = buffer;
      const path = buffer ? outline(buffer) : "";
      halo.setAttribute("d", path);
      ring.setAttribute("d", path);
      detail.hidden = false;
      detail.replaceChildren(...(buffer ? description(buffer) : [hint()]));
    }

    function hint() {
      return make("p", "dim", "Point at a rectangle, or use the arrow keys; a click pins it.");
    }

    function description(buffer) {
      const title = make("h3");
      title.append(makeName(buffer.name));
      const list = make("dl");
      function fact(label, ...content) {
        const value = make("dd");
        value.append(...content);
        list.append(make("dt", "", label), value);
      }
      const padding = buffer.padded - buffer.bytes;
      const exact = `${formatBytes(buffer.bytes)} (${grouped(buffer.bytes)})`;
      fact("Bytes", padding ? `${exact}, ${grouped(padding)} padding` : exact);
      fact("Kind", buffer.kind);
      if (buffer.type) fact("Type", buffer.type);
      const span = buffer.end - buffer.start;
      fact("Alive", `[${buffer.start}, ${buffer.end}), ${grouped(span)} ${span === 1 ? "step" : "steps"}`);
      fact("Offset", grouped(buffer.offset));
      if (buffer.producer) {
        const op = buffer.step >= 0 ? steps[buffer.step].op + " " : "";
        fact("From", op, makeName(buffer.producer));
      }
      for (const [value, relation, of, at] of buffer.shared.slice(0, 6)) {
        const [label, joint] = RELATIONS[relation];
        fact(label, makeName(value), joint, makeName(of), at ? `, at byte ${grouped(at)}` : "");
      }
      if (buffer.shared.length > 6) fact("", `and ${buffer.shared.length - 6} more`);
      const state = make("p", "dim", buffer === pinned ? "Pinned; Escape or a click lets go." : "");
      return [title, list, state];
    }

    function pin(buffer) {
      pinned = buffer === pinned ? null : buffer;
      shown = undefined;
      show(pinned);
    }

    function neighbour(key) {
      const from = shown || pool.buffers.reduce((a, b) => (b.padded > a.padded ? b : a));
      if (!shown) return from;
      if (key === "ArrowUp" || key === "ArrowDown") {
        const at = heldColumn(from);
        const stack = pool.buffers
          .filter((b) => b.start <= at && at < b.end)
          .sort((a, b) => a.offset - b.offset);
        return stack[stack.indexOf(from) + (key === "ArrowUp" ? 1 : -1)] || from;
      }
      const order = pool.buffers.indexOf(from) + (key === "ArrowRight" ? 1 : -1);
      return pool.buffers[order] || from;
    }

    function heldColumn(buffer) {
      const inside = peakStep >= buffer.start && peakStep < buffer.end;
      return inside ? peakStep : buffer.start;
    }

    area.addEventListener("pointermove", (event) => {
      drawCursor(stepAt(event, area));
      if (!pinned) show(bufferAt(event));
    });
    area.addEventListener("pointerleave", () => {
      drawCursor(heldStep);
      if (!pinned) show(null);
    });
    area.addEventListener("click", (event) => pin(bufferAt(event)));
    area.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) {
        pinned = null;
        const next = neighbour(event.key);
        drawCursor(heldColumn(next));
        show(next);
      } else if (event.key === "Enter" || event.key === " ") {
        if (shown) pin(shown);
      } else if (event.key === "Escape") {
        pinned = null;
        show(null);
      } else {
        return;
      }
      event.preventDefault();
    });

    const choice = panel.querySelector(".colour-by");
    choice.hidden = false;
    choice.setAttribute("role", "radiogroup");
    choice.setAttribute("aria-label", "Colour by");
    for (const [key, value] of Object.entries(colourings)) {
      const label = make("label");
      const radio = label.appendChild(make("input"));
      radio.type = "radio";
      radio.name = "colour-" + plot.figure.dataset.pool;
      radio.checked = value === colouring;
      radio.addEventListener("change", () => {
        colouring = colourings[key];
        paint();
      });
      label.append(`Colour by ${value.label}`);
      choice.append(label);
    }
    if (canvas) {
      group.remove();
      svg.after(canvas);
      labels.remove();
      new ResizeObserver(paintCanvas).observe(area);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintCanvas);
    }
    if (canvas || count === 0) paint();
    show(null);
  }

  // ---- operators and buffers -----------------------------------------------------------------

  const views = {
    operators: {
      label: `Operators (${grouped(count)})`,
      rows: steps,
      text: (s) => `${s.op} ${s.name} ${s.again}`,
      columns: [
        { head: "Step", kind: "n", value: (s) => s.index, first: "ascending" },
        { head: "Operator", kind: "", value: (s) => s.op },
        { head: "Node", kind: "name", value: (s) => s.name, extra: (s) => s.again && `recompute of ${elide(s.again)}` },
        { head: "Live bytes", kind: "n", value: (s) => s.live },
        { head: "", kind: "barcell", value: (s) => Math.ceil((s.live * 50) / (peak || 1)) },
        { head: "Scratch", kind: "n", value: (s) => s.scratch },
      ],
    },
    buffers: {
      label: `Buffers (${grouped(pools.reduce((sum, pool) => sum + pool.buffers.length, 0))})`,
      rows: pools.flatMap((pool) => pool.buffers),
      text: (b) => `${b.name} ${b.kind} ${b.type} ${b.producer}`,
      columns: [
        { head: "Buffer", kind: "name", value: (b) => b.name },
        { head: "Kind", kind: "", value: (b) => b.kind },
        { head: "Type", kind: "", value: (b) => b.type },
        { head: "Bytes", kind: "n", value: (b) => b.bytes },
        { head: "Offset", kind: "n", value: (b) => b.offset },
        { head: "Alive", kind: "n", value: (b) => b.start, show: (b) => `[${b.start}, ${b.end})`, first: "ascending" },
      ],
    },
  };

  function startTable(table) {
    const section = table.closest("section");
    const controls = section.querySelector(".controls");
    const more = section.querySelector(".more");
    let view = views.operators;
    let sorted = null;
    let direction = "";
    let wanted = "";
    let all = false;

    const tabs = make("div", "tabs");
    tabs.setAttribute("role", "group");
    tabs.setAttribute("aria-label", "Table");
    for (const candidate of Object.values(views)) {
      const button = tabs.appendChild(make("button", "", candidate.label));
      button.type = "button";
      button.addEventListener("click", () => {
        [view, sorted, direction, all] = [candidate, null, "", false];
        draw();
      });
    }
    const filter = make("input");
    filter.type = "search";
    filter.placeholder = "Filter";
    filter.setAttribute("aria-label", "Filter by text");
    filter.addEventListener("input", () => {
      [wanted, all] = [filter.value.toLowerCase(), false];
      draw();
    });
    controls.append(tabs, filter);
    controls.hidden = false;

    function header(column) {
      const cell = make("th", column.kind);
      cell.scope = "col";
      if (!column.head) return cell;
      const button = cell.appendChild(make("button", "", column.head));
      button.type = "button";
      if (column === sorted) cell.setAttribute("aria-sort", direction);
      button.addEventListener("click", () => {
        const numeric = column.kind === "n" && column.first !== "ascending";
        if (column === sorted) direction = direction === "ascending" ? "descending" : "ascending";
        else direction = numeric ? "descending" : "ascending";
        sorted = column;
        draw();
        table.tHead.rows[0].cells[view.columns.indexOf(column)].querySelector("button").focus();
      });
      return cell;
    }

    function line(item) {
      const row = make("tr");
      if (view === views.operators) {
        row.dataset.step = item.index;
        if (item.index === peakStep) row.classList.add("at-peak");
        if (item.index === heldStep) row.classList.add("picked");
      }
      for (const column of view.columns) {
        const value = column.value(item);
        const cell = row.appendChild(make("td", column.kind));
        if (column.kind === "barcell") cell.classList.add("b" + value);
        else if (column.kind === "name") cell.append(makeName(value));
        else if (column.show) cell.textContent = column.show(item);
        else if (column.kind === "n" && !(column.head === "Scratch" && !value)) cell.textContent = grouped(value);
        else if (column.kind === "") cell.textContent = value;
        const extra = column.extra && column.extra(item);
        if (extra) cell.append(" ", make("small", "", extra));
      }
      return row;
    }

    function draw() {
      let rows = view.rows;
      if (wanted) rows = rows.filter((item) => view.text(item).toLowerCase().includes(wanted));
      if (sorted) {
        const sign = direction === "ascending" ? 1 : -1;
        const key = sorted.value;
        rows = [...rows].sort((a, b) => sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
      }
      const shown = all ? rows : rows.slice(0, FIRST_ROWS);
      table.classList.remove("static");
      table.tHead.rows[0].replaceChildren(...view.columns.map(header));
      table.tBodies[0].replaceChildren(...shown.map(line));
      Object.values(views).forEach((candidate, index) => {
        tabs.children[index].setAttribute("aria-pressed", String(candidate === view));
      });
      more.replaceChildren();
      more.hidden = shown.length === rows.length && rows.length > 0;
      if (!rows.length) more.append("Nothing matches.");
      if (shown.length < rows.length) {
        more.append(`${grouped(shown.length)} of ${grouped(rows.length)} rows. `);
        const button = more.appendChild(make("button", "", "Show all"));
        button.type = "button";
        button.addEventListener("click", () => {
          all = true;
          draw();
        });
      }
    }

    table.tBodies[0].addEventListener("click", (event) => {
      const row = event.target.closest("[data-step]");
      if (row && !String(getSelection())) holdStep(Number(row.dataset.step));
    });
    draw();
  }

  if (live) startLive();
  for (const plot of plots) if (plot.figure.dataset.chart === "map") startMap(plot);
  const operators = document.getElementById("operators");
  if (operators) startTable(operators);
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();

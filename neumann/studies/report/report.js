// The page is whole without this. It makes tables sortable, and draws the curves again from the data in the page, with
// a choice of axis, rows that can be switched off, and values under the pointer or the arrow keys.
"use strict";

// ------------------------------------------------------------------------------------------------------------- tables

const number = text => {
  const found = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").match(/^[<+]?\s*(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.])/);
  return found ? Number(found[1]) : null;
};

// The header cell below which each column stands: the lowest that spans no other column
function heads(table) {
  const rows = [...table.tHead.rows], grid = rows.map(() => []);
  rows.forEach((row, y) => {
    let x = 0;
    for (const cell of row.cells) {
      while (grid[y][x]) x++;
      for (let i = 0; i < cell.rowSpan; i++) for (let j = 0; j < cell.colSpan; j++) grid[y + i][x + j] = cell;
      x += cell.colSpan;
    }
  });
  return grid[rows.length - 1].map(cell => (cell.colSpan === 1 ? cell : null));
}

// What a cell is sorted by: its text without the notes under it; nothing of a note that spans columns
function value(cell) {
  if (!cell || cell.colSpan > 1) return "";
  const copy = cell.cloneNode(true);
  for (const note of copy.querySelectorAll(".under, .tag")) note.remove();
  return copy.textContent.trim();
}

function sortable(table) {
  const body = table.tBodies[0], groups = [];
  for (const row of body.rows) {
    if (row.classList.contains("note") && groups.length) groups[groups.length - 1].push(row); // it belongs to the one above
    else groups.push([row]);
  }
  if (groups.length < 3) return;
  heads(table).forEach((head, column) => {
    if (!head) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort"), up = was !== "ascending";
      const still = was === "descending"; // a third press gives the page's own order back
      const order = groups.map((rows, i) => ({ rows, i, text: value(rows[0].cells[column]) }));
      const known = one => number(one.text) ?? (/[\p{L}\d]/u.test(one.text) ? one.text : null);
      if (!still) {
        order.sort((a, b) => {
          const x = known(a), y = known(b);
          if (x === null || y === null) return (x === null) - (y === null) || a.i - b.i; // what is unknown comes last
          const apart = typeof x === typeof y
            ? (typeof x === "number" ? x - y : x.localeCompare(y, "en")) : (typeof x === "number" ? -1 : 1);
          return (up ? apart : -apart) || a.i - b.i;
        });
      }
      body.append(...order.flatMap(one => one.rows));
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      if (!still) head.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
}

// ------------------------------------------------------------------------------------------------------------- charts

const H = 340, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 44;
const COLOURS = ["blue", "vermilion", "green", "purple", "orange", "ink"], DASHES = ["", "7 4", "7 3 2 3", "2 3", "12 3"];

function make(name, attributes = {}, ...inside) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
}

function shown(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function axis(values, logarithmic, from, to) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) { low = logarithmic ? low / 2 : low - 0.5; high = logarithmic ? high * 2 : high + 0.5; }
  const f = logarithmic ? Math.log : x => x, a = f(low), b = f(high), pad = 0.03 * (b - a);
  const at = x => from + (to - from) * (f(x) - a + pad) / (b - a + 2 * pad);
  const ticks = [];
  if (logarithmic) {
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of high / low > 300 ? [1] : [1, 2, 5]) if (m * 10 ** e >= low * 0.98 && m * 10 ** e <= high * 1.02) ticks.push(m * 10 ** e);
  } else {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough)), step = unit * [1, 2, 5, 10].find(m => m * unit >= rough);
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) ticks.push(Number(t.toPrecision(12)));
  }
  return { at, ticks };
}

function choice(label, options, change) {
  const select = make("select");
  for (const [key, text] of Object.entries(options)) select.append(make("option", { value: key }, text));
  select.addEventListener("change", change);
  return { select, node: make("label", {}, `${label} `, select) };
}

function chart(data, after) {
  const W = Math.max(340, Math.min(720, after.parentElement.clientWidth)); // a telephone's letters stay as large
  const off = new Set(), tip = make("div", { class: "tip", role: "status" });
  const box = make("div", { class: "chart" }), controls = make("div", { class: "controls" }), rows = make("div", { class: "controls" });
  const y = choice("Show", data.y, draw), x = choice("against", data.x, draw);
  const logs = data.log.map((on, i) => {
    const input = make("input", { type: "checkbox" });
    input.checked = on;
    input.addEventListener("change", draw);
    return { input, node: make("label", {}, input, ` logarithmic ${i ? "y" : "x"}`) };
  });
  controls.append(y.node, x.node, ...logs.map(one => one.node));
  data.series.forEach((one, i) => {
    const input = make("input", { type: "checkbox" });
    input.checked = true;
    input.addEventListener("change", () => { input.checked ? off.delete(i) : off.add(i); draw(); });
    const swatch = make("svg", { width: 26, height: 8, "aria-hidden": "true" }, make("line", { x1: 0, x2: 26, y1: 4, y2: 4, ...look(i) }));
    rows.append(make("label", {}, input, " ", swatch, ` ${one.label}`));
  });
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, tabindex: "0", role: "img", "aria-label": `${data.title}, values under the pointer or by the arrow keys` });
  let places = [], at = -1;
  box.append(make("p", { class: "small" }, data.title), controls, rows, svg, tip);
  after.after(box);

  function look(i) {
    return { stroke: `var(--fig-${COLOURS[i % COLOURS.length]})`, "stroke-dasharray": DASHES[i % DASHES.length], "stroke-width": 1.8, fill: "none" };
  }

  function draw() {
    svg.replaceChildren();
    const [xs, ys, lx, ly] = [x.select.value, y.select.value, logs[0].input.checked, logs[1].input.checked];
    const lines = data.series.map((one, i) => ({ one, i, points: points(one, xs, ys, lx, ly) })).filter(l => !off.has(l.i) && l.points.length);
    places = [...new Set(lines.flatMap(l => l.points.map(p => p.x)))].sort((a, b) => a - b);
    at = -1;
    tip.textContent = "";
    if (!lines.length) {
      svg.append(make("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, "Nothing to show: switch a row on, or choose another axis."));
      return;
    }
    const across = axis(places, lx, LEFT, W - RIGHT);
    const upright = axis(lines.flatMap(l => l.points.map(p => p.y)), ly, H - BOTTOM, TOP);
    for (const t of upright.ticks) svg.append(
      make("line", { x1: LEFT, x2: W - RIGHT, y1: upright.at(t), y2: upright.at(t), stroke: "var(--fig-faint)" }),
      make("text", { x: LEFT - 8, y: upright.at(t) + 4, "text-anchor": "end" }, shown(t)));
    const most = Math.floor((W - LEFT - RIGHT) / 46), ticks = data.dots ? places : across.ticks;
    for (const t of ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0)) svg.append(make("text", { x: across.at(t), y: H - BOTTOM + 18, "text-anchor": "middle" }, shown(t)));
    svg.append(make("text", { x: (LEFT + W) / 2, y: H - 6, "text-anchor": "middle" }, data.x[xs]));
    const clip = v => Math.max(TOP, Math.min(H - BOTTOM, upright.at(ly && v <= 0 ? 1e-12 : v)));
    for (const { i, points } of lines) {
      const group = make("g", { "data-row": i });
      const band = points.filter(p => p.low !== null && p.high !== null);
      if (band.length > 1 && !data.dots) group.append(make("path", {
        d: `M${band.map(p => `${across.at(p.x)},${clip(p.high)}`).join("L")}L${band.reverse().map(p => `${across.at(p.x)},${clip(p.low)}`).join("L")}Z`,
        fill: `var(--fig-${COLOURS[i % COLOURS.length]})`, "fill-opacity": 0.14 }));
      if (data.dots) for (const p of band) group.append(make("line", { x1: across.at(p.x), x2: across.at(p.x), y1: clip(p.low), y2: clip(p.high), ...look(i), "stroke-dasharray": "" }));
      let pen = "";
      group.append(make("path", { d: points.map(p => { const d = `${pen && !p.gap ? "L" : "M"}${across.at(p.x)},${upright.at(p.y)}`; pen = "L"; return d; }).join(""), ...look(i) }));
      if (data.dots) for (const p of points) group.append(make("circle", { cx: across.at(p.x), cy: upright.at(p.y), r: 3.5, fill: `var(--fig-${COLOURS[i % COLOURS.length]})` }));
      svg.append(group);
    }
    const guide = make("line", { y1: TOP, y2: H - BOTTOM, stroke: "var(--fig-soft)", visibility: "hidden" });
    svg.append(guide);
    svg.show = index => {
      at = Math.max(0, Math.min(places.length - 1, index));
      const place = places[at];
      guide.setAttribute("x1", across.at(place));
      guide.setAttribute("x2", across.at(place));
      guide.setAttribute("visibility", "visible");
      const said = lines.flatMap(({ one, points }) => {
        const p = points.find(q => q.x === place);
        return p ? [`${one.label} ${shown(p.y)}${p.low !== null && p.high !== null ? ` [${shown(p.low)}, ${shown(p.high)}]` : ""}`] : [];
      });
      tip.textContent = `${data.x[xs]} ${shown(place)}: ${said.join("; ")}`;
    };
    svg.nearest = left => places.reduce((best, place, i) => Math.abs(across.at(place) - left) < Math.abs(across.at(places[best]) - left) ? i : best, 0);
  }

  function points(one, xs, ys, lx, ly) {
    const across = one.x[xs], up = one.y[ys];
    if (!across || !up) return [];
    let gap = false;
    return across.flatMap((place, i) => {
      const value = up.mean[i];
      if (place === null || value === null || (lx && place <= 0) || (ly && value <= 0)) { gap = true; return []; }
      const point = { x: place, y: value, low: up.low[i], high: up.high[i], gap };
      gap = false;
      return [point];
    });
  }

  svg.addEventListener("pointermove", event => {
    if (places.length) svg.show(svg.nearest((event.clientX - svg.getBoundingClientRect().left) * W / svg.getBoundingClientRect().width));
  });
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !places.length) return;
    event.preventDefault();
    svg.show(at + step);
  });
  draw();
}

for (const table of document.querySelectorAll("main table")) if (table.tHead && table.tBodies.length) sortable(table);
for (const data of JSON.parse(document.getElementById("data").textContent)) {
  const figure = document.querySelector(`#${data.id} figure`);
  if (figure && data.series.length) chart(data, figure);
}

"use strict";
/* Charts as inline SVG. drawChart(element, spec) draws at the element's present width, so text keeps its size on a phone.

   spec: title, unit, xs (steps), series [{name, color, ys (null = missing)}], and
     kind    "lines", "bars" (stacked), or "heat": counts [column][bin] in place of series, ends: each column's last step
     lows, highs of a series: its interval, shaded
     note    what else the legend has to say; together: steps behind a point
     log     logarithmic y axis; values <= 0 lie on its floor
     floor   lowest y that the axis must show; ceiling: highest it may
     smooth  draw noisy lines thin, with a running mean over them
     connect draw lines on over missing values
     axis    what xs count, if not steps; whole: they are whole numbers (default: steps are)
     good    a sentence: what is good, and what is not
     domain  [first, last] of it, shared by all charts of steps                                                    */

const NS = document.getElementById("svg-origin").namespaceURI;
const HEIGHT = 216, LEFT = 68, RIGHT = 12, TOP = 10, BOTTOM = 34;
const MANY = 60;  // from so many points on, single ones are not marked

function svg(tag, attributes, parent, text) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function html(tag, className, parent, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function show(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

function niceStep(span, count) {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find(factor => factor * 1.4 * power >= raw);  // 1.4: rather a tick more than too few
}

function linearTicks(low, high, count, whole) {
  let step = niceStep(high - low || 1, count);
  if (whole) step = Math.max(1, Math.round(step));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    const value = i * step, label = step < 1e-3 || high >= 1e6
      ? value.toExponential(Math.max(0, Math.floor(Math.log10(Math.abs(value))) - Math.floor(Math.log10(step) + 1e-9)))
      : value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
    ticks.push([value, i === 0 ? "0" : label]);
  }
  return ticks;
}

function yScale(spec, values) {
  if (spec.log) {
    const positive = values.filter(value => value > 0);
    let low = positive.length ? Math.floor(Math.log10(Math.min(...positive))) : -9;
    let high = positive.length ? Math.ceil(Math.log10(Math.max(...positive))) : -6;
    if (low === high) { low -= 1; high += 1; }
    const ticks = [], stride = Math.ceil((high - low) / 5);
    for (let power = low; power <= high; power += stride) ticks.push([10 ** power, "1e" + power]);
    const at = value => value > 0 ? (Math.log10(value) - low) / (high - low) : 0;
    return {at, ticks};
  }
  let low = Math.min(...values), high = Math.max(...values);
  if (spec.floor !== undefined) { low = Math.min(low, spec.floor); high = Math.max(high, spec.floor); }
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; high += pad; if (low !== spec.floor) low -= pad; }
  const pad = (high - low) * 0.06;
  high += pad;
  if (low !== spec.floor) low -= pad;
  if (spec.ceiling !== undefined) high = Math.min(high, spec.ceiling);
  return {at: value => (value - low) / (high - low), ticks: linearTicks(low, high, 4, spec.whole)};
}

/* Running mean over the neighbours; of logarithms on a log axis, where an arithmetic one would hug the peaks. */
function runningMean(ys, reach, log) {
  return ys.map((own, i) => {
    if (own === null) return null;
    let near = ys.slice(Math.max(0, i - reach), i + reach + 1).filter(y => y !== null);
    if (log) near = near.filter(y => y > 0).map(Math.log10);
    if (!near.length) return own;
    const mean = near.reduce((a, b) => a + b) / near.length;
    return log ? 10 ** mean : mean;
  });
}

/* Bars need a few pixels each: of more points than that, neighbours are averaged. size: steps behind a bar. */
function binned(spec, maxBars) {
  const size = Math.ceil(spec.xs.length / maxBars) || 1, together = spec.together || 1;
  if (size * together === 1) return {...spec, size};
  const starts = spec.xs.map((_, i) => i).filter(i => i % size === 0);
  const mean = (ys, i) => {
    const part = ys.slice(i, i + size).filter(y => y !== null);
    return part.length ? part.reduce((a, b) => a + b) / part.length : null;
  };
  const ends = starts.map(i => spec.xs[Math.min(i + size, spec.xs.length) - 1]);
  return {...spec, size: size * together, xs: starts.map(i => spec.xs[i] - together + 1), ends,
          series: spec.series.map(one => ({...one, ys: starts.map(i => mean(one.ys, i))}))};
}

function drawChart(card, full) {
  card.replaceChildren();
  html("h3", "", card, full.title);
  const legend = html("div", "legend", card);
  const series = full.series.filter(one => one.ys.some(y => y !== null));
  const heat = full.kind === "heat", whole = full.wholeAxis !== false;
  if (heat ? !full.xs.length : !series.length) { html("div", "empty", card, full.none || "no data yet"); return; }
  for (const one of series) html("span", "", legend, one.name).style.setProperty("--color", `var(--${one.color})`);

  if (heat) heatLegend(legend);
  if (full.note && series.some(one => one.lows?.some(y => y !== null))) html("em", "", legend, full.note);

  const width = Math.max(card.clientWidth - 28, 220);
  const plotWidth = width - LEFT - RIGHT, plotHeight = HEIGHT - TOP - BOTTOM;
  const bars = full.kind === "bars";
  const spec = bars ? binned({...full, series}, Math.floor(plotWidth / 4)) : {...full, series, size: 1};
  const [first, last] = full.domain, half = bars || heat || first === last ? 0.5 * Math.max(spec.size, 1) : 0;
  const x = step => LEFT + plotWidth * (step - first + half) / (last - first + 2 * half || 1);
  const tops = spec.xs.map((_, i) => spec.series.reduce((sum, one) => sum + (one.ys[i] || 0), 0));
  const shown = one => [...one.ys, ...(one.lows || []), ...(one.highs || [])].filter(y => y !== null);
  const scale = heat ? HEAT_SCALE : yScale(spec, bars ? tops : spec.series.flatMap(shown));
  const y = value => TOP + plotHeight * (1 - Math.min(Math.max(scale.at(value), 0), 1));

  const root = svg("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img",
                           "aria-label": `${full.title}, ${full.unit}, by ${full.axis || "step"}`}, card);
  for (const [value, label] of scale.ticks) {
    svg("line", {x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), stroke: "var(--grid)"}, root);
    svg("text", {x: LEFT - 7, y: y(value) + 4, "text-anchor": "end"}, root, label);
  }
  for (const [value, label] of linearTicks(first, last, Math.max(2, plotWidth / 90), whole)) {
    const middle = Math.min(x(value), width - 3.6 * label.length);  // so that the last label is not cut off
    svg("text", {x: middle, y: HEIGHT - BOTTOM + 17, "text-anchor": "middle"}, root, label);
  }
  svg("line", {x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "var(--pale)"}, root);
  svg("text", {x: LEFT + plotWidth / 2, y: HEIGHT - 3, "text-anchor": "middle"}, root, full.axis || "step");
  svg("text", {x: 11, y: TOP + plotHeight / 2, "text-anchor": "middle",
               transform: `rotate(-90 11 ${TOP + plotHeight / 2})`}, root, full.unit);

  if (heat) drawHeat(root, spec, x, y);
  else if (bars) drawBars(root, spec, x, y, plotWidth * spec.size / (last - first + 2 * half));
  else for (const one of spec.series) drawLine(root, spec, one, legend, x, y);
  hover(root, spec, x, y, bars);
  if (full.good) html("p", "hint", card, full.good);
}

/* A card for each of specs(), drawn again whenever the width changes, or the returned function is called. */
function fillCharts(parent, specs) {
  const cards = specs().map(() => html("article", "chart", parent));
  let drawnWidth = 0;
  const draw = () => specs().forEach((spec, i) => drawChart(cards[i], spec));
  const resized = () => {
    if (parent.clientWidth === drawnWidth) return;
    drawnWidth = parent.clientWidth;
    draw();
  };
  resized();
  window.addEventListener("resize", () => requestAnimationFrame(resized));
  return draw;
}

/* A small curve without axes, for a row of a table. */
function sparkline(parent, ys) {
  const width = 96, height = 22, there = ys.map((y, i) => [i, y]).filter(([, y]) => y !== null);
  if (there.length < 2) return;
  const values = there.map(([, y]) => y), low = Math.min(...values), span = Math.max(...values) - low || 1;
  const at = ([i, y]) => `${(2 + (width - 4) * i / (ys.length - 1)).toFixed(1)} ${(height - 3 - (height - 6) * (y - low) / span).toFixed(1)}`;
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, class: "spark", "aria-hidden": "true"}, parent);
  svg("path", {d: "M" + there.map(at).join("L"), fill: "none", stroke: "var(--blue)", "stroke-width": 1.5}, root);
}

/* Groups by correct rate: ten bins, of which the lowest is "none right" and the highest "all right". */
const BIN_NAMES = ["none right", ...Array.from({length: 8}, (_, i) => `${12.5 * i}–${12.5 * (i + 1)}%`), "all right"];
const HEAT_SCALE = {at: value => value / BIN_NAMES.length,
                    ticks: [[0.5, "none"], [3, "25%"], [5, "50%"], [7, "75%"], [9.5, "all"]]};
const shade = share => Math.sqrt(share);  // so that a small share can still be seen

function heatLegend(legend) {
  html("em", "", legend, "share of the step's groups:");
  for (const share of [0.02, 0.1, 0.3, 1]) {
    const key = html("span", "", legend, `${100 * share}%`);
    key.style.setProperty("--color", `color-mix(in srgb, var(--blue) ${100 * shade(share)}%, transparent)`);
  }
}

function drawHeat(root, spec, x, y) {
  spec.xs.forEach((step, i) => {
    const total = spec.counts[i].reduce((a, b) => a + b, 0), left = x(step - 0.5), width = x(spec.ends[i] + 0.5) - left;
    spec.counts[i].forEach((count, bin) => {
      if (count) svg("rect", {x: left, y: y(bin + 1) + 0.5, width: Math.max(width - (width > 4 ? 1 : 0), 1),
                              height: y(bin) - y(bin + 1) - 1, fill: "var(--blue)",
                              "fill-opacity": shade(count / total).toFixed(3)}, root);
    });
  });
}

/* The shaded interval of a line; where it has a single point, a bar. */
function drawInterval(root, spec, one, x, y) {
  const at = spec.xs.map((_, i) => i).filter(i => one.lows[i] !== null && one.highs[i] !== null);
  if (at.length === 1) {
    const [i] = at;
    svg("line", {x1: x(spec.xs[i]), x2: x(spec.xs[i]), y1: y(one.lows[i]), y2: y(one.highs[i]), "stroke-width": 6,
                 stroke: `var(--${one.color})`, opacity: 0.3}, root);
  } else if (at.length) {
    const points = [...at.map(i => [i, one.highs[i]]), ...at.reverse().map(i => [i, one.lows[i]])]
      .map(([i, value]) => `${x(spec.xs[i]).toFixed(1)},${y(value).toFixed(1)}`);
    svg("polygon", {points: points.join(" "), fill: `var(--${one.color})`, opacity: 0.16}, root);
  }
}

function drawBars(root, spec, x, y, pitch) {
  const thick = Math.max(Math.min(pitch * 0.82, 46), 1);
  spec.xs.forEach((step, i) => {
    let below = 0;
    const centre = x(spec.ends ? (step + spec.ends[i]) / 2 : step);
    for (const one of spec.series) {
      const value = one.ys[i] || 0;
      if (value > 0) svg("rect", {x: centre - thick / 2, y: y(below + value), width: thick,
                                  height: y(below) - y(below + value), fill: `var(--${one.color})`}, root);
      below += value;
    }
  });
}

function drawLine(root, spec, one, legend, x, y) {
  const path = ys => {
    let d = "", pen = false;
    ys.forEach((value, i) => {
      if (value !== null) d += `${pen ? "L" : "M"}${x(spec.xs[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value !== null || (pen && spec.connect);
    });
    return d;
  };
  const style = {fill: "none", stroke: `var(--${one.color})`, "stroke-linejoin": "round"};
  const smooth = spec.smooth && spec.xs.length > MANY, reach = Math.ceil(spec.xs.length / 60);
  if (one.lows) drawInterval(root, spec, one, x, y);
  svg("path", {...style, d: path(one.ys), "stroke-width": smooth ? 1 : 2, opacity: smooth ? 0.3 : 1}, root);
  if (smooth) {
    svg("path", {...style, d: path(runningMean(one.ys, reach, spec.log)), "stroke-width": 2}, root);
    if (one === spec.series[0]) html("em", "", legend, `thick: mean of ${(2 * reach + 1) * (spec.together || 1)} steps`);
  }
  one.ys.forEach((value, i) => {
    const alone = (one.ys[i - 1] ?? null) === null && (one.ys[i + 1] ?? null) === null;
    if (value !== null && (spec.xs.length <= MANY || alone))
      svg("circle", {cx: x(spec.xs[i]), cy: y(value), r: 2.8, fill: `var(--${one.color})`}, root);
  });
}

function hover(root, spec, x, y, bars) {
  const tip = document.getElementById("tooltip");
  const guide = svg("line", {y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--quiet)", "stroke-dasharray": "3 3",
                             visibility: "hidden"}, root);
  const centres = spec.xs.map((step, i) => x(spec.ends ? (step + spec.ends[i]) / 2 : step));
  const move = event => {
    const box = root.getBoundingClientRect(), at = event.clientX - box.left;
    let i = 0;
    centres.forEach((centre, j) => { if (Math.abs(centre - at) < Math.abs(centres[i] - at)) i = j; });
    for (const end of ["x1", "x2"]) guide.setAttribute(end, centres[i]);
    guide.setAttribute("visibility", "visible");
    const end = spec.ends ? spec.ends[i] : spec.xs[i], start = spec.ends ? spec.xs[i] : end - (spec.together || 1) + 1;
    tip.replaceChildren();
    html("strong", "", tip, spec.wholeAxis === false ? `${show(end)} ${spec.axis}` : start === end ? `${spec.axis || "step"} ${end}` : `${spec.axis || "step"}s ${start}–${end}${spec.counts ? "" : ", together"}`);
    for (const one of bars ? [...spec.series].reverse() : spec.series) {
      if (one.ys[i] === null) continue;
      const row = html("div", "", tip);
      html("i", "", row).style.setProperty("--color", `var(--${one.color})`);
      html("span", "", row, one.name);
      const interval = one.lows && one.lows[i] !== null ? ` (${show(one.lows[i])}–${show(one.highs[i])})` : "";
      html("b", "", row, `${show(one.ys[i])}${interval} ${spec.unit}`);
    }
    if (spec.counts) [...BIN_NAMES].reverse().forEach((name, j) => {
      const row = html("div", "", tip);
      html("span", "", row, name);
      html("b", "", row, `${spec.counts[i][BIN_NAMES.length - 1 - j]}`);
    });
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const top = event.clientY - tip.offsetHeight - 12;
    tip.style.transform = `translate(${Math.max(left, 8)}px, ${top > 8 ? top : event.clientY + 18}px)`;
  };
  const leave = () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); };
  root.addEventListener("pointermove", move);
  root.addEventListener("pointerdown", move);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("pointercancel", leave);
}

"use strict";
/* chartSpecs(charts, axis): what charts.js draws, of the rows of observe/charts.py that one section of the page has.

   A chart of lines is drawn as its row says; one of a kind of its own has a function in KINDS_OF_CHARTS. Bars and the
   picture of groups stay over steps, where each has its width; lines go over whatever axis is chosen.                 */

const PALETTE = ["blue", "orange", "teal", "purple", "red", "yellow", "grey"];
const AXES = {  // name -> the metric that it is, what it counts, whether in whole numbers, its factor
  step: [null, "step", true, 1],
  update: ["train/updates", "update", true, 1],
  hour: ["axis/hours", "hours", false, 1],
  token: ["axis/tokens", "M tokens trained on", false, 1e-6],
};

const column = (table, name) => table.metrics[name] || table.step.map(() => null);
const present = ys => ys.filter(y => y !== null && y !== undefined);
const scaled = (ys, factor) => ys.map(y => y === null ? null : factor * y);
const one = (name, color, ys) => ({name, color, ys});

/* Axes that all points of these tables of steps and evaluations have. */
function axesThere(all) {
  const tables = all.filter(table => table.step.length);
  return Object.keys(AXES).filter(name => {
    const metric = AXES[name][0];
    return !metric || tables.every(table => column(table, metric).every(x => x !== null));
  });
}

function axisOf(table, name) {
  const [metric, , , factor] = AXES[name];
  return metric ? scaled(column(table, metric), factor) : table.step;
}

function chartSpecs(charts, axisName) {
  const all = [data.steps, data.evaluations].flatMap(table => axisOf(table, axisName)).filter(x => x !== null);
  const domain = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const allSteps = data.steps.step.concat(data.evaluations.step);
  const steps = allSteps.length ? [Math.min(...allSteps), Math.max(...allSteps)] : [0, 1];
  const of = (chart, table, series, more) => {
    const bars = more?.kind === "bars" || more?.kind === "heat";
    const over = bars ? {xs: table.step, domain: steps}
                      : {xs: axisOf(table, axisName), domain, axis: AXES[axisName][1], wholeAxis: AXES[axisName][2]};
    return {title: chart.title, unit: chart.unit, good: chart.good, kind: "lines", together: table.together, series,
            ...chart.rest, ...over, ...more};
  };
  return charts.flatMap(chart => (KINDS_OF_CHARTS[chart.kind] || lines)(chart, of)).filter(spec =>
    spec.kind === "heat" ? spec.xs.length : spec.series.some(its => present(its.ys).length));
}

function lines(chart, of) {
  const inSteps = chart.lines.some(([, metric]) => present(column(data.steps, metric)).length);
  const table = inSteps ? data.steps : data.evaluations;
  return [of(chart, table, chart.lines.map(([name, metric], i) =>
    one(name, PALETTE[i % PALETTE.length], scaled(column(table, metric), chart.factor))))];
}

const withInterval = (name, color, table, metric) => ({
  ...one(name, color, scaled(column(table, metric), 100)),
  lows: scaled(column(table, `${metric}_low`), 100), highs: scaled(column(table, `${metric}_high`), 100)});
const SHADED = {note: "shaded: 95% interval"};

function accuracyChart(chart, of) {
  const count = Object.keys(data.benchmarks).length, k = present(column(data.evaluations, "eval/k")).at(-1) || "k";
  const title = count < 2 ? chart.title : `${chart.title}, over all prompts`;
  return [of({...chart, title}, data.evaluations, chart.lines.map(([name, metric], i) =>
    withInterval(name.replace("@k", `@${k}`), PALETTE[i], data.evaluations, metric)), SHADED)];
}

function benchmarksChart(chart, of) {
  const names = Object.keys(data.benchmarks);
  if (names.length < 2) return [];
  const kind = names.some(name => data.benchmarks[name].metrics["eval/avg_at_k"]) ? "avg_at_k" : "greedy_accuracy";
  const title = kind === "avg_at_k" ? "Benchmarks, avg@k" : "Benchmarks, greedy";
  const colors = ["blue", "purple", "yellow", "teal", "orange", "red", "grey"];
  return [of({...chart, title}, data.evaluations, names.map((name, i) =>
    withInterval(name, colors[i % colors.length], data.benchmarks[name], `eval/${kind}`)), SHADED)];
}

/* Of several benchmarks, each weighing the same: over the axis, and over updates with the ends of published curves. */
function averageCharts(chart, of) {
  const own = withInterval("this run", "blue", data.evaluations, "eval/average");
  const title = `Mean of the ${Object.keys(data.benchmarks).length} benchmarks`;
  const updates = column(data.evaluations, "train/updates"), {updates: end, ends = {}} = data.published;
  const xs = [...new Set([...updates, ...(end ? [0, end] : [])].filter(x => x !== null))].sort((a, b) => a - b);
  const at = ys => xs.map(x => { const i = updates.indexOf(x); return i < 0 ? null : ys[i]; });
  const published = Object.entries(ends).map(([name, [first, last]], i) =>
    one(`${name}, published`, ["teal", "orange"][i], xs.map(x => x === 0 ? first : x === end ? last : null)));
  const ours = {...own, ys: at(own.ys), lows: at(own.lows), highs: at(own.highs)};
  return [
    of({...chart, title}, data.evaluations, [own], SHADED),
    of({...chart, title: `${title}, by updates`}, data.evaluations, [ours, ...published],
       {...SHADED, axis: "update", wholeAxis: true, xs, connect: true, together: 1, domain: [0, xs.at(-1) || 1]}),
  ];
}

function stagesChart(chart, of) {
  const stages = data.stages.map((stage, i) =>
    one(stage, ["blue", "purple", "yellow", "teal", "orange", "red", "grey"][i % 7], column(data.steps, `time/${stage}_s`)));
  const between = column(data.steps, "time/step_s").map((total, i) =>
    total === null ? null : Math.max(0, total - stages.reduce((sum, stage) => sum + (stage.ys[i] || 0), 0)));
  return [of(chart, data.steps, [...stages, one("between", "pale", between)], {kind: "bars"})];
}

function verdictsChart(chart, of) {
  const colors = {right: "teal", wrong: "orange", unparsable: "purple", timeout: "yellow", error: "red"};
  const kinds = chart.lines.map(([kind, metric]) => one(kind, colors[kind], column(data.steps, metric)));
  const judged = data.steps.step.map((_, i) => kinds.reduce((sum, kind) => sum + (kind.ys[i] || 0), 0));
  const shares = kinds.filter(kind => kind.ys.some(y => y > 0))
    .map(kind => ({...kind, ys: kind.ys.map((y, i) => y === null || !judged[i] ? null : 100 * y / judged[i])}));
  return [of(chart, data.steps, shares, {kind: "bars"})];
}

function rulesChart(chart, of) {
  const right = column(data.steps, "verdict/right");
  return [of(chart, data.steps, chart.lines.map(([name, metric], i) =>
    one(name, ["orange", "purple", "blue"][i], column(data.steps, metric).map((y, j) =>
      y === null ? null : right[j] ? 100 * y / right[j] : 0))))];
}

function heatChart(chart, of) {
  const {step, last, counts} = data.rates;
  return [of(chart, {...data.steps, step}, [], {kind: "heat", ends: last, counts})];
}

const KINDS_OF_CHARTS = {lines, accuracy: accuracyChart, average: averageCharts, benchmarks: benchmarksChart,
                         stages: stagesChart, verdicts: verdictsChart, rules: rulesChart, heat: heatChart};

"use strict";
/* Fills the page of several runs from the embedded JSON. What comes from a run is set as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const tables = data.runs.flatMap(run => [run.steps, run.evaluations]);
const INTERVALS = ["accuracy", "average"];
const LEFT_OUT = ["heat", "benchmarks", "rules"];  // of one run only

/* The first line of a chart that was measured, of every run. */
function comparedSpecs(charts, axisName) {
  const [, axis, wholeAxis] = AXES[axisName];
  const all = tables.flatMap(table => axisOf(table, axisName)).filter(x => x !== null);
  const domain = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  return charts.filter(chart => !LEFT_OUT.includes(chart.kind)).map(chart => {
    const [label, metric] = chart.lines[0];
    const kind = data.runs.some(run => present(column(run.steps, metric)).length) ? "steps" : "evaluations";
    const factor = chart.kind === "verdicts" ? 1 : chart.factor, unit = chart.kind === "verdicts" ? "answers" : chart.unit;
    const own = data.runs.map(run => axisOf(run[kind], axisName));
    const xs = [...new Set(own.flat())].filter(x => x !== null).sort((a, b) => a - b);
    const series = data.runs.map((run, i) => {
      const at = new Map(own[i].map((x, j) => [x, j])), spread = ys => xs.map(x => at.has(x) && ys[at.get(x)] !== null ? factor * ys[at.get(x)] : null);
      const its = {name: run.label, color: PALETTE[i % PALETTE.length], ys: spread(column(run[kind], metric))};
      if (!INTERVALS.includes(chart.kind)) return its;
      return {...its, lows: spread(column(run[kind], `${metric}_low`)), highs: spread(column(run[kind], `${metric}_high`))};
    });
    const {ceiling, ...rest} = chart.rest;
    return {title: chart.lines.length > 1 && label && label !== "loss" ? `${chart.title}: ${label}` : chart.title, unit, good: chart.good, xs, series,
            domain, axis, wholeAxis, kind: "lines", connect: true, note: "shaded: 95% interval", ...rest,
            ...(ceiling && factor === 100 ? {ceiling} : {})};
  }).filter(spec => spec.series.some(its => present(its.ys).length));
}

function fillTable(id, rows) {
  const head = html("tr", "", byId(id));
  for (const title of ["", ...data.runs.map(run => run.label)]) html("th", "", head, title);
  for (const [name, values] of rows) {
    const row = html("tr", "", byId(id));
    html("td", "name", row, name);
    for (const value of values) html("td", "value", row, value);
  }
}

/* A value as people write it: fractions as percent, with their interval where there is one. */
function written(table, metric, place) {
  const ys = column(table, metric), there = ys.map((y, i) => y === null ? -1 : i).filter(i => i >= 0), i = there.at(place);
  if (i === undefined) return "–";
  const percent = y => `${(100 * y).toFixed(1)}`, low = column(table, `${metric}_low`)[i], high = column(table, `${metric}_high`)[i];
  return `${percent(ys[i])}%` + (low === null || high === null ? "" : ` (${percent(low)}–${percent(high)})`);
}

function fillResults() {
  const rows = [["steps", data.runs.map(run => show(run.steps.step.at(-1) ?? 0))]];
  rows.push(["minutes in steps", data.runs.map(run =>
    show(present(column(run.steps, "time/step_s")).reduce((a, b) => a + b, 0) * run.steps.together / 60))]);
  const accuracies = [["eval/average", "mean of the benchmarks"], ["eval/greedy_accuracy", "greedy accuracy"],
                      ["eval/avg_at_k", "avg@k"]];
  for (const [metric, label] of accuracies) {
    if (!data.runs.some(run => present(column(run.evaluations, metric)).length)) continue;
    rows.push([`${label}, first`, data.runs.map(run => written(run.evaluations, metric, 0))]);
    rows.push([`${label}, last`, data.runs.map(run => written(run.evaluations, metric, -1))]);
  }
  rows.push(["correct rate of rollouts, last", data.runs.map(run => written(run.steps, "nft/correct_rate", -1))]);
  for (const [metric, label] of [["nft/loss", "loss"], ["actor/grad_norm", "gradient norm"],
                                 ["rollout/answer_tokens_mean", "answer length"], ["perf/gpu_hours", "GPU hours"]]) {
    if (data.runs.some(run => present(column(run.steps, metric)).length))
      rows.push([`${label}, last`, data.runs.map(run => show(present(column(run.steps, metric)).at(-1)))]);
  }
  fillTable("results", rows);
}

function fillAnswers() {
  byId("side-by-side").hidden = !data.answers.length;
  for (const problem of data.answers) {
    const card = html("article", "answer", byId("answers"));
    html("header", "quiet", card, `${problem.prompt_id}, gold: ${problem.ground_truth}`);
    html("pre", "", card, problem.prompt);
    const beside = html("div", "beside", card);
    problem.answers.forEach((answer, i) => {
      if (!answer) return;
      const part = html("div", "", beside), right = answer.verdict === "right" && !answer.truncated;
      html("span", `chip ${right ? "good" : "miss"}`, part, answer.verdict + (answer.truncated ? ", truncated" : ""));
      html("span", "quiet", part, ` ${data.runs[i].label}, step ${answer.step}, ${answer.num_tokens} tokens, extracted: ${answer.detail || "nothing"}`);
      html("pre", "", part, answer.answer || "(empty)");
    });
  }
}

byId("title").textContent = `${data.runs.length} runs compared`;
const box = byId("axis"), redraws = [];
for (const name of axesThere(tables)) html("option", "", box, name).value = name;
for (const section of data.sections) {
  if (!comparedSpecs(section.charts, "step").length) continue;
  html("h2", "section", byId("charts"), section.title);
  redraws.push(fillCharts(html("section", "charts", byId("charts")), () => comparedSpecs(section.charts, box.value)));
}
byId("axis-label").hidden = !redraws.length || box.options.length < 2;
box.addEventListener("change", () => redraws.forEach(redraw => redraw()));
fillResults();
fillAnswers();
fillTable("differences", Object.entries(data.differences));
if (data.reload_s) setTimeout(() => location.reload(), 1000 * data.reload_s);

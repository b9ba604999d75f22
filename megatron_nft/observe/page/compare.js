"use strict";
/* Fills the page of several runs from the embedded JSON. Everything from a run is set as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const COLORS = ["blue", "orange", "teal", "purple", "red", "yellow", "grey"];
const CHARTS = [  // title, kind of record, metric, factor, unit, rest of the chart's spec
  ["Mean of the benchmarks", "evaluations", "eval/average", 100, "%", {ceiling: 100}],
  ["Held-out accuracy, greedy", "evaluations", "eval/greedy_accuracy", 100, "%", {ceiling: 100}],
  ["Held-out accuracy, avg@k", "evaluations", "eval/avg_at_k", 100, "%", {ceiling: 100}],
  ["Correct rate of rollouts", "steps", "nft/correct_rate", 100, "%", {ceiling: 100, smooth: true}],
  ["Loss", "steps", "nft/loss", 1, "nats/token", {smooth: true}],
  ["Gradient norm", "steps", "actor/grad_norm", 1, "norm", {floor: 0, smooth: true}],
  ["Entropy", "steps", "nft/entropy", 1, "nats/token", {floor: 0, smooth: true}],
  ["Log-prob gap, engine to actor", "steps", "rollout/logprob_gap_mean", 1, "nats/token", {log: true, smooth: true}],
  ["Answer length", "steps", "rollout/answer_tokens_mean", 1, "tokens", {floor: 0, smooth: true}],
  ["Truncated answers", "steps", "rollout/truncated_fraction", 100, "%", {floor: 0, ceiling: 100, smooth: true}],
  ["Time of a step", "steps", "time/step_s", 1, "s", {floor: 0, smooth: true}],
];

function chartSpecs() {
  const all = data.runs.flatMap(run => [...run.steps.step, ...run.evaluations.step]);
  const domain = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  return CHARTS.map(([title, kind, metric, factor, unit, rest]) => {
    const xs = [...new Set(data.runs.flatMap(run => run[kind].step))].sort((a, b) => a - b);
    const series = data.runs.map((run, i) => {
      const ys = run[kind].metrics[metric] || [], at = new Map(run[kind].step.map((step, j) => [step, ys[j] ?? null]));
      return {name: run.label, color: COLORS[i % COLORS.length],
              ys: xs.map(step => at.has(step) && at.get(step) !== null ? factor * at.get(step) : null)};
    });
    return {title, unit, xs, series, domain, kind: "lines", connect: true, ...rest};
  }).filter(spec => spec.series.some(one => one.ys.some(y => y !== null)));
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

function fillResults() {
  const ends = (run, kind, metric) => (run[kind].metrics[metric] || []).filter(y => y !== null);
  const rows = [["steps", data.runs.map(run => show(run.steps.step.at(-1) ?? 0))]];
  rows.push(["minutes in steps", data.runs.map(run =>
    show(ends(run, "steps", "time/step_s").reduce((a, b) => a + b, 0) / 60))]);
  for (const [kind, metric] of CHARTS.map(chart => [chart[1], chart[2]]).filter(chart => chart[0] === "evaluations")) {
    rows.push([`${metric}, first`, data.runs.map(run => show(ends(run, kind, metric)[0]))]);
    rows.push([`${metric}, last`, data.runs.map(run => show(ends(run, kind, metric).at(-1)))]);
  }
  for (const metric of ["nft/correct_rate", "nft/loss", "actor/grad_norm", "rollout/answer_tokens_mean"])
    rows.push([`${metric}, last`, data.runs.map(run => show(ends(run, "steps", metric).at(-1)))]);
  fillTable("results", rows);
}

byId("title").textContent = `${data.runs.length} runs compared`;
fillCharts(byId("charts"), chartSpecs());
fillResults();
fillTable("differences", Object.entries(data.differences));

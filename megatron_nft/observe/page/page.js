"use strict";
/* Fills the page from the embedded JSON. Everything from a run is set as text, never as markup: answers are untrusted. */

const data = JSON.parse(document.getElementById("data").textContent);
const {run, steps, evaluations} = data;
const byId = id => document.getElementById(id);

function fillHeader() {
  document.title = `${run.name}: training report`;
  byId("run-name").textContent = run.name;
  const [verdict, ...reason] = run.verdict.split(/: (.*)/s);
  byId("run-verdict").textContent = verdict;
  byId("run-verdict").classList.add(verdict === "done" ? "good" : verdict === "running" ? "plain" : "bad");
  byId("error").hidden = !reason.length;
  if (reason.length) byId("error-text").textContent = reason[0];
  for (const [label, value] of Object.entries(run.facts)) {
    if (!value) continue;
    html("dt", "", byId("facts"), label);
    html("dd", "", byId("facts"), value);
  }
  byId("recipe").textContent = run.recipe;
}

function fillHeadline() {
  const number = (value, label, className) => {
    const card = html("div", "number", byId("headline"));
    html("b", className || "", card, value);
    html("small", "", card, label);
  };
  const kinds = [["eval/average", "mean of the benchmarks"], ["eval/greedy_accuracy", "greedy accuracy"],
                 ["eval/avg_at_k", "sampled accuracy"]];
  const [metric, kind] = kinds.find(([name]) => present(column(evaluations, name)).length) || [];
  const values = metric ? present(column(evaluations, metric)) : [];
  const prompts = metric === "eval/greedy_accuracy" ? present(column(evaluations, "eval/prompts")).at(-1) : 0;
  const points = value => (100 * value).toFixed(1);
  if (values.length > 1) {
    const gain = 100 * (values.at(-1) - values[0]);
    number(`${points(values[0])} → ${points(values.at(-1))}%`, `${kind}, before → after`);
    // The binomial error: without it a small held-out set would promise too much.
    const variance = p => p * (1 - p) / prompts;  // of an accuracy; of a difference the sum of both
    const error = prompts ? ` ± ${(100 * Math.sqrt(variance(values[0]) + variance(values.at(-1)))).toFixed(1)}` : "";
    const label = prompts ? `points gained${error} (1\u00a0s.e.) on ${prompts.toLocaleString("en-US")} prompts`
                          : "points gained, held-out";
    const [sign, className] = gain > 0 ? ["+", "good"] : gain < 0 ? ["−", "bad"] : ["", ""];
    number(sign + Math.abs(gain).toFixed(1), label, className);
  } else if (values.length) number(`${points(values[0])}%`, `${kind}, one evaluation`);
  const updates = present(column(steps, "train/updates")).at(-1);
  number(`${run.num_steps.toLocaleString("en-US")} of ${run.total_steps.toLocaleString("en-US")}`,
         updates ? `steps; ${updates.toLocaleString("en-US")} optimizer updates` : "steps");
  const hours = present(column(steps, "perf/gpu_hours")).at(-1);
  number(run.minutes < 10 ? run.minutes.toFixed(1) : Math.round(run.minutes).toLocaleString("en-US"),
         hours ? `minutes; ${show(hours)} GPU hours` : "minutes");
}

/* Sections of charts; lines are drawn again over another axis when one is chosen, and it is kept in the address. */
function fillSections() {
  const box = byId("axis"), redraws = [];
  for (const name of axesThere([steps, evaluations])) html("option", "", box, name).value = name;
  for (const section of data.sections) {
    if (!chartSpecs(section.charts, "step").length) continue;
    html("h2", "section", byId("charts"), section.title);
    const grid = html("section", "charts", byId("charts"));
    redraws.push(fillCharts(grid, () => chartSpecs(section.charts, box.value)));
  }
  byId("axis-label").hidden = !redraws.length || box.options.length < 2;
  box.addEventListener("change", () => redraws.forEach(redraw => redraw()));
}

function fillTimeline() {
  const card = byId("timeline");
  card.hidden = !data.timeline || !data.timeline.tracks.length;
  if (card.hidden) return;
  const draw = () => drawTimeline(card, data.timeline);
  draw();
  window.addEventListener("resize", () => requestAnimationFrame(draw));
}

function fillMetrics() {
  const table = byId("metrics"), head = html("tr", "", table);
  for (const title of ["metric", "first", "last", "", "unit", "meaning"]) html("th", "", head, title);
  for (const [name, {unit, meaning}] of Object.entries(data.metrics)) {
    const ofSteps = present(column(steps, name)).length, ys = column(ofSteps ? steps : evaluations, name);
    const values = present(ys);
    if (!values.length) continue;
    const row = html("tr", "", table);
    html("td", "name", row, name);
    html("td", "value first", row, show(values[0]));
    html("td", "value", row, show(values.at(-1)));
    sparkline(html("td", "curve", row), ys);
    html("td", "unit", row, unit);
    html("td", "quiet meaning", row, meaning);
  }
}

const FILTERS = [
  {name: "from", label: "from", of: answer => answer.source === "train" ? "training" : "held-out"},
  {name: "step", label: "step", of: answer => String(answer.step)},
  {name: "version", label: "policy version", of: answer => String(answer.policy_version)},
];

fillHeader();
fillHeadline();
fillSections();
fillTimeline();
fillMetrics();
byId("evaluation").hidden = data.tables.every(rows => !rows.length);
fillTables(byId("evaluation"), data.tables, label => label.startsWith("this run"));
byId("browser").hidden = !data.answers.length;
browseAnswers(data.answers, FILTERS);
if (run.verdict.startsWith("failed")) byId("headline").before(byId("browser"));  // what went wrong comes first
if (run.reload_s) setTimeout(() => location.reload(), 1000 * run.reload_s);

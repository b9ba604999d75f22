"use strict";
/* Fills the page from the embedded JSON. Everything from a run is set as text, never as markup: answers are untrusted. */

const data = JSON.parse(document.getElementById("data").textContent);
const {run, steps, evaluations} = data;
const byId = id => document.getElementById(id);
const percent = ys => ys.map(y => y === null ? null : 100 * y);
const column = (table, name) => table.metrics[name] || table.step.map(() => null);
const present = ys => ys.filter(y => y !== null);

function fillHeader() {
  document.title = `${run.name}: training report`;
  byId("run-name").textContent = run.name;
  byId("run-verdict").textContent = run.verdict;
  byId("run-verdict").classList.add(run.verdict === "done" ? "good" : run.verdict === "running" ? "plain" : "bad");
  for (const [label, value] of [["Model", run.model], ["Layout", run.layout]]) {
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
  const [metric, kind] = [["eval/average", "mean of the benchmarks"], ["eval/greedy_accuracy", "greedy accuracy"],
                          ["eval/avg_at_k", "sampled accuracy"]].find(([name]) => present(column(evaluations, name)).length)
                         || ["eval/greedy_accuracy", "greedy accuracy"];
  const values = present(column(evaluations, metric));
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
  else number("–", `${kind}: no evaluation yet`);
  const updates = present(column(steps, "train/updates")).at(-1);
  number(`${run.num_steps.toLocaleString("en-US")} of ${run.total_steps.toLocaleString("en-US")}`,
         updates ? `steps; ${updates.toLocaleString("en-US")} optimizer updates` : "steps");
  number(run.minutes < 10 ? run.minutes.toFixed(1) : Math.round(run.minutes).toLocaleString("en-US"), "minutes");
}

function chartSpecs() {
  const one = (name, color, ys) => ({name, color, ys});
  const accuracy = (name, color, table, metric) => ({...one(name, color, percent(column(table, metric))),
    lows: percent(column(table, `${metric}_low`)), highs: percent(column(table, `${metric}_high`))});
  const colors = ["blue", "purple", "yellow", "teal", "orange", "red", "grey"];
  const stages = data.stages.map((stage, i) => one(stage, colors[i % colors.length], column(steps, `time/${stage}_s`)));
  const between = column(steps, "time/step_s").map((total, i) =>
    total === null ? null : Math.max(0, total - stages.reduce((sum, stage) => sum + (stage.ys[i] || 0), 0)));
  const kinds = [["right", "teal"], ["wrong", "orange"], ["unparsable", "purple"], ["timeout", "yellow"], ["error", "red"]]
    .map(([kind, color]) => one(kind, color, column(steps, `verdict/${kind}`)));
  const judged = steps.step.map((_, i) => kinds.reduce((sum, kind) => sum + (kind.ys[i] || 0), 0));
  const shares = kinds.filter(kind => kind.ys.some(y => y > 0))
    .map(kind => ({...kind, ys: kind.ys.map((y, i) => y === null || !judged[i] ? null : 100 * y / judged[i])}));
  const right = column(steps, "verdict/right");
  const byRule = [["evaluation", "orange"], ["rounding", "purple"], ["omission", "blue"]]
    .map(([rule, color]) => one(rule, color, column(steps, `verdict/by_${rule}`)))
    .filter(rule => rule.ys.some(y => y > 0))
    .map(rule => ({...rule, ys: rule.ys.map((y, i) => y === null || !right[i] ? null : 100 * y / right[i])}));
  const allSteps = steps.step.concat(evaluations.step);
  const domain = allSteps.length ? [Math.min(...allSteps), Math.max(...allSteps)] : [0, 1];
  const chart = (title, unit, table, series, rest) =>
    ({title, unit, xs: table.step, series, domain, together: table.together, kind: "lines", ...rest});
  const names = Object.keys(data.benchmarks);
  const kind = names.some(name => data.benchmarks[name].metrics["eval/avg_at_k"]) ? "avg_at_k" : "greedy_accuracy";
  const perBenchmark = names.length < 2 ? [] : [
    chart(kind === "avg_at_k" ? "Benchmarks, avg@k" : "Benchmarks, greedy", "%", evaluations,
          names.map((name, i) => accuracy(name, colors[i % colors.length], data.benchmarks[name], `eval/${kind}`)),
          {ceiling: 100, note: "shaded: 95% interval"})];
  const isAsync = "async/staleness_mean" in steps.metrics;
  return [
    ...averageCharts(accuracy, chart, names.length),
    chart(names.length < 2 ? "Held-out accuracy" : "Held-out accuracy, over all prompts", "%", evaluations,
          [accuracy("greedy", "blue", evaluations, "eval/greedy_accuracy"),
           accuracy(`avg@${present(column(evaluations, "eval/k")).at(-1) || "k"}`, "orange", evaluations, "eval/avg_at_k")],
          {ceiling: 100, none: "no evaluation yet", note: "shaded: 95% interval"}),
    ...perBenchmark,
    chart("Correct rate of rollouts", "%", steps,
          [one("right answers", "teal", percent(column(steps, "nft/correct_rate")))],
          {ceiling: 100, smooth: true}),
    {title: "Groups by correct rate", unit: "right in a group", xs: data.rates.step, ends: data.rates.last,
     counts: data.rates.counts, series: [], domain, kind: "heat", none: "not recorded"},
    chart("NFT loss", "nats/token", steps, [one("loss", "blue", column(steps, "nft/loss"))], {smooth: true}),
    chart("Log-prob gap, engine to actor", "nats/token", steps,
          [one("mean", "blue", column(steps, "rollout/logprob_gap_mean")),
           one("max", "orange", column(steps, "rollout/logprob_gap_max"))], {log: true, smooth: true}),
    chart("Time of a step", "s", steps, [...stages, one("between", "pale", between)], {kind: "bars", floor: 0}),
    chart("Verdicts", "%", steps, shares, {kind: "bars", floor: 0, ceiling: 100}),
    ...(byRule.length ? [chart("Right by a rule (watch for a rise)", "% of right", steps, byRule, {floor: 0, smooth: true})] : []),
    chart("Answer length", "tokens", steps,
          [one(`mean (cut at ${run.max_answer_tokens.toLocaleString("en-US")})`, "purple",
               column(steps, "rollout/answer_tokens_mean"))], {floor: 0, smooth: true}),
    chart("Truncated answers", "%", steps,
          [one("cut at the limit", "red", percent(column(steps, "rollout/truncated_fraction")))],
          {floor: 0, ceiling: 100, smooth: true}),
    ...(isAsync ? asyncCharts(one, chart) : []),
  ];
}

/* Of several benchmarks, each weighing the same: over steps, and over updates with the ends of the published curves. */
function averageCharts(accuracy, chart, count) {
  const own = accuracy("this run", "blue", evaluations, "eval/average");
  if (!present(own.ys).length) return [];
  const title = `Mean of the ${count} benchmarks`, note = "shaded: 95% interval";
  const updates = column(evaluations, "train/updates"), {updates: end, ends = {}} = data.published;
  const xs = [...new Set([...updates, ...(end ? [0, end] : [])].filter(x => x !== null))].sort((a, b) => a - b);
  const at = ys => xs.map(x => { const i = updates.indexOf(x); return i < 0 ? null : ys[i]; });
  const published = Object.entries(ends).map(([name, [first, last]], i) =>
    ({name: `${name}, published`, color: ["teal", "orange"][i], ys: xs.map(x => x === 0 ? first : x === end ? last : null)}));
  const ours = {...own, ys: at(own.ys), lows: at(own.lows), highs: at(own.highs)};
  return [
    chart(title, "%", evaluations, [own], {ceiling: 100, note}),
    {title: `${title}, by updates`, unit: "%", axis: "update", xs, series: [ours, ...published], note, kind: "lines",
     connect: true, ceiling: 100, together: 1, domain: [0, xs.at(-1) || 1]},
  ];
}

/* Of asynchronous rollouts. */
function asyncCharts(one, chart) {
  const metric = (name, color, key) => one(name, color, column(steps, key));
  return [
    chart("Staleness of trained tokens", "weight syncs", steps,
          [metric("mean", "blue", "async/staleness_mean"), metric("oldest", "orange", "async/staleness_max")], {floor: 0}),
    chart("Groups ahead of the trainer", "groups", steps,
          [metric("ready", "teal", "async/queue_groups"), metric("under way", "blue", "async/groups_under_way"),
           metric("carried over a sync", "purple", "async/groups_carried"),
           metric("dropped", "red", "async/groups_dropped"),
           metric("restarted", "yellow", "async/groups_restarted")], {floor: 0, smooth: true}),
    chart("Idle", "s", steps,
          [metric("trainer", "blue", "time/wait_s"), metric("engines", "orange", "async/engine_idle_s")],
          {floor: 0, smooth: true}),
  ];
}

function fillMetrics() {
  const table = byId("metrics"), head = html("tr", "", table);
  for (const title of ["metric", "unit", "first", "last", "meaning"]) html("th", "", head, title);
  for (const [name, {unit, meaning}] of Object.entries(data.metrics)) {
    const values = present(column(steps, name)), source = values.length ? values : present(column(evaluations, name));
    if (!source.length) continue;
    const row = html("tr", "", table);
    html("td", "name", row, name);
    html("td", "", row, unit);
    html("td", "value", row, show(source[0]));
    html("td", "value", row, show(source.at(-1)));
    html("td", "quiet", row, meaning);
  }
}

const FILTERS = [
  {name: "from", label: "from", of: answer => answer.source === "train" ? "training" : "held-out"},
  {name: "step", label: "step", of: answer => String(answer.step)},
  {name: "version", label: "policy version", of: answer => String(answer.policy_version)},
];

fillHeader();
fillHeadline();
fillCharts(byId("charts"), chartSpecs());
fillMetrics();
byId("evaluation").hidden = data.tables.every(rows => !rows.length);
fillTables(byId("evaluation"), data.tables, label => label.startsWith("this run"));
browseAnswers(data.answers, FILTERS);

"use strict";
/* drawTimeline(card, timeline): who worked when in the newest step, a row a process, from observe/timeline.py. */

const SPAN_COLORS = {rollout: "blue", verdict: "purple", grade: "purple", pack: "yellow", score: "teal", train: "orange",
                     checkpoint: "red", sync: "grey", evaluate: "yellow", wait: "pale"};
const ROW = 18, ROW_GAP = 4, NAME_WIDTH = 84;

function drawTimeline(card, timeline) {
  card.replaceChildren();
  html("h3", "", card, `Who worked when, in step ${timeline.step}`);
  const legend = html("div", "legend", card), width = Math.max(card.clientWidth - 28, 220);
  const names = [...new Set(timeline.tracks.flatMap(([, spans]) => spans.map(([name]) => name)))];
  const colorOf = name => SPAN_COLORS[name] || "pale";
  for (const name of names) html("span", "", legend, name).style.setProperty("--color", `var(--${colorOf(name)})`);
  const height = timeline.tracks.length * (ROW + ROW_GAP) + 36, plot = width - NAME_WIDTH - RIGHT;
  const x = second => NAME_WIDTH + plot * second / (timeline.seconds || 1);
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img",
                           "aria-label": `timeline of step ${timeline.step}`}, card);
  const bottom = height - 34;
  for (const [value, label] of linearTicks(0, timeline.seconds, Math.max(2, plot / 90), false)) {
    svg("line", {x1: x(value), x2: x(value), y1: 0, y2: bottom, stroke: "var(--grid)"}, root);
    svg("text", {x: Math.min(x(value), width - 3.6 * label.length), y: bottom + 15, "text-anchor": "middle"}, root, label);
  }
  svg("text", {x: NAME_WIDTH + plot / 2, y: height - 4, "text-anchor": "middle"}, root, "seconds since the step began");
  timeline.tracks.forEach(([track, spans], row) => {
    const top = row * (ROW + ROW_GAP);
    svg("text", {x: NAME_WIDTH - 7, y: top + 13, "text-anchor": "end"}, root, track.replace("actor ", ""));
    for (const [name, start, end] of spans) {
      const rect = svg("rect", {x: x(start), y: top, width: Math.max(x(end) - x(start), 0.7), height: ROW,
                                fill: `var(--${colorOf(name)})`}, root);
      svg("title", {}, rect, `${track}: ${name}, ${show(end - start)} s from ${show(start)}`);
    }
  });
  const more = timeline.left_out ? ` ${timeline.left_out} more processes are in the file.` : "";
  html("p", "hint", card, "Long white stretches are processes that wait for others. The newest steps are in the run's folder as "
    + `timeline/step_N.json, which ui.perfetto.dev opens.${more}`);
}

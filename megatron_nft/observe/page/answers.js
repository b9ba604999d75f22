"use strict";
/* The browser of sampled answers: browseAnswers(answers, filters) fills #filters, #answer-count, #answers and #more.

   A filter is {name, label, of: answer -> text} with an option for each text that occurs. The choice is kept in the
   address, #verdict=timeout&step=5, so that it can be sent to somebody. Answers are untrusted: set as text only.       */

const PAGE_OF_ANSWERS = 8;
const KINDS = ["right", "wrong", "unparsable", "timeout", "error"];

/* "right" as in training: a truncated answer never is. */
const outcome = answer => answer.verdict === "right" && answer.truncated ? "wrong" : answer.verdict;
const isOf = (answer, kind) => kind === "truncated" ? answer.truncated : outcome(answer) === kind;

function addAnswer(parent, answer) {
  const card = html("article", "answer", parent), header = html("header", "", card), list = html("dl", "", card);
  const className = {right: "good", wrong: "miss"}[outcome(answer)] || "other";
  html("span", `chip ${className}`, header, answer.verdict);
  if (answer.truncated) html("span", "chip bad", header, "truncated");
  const facts = [];
  if (answer.source) facts.push(answer.source === "train" ? `step ${answer.step}` : `held-out, step ${answer.step}`);
  if (answer.policy_version !== undefined) facts.push(`policy version ${answer.policy_version}`);
  facts.push(`${answer.num_tokens.toLocaleString("en-US")} tokens`);
  facts.push(`group ${Math.round(100 * answer.correct_rate)}% right`, answer.prompt_id);
  for (const fact of facts) html("span", "quiet", header, fact);
  const rows = [["prompt", answer.prompt], ["answer", answer.answer], ["ground truth", answer.ground_truth]];
  if (answer.detail) rows.push(["grader", answer.detail]);
  for (const [label, text] of rows) {
    html("dt", "", list, label);
    html("pre", "", html("dd", "", list), text || "(empty)");
  }
}

function browseAnswers(answers, filters) {
  const select = (name, label, options) => {
    const box = html("select", "", html("label", "", document.getElementById("filters"), `${label} `));
    box.id = `filter-${name}`;
    for (const [value, text] of [["all", "all"], ...options]) html("option", "", box, text).value = value;
    box.addEventListener("change", () => { remember(); refresh(); });
    return box;
  };
  const counts = [...KINDS, "truncated"].map(kind => [kind, answers.filter(answer => isOf(answer, kind)).length]);
  const boxes = [["verdict", select("verdict", "verdict", counts.map(([kind, n]) => [kind, `${kind} (${n})`])), isOf]];
  for (const {name, label, of} of filters) {
    const texts = [...new Set(answers.map(of))].sort((a, b) => a - b || (a < b ? -1 : 1));
    if (texts.length < 2) continue;  // nothing to choose from
    boxes.push([name, select(name, label, texts.map(text => [text, text])), (answer, value) => of(answer) === value]);
  }
  let left = [];
  const more = () => {
    for (const answer of left.splice(0, PAGE_OF_ANSWERS)) addAnswer(document.getElementById("answers"), answer);
    document.getElementById("more").hidden = !left.length;
  };
  const refresh = () => {
    left = answers.filter(answer => boxes.every(([, box, fits]) => box.value === "all" || fits(answer, box.value))).reverse();
    const [shown, all] = [left, answers].map(list => list.length.toLocaleString("en-US"));
    document.getElementById("answer-count").textContent = `${shown} of ${all}`;
    document.getElementById("answers").replaceChildren();
    more();
  };
  const remember = () => {
    const chosen = new URLSearchParams(boxes.filter(([, box]) => box.value !== "all").map(([name, box]) => [name, box.value]));
    history.replaceState(null, "", `#${chosen}`);
  };
  const recall = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const [name, box] of boxes) {
      box.value = chosen.get(name) ?? "all";
      if (box.selectedIndex < 0) box.value = "all";  // from another page
    }
    refresh();
  };
  document.getElementById("more").addEventListener("click", more);
  window.addEventListener("hashchange", recall);
  recall();
}

"use strict";
/* The browser of sampled answers: browseAnswers(answers, filters) fills #filters, #answer-count, #answers and #more.

   A filter is {name, label, of: answer -> text} with an option for each text that occurs; search and order come on top.
   The choice is kept in the address, #verdict=timeout&step=5, so that it can be sent to somebody. Answers are
   untrusted: set as text only.                                                                                        */

const PAGE_OF_ANSWERS = 8;
const KINDS = ["right", "wrong", "unparsable", "timeout", "error"];
const ORDERS = {  // of answers; "newest" is that in which they come, turned round
  newest: null, oldest: null,
  longest: (a, b) => b.num_tokens - a.num_tokens,
  shortest: (a, b) => a.num_tokens - b.num_tokens,
};

/* "right" as in training: a truncated answer never is. */
const outcome = answer => answer.verdict === "right" && answer.truncated ? "wrong" : answer.verdict;
const isOf = (answer, kind) => kind === "truncated" ? answer.truncated : outcome(answer) === kind;
const classOf = kind => ({right: "good", wrong: "miss"})[kind] || "other";
const groupOf = answer => `${answer.source} ${answer.step} ${answer.prompt_id}`;

/* Why the verdict fell as it did, in a line: what was extracted, what it was held against, which rule decided. */
function why(answer) {
  const extracted = answer.detail ? `extracted: ${answer.detail}` : "nothing was extracted";
  const parts = answer.verdict === "right" || answer.verdict === "wrong"
    ? [extracted, `gold: ${answer.ground_truth}`] : [answer.detail || "no final answer was found", `gold: ${answer.ground_truth}`];
  if (answer.rule) parts.push(`rule: ${answer.rule}`);
  if (answer.truncated && answer.verdict === "right") parts.push("graded right, counts as wrong: cut at the limit");
  return parts.join("  |  ");
}

function addAnswer(parent, answer, others) {
  const card = html("article", "answer", parent), header = html("header", "", card), list = html("dl", "", card);
  html("span", `chip ${classOf(outcome(answer))}`, header, answer.verdict);
  if (answer.truncated) html("span", "chip bad", header, "truncated");
  const facts = [];
  if (answer.source) facts.push(answer.source === "train" ? `step ${answer.step}` : `held-out, step ${answer.step}`);
  if (answer.policy_version !== undefined) facts.push(`policy version ${answer.policy_version}`);
  facts.push(`${answer.num_tokens.toLocaleString("en-US")} tokens`);
  facts.push(`group ${Math.round(100 * answer.correct_rate)}% right`, answer.prompt_id);
  for (const fact of facts) html("span", "quiet", header, fact);
  const rows = [["prompt", answer.prompt], ["answer", answer.answer], ["verdict", why(answer)]];
  for (const [label, text] of rows) {
    html("dt", "", list, label);
    html("pre", "", html("dd", "", list), text || "(empty)");
  }
  if (answer.tokens?.length) {
    html("dt", "", list, "log-probs");
    addStrip(html("dd", "", list), answer);
  }
  if (answer.group?.length > 1 || others.length) addGroup(card, answer, others);
}

/* Each token, shaded by how unlikely the engine found it; below it, where the actor was trained on it, the gap. */
function addStrip(parent, answer) {
  const strip = html("div", "strip", parent), actor = answer.actor_logprobs;
  let worst = 0;
  answer.tokens.forEach((token, i) => {
    const engine = answer.engine_logprobs[i], gap = actor ? Math.abs(actor[i] - engine) : 0;
    worst = Math.max(worst, gap);
    const mark = html("span", "", strip, token.replace(/\n/g, "⏎\n"));
    mark.style.setProperty("--doubt", `${Math.min(100, Math.round(-engine * 33))}%`);
    mark.style.setProperty("--gap", `${Math.min(100, Math.round(gap * 500))}%`);
    mark.title = `token ${i}: engine ${engine.toFixed(4)}` + (actor ? `, actor ${actor[i].toFixed(4)}` : "");
  });
  const words = actor ? `underlined: engine and actor apart, ${show(worst)} nats at most` : "not trained on: the engine's only";
  const cut = answer.tokens.length < answer.num_tokens ? `; the first ${answer.tokens.length} tokens` : "";
  html("p", "hint", parent, `darker: less likely; ${words}${cut}`);
}

/* The other answers to the prompt: each one's verdict and length, and the texts of those that were kept. */
function addGroup(card, answer, others) {
  const box = html("details", "group", card);
  html("summary", "", box, `The group: ${answer.group?.length || others.length + 1} answers` + (others.length ? `, ${others.length} more to read` : ""));
  const row = html("div", "members", box);
  (answer.group || []).forEach(([kind, length, extracted], i) => {
    const chip = html("span", `chip ${classOf(kind)}`, row, `${length}${i === answer.place ? " (this)" : ""}`);
    chip.title = `${kind}, ${length} tokens: ${extracted}`;
  });
  const texts = html("div", "beside", box);
  for (const other of others) {
    const part = html("div", "", texts);
    html("span", `chip ${classOf(outcome(other))}`, part, `${other.verdict}, ${other.num_tokens} tokens`);
    html("pre", "", part, other.answer || "(empty)");
  }
}

function browseAnswers(answers, filters) {
  const place = document.getElementById("filters");
  const labelled = (name, label, tag) => {
    const box = html(tag, "", html("label", "", place, `${label} `));
    box.id = `filter-${name}`;
    box.addEventListener(tag === "input" ? "input" : "change", () => { remember(); refresh(); });
    return box;
  };
  const select = (name, label, options, all = [["all", "all"]]) => {
    const box = labelled(name, label, "select");
    for (const [value, text] of [...all, ...options]) html("option", "", box, text).value = value;
    return box;
  };
  const counts = [...KINDS, "truncated"].map(kind => [kind, answers.filter(answer => isOf(answer, kind)).length]);
  const boxes = [["verdict", select("verdict", "verdict", counts.map(([kind, n]) => [kind, `${kind} (${n})`])), isOf]];
  for (const {name, label, of} of filters) {
    const texts = [...new Set(answers.map(of))].sort((a, b) => a - b || (a < b ? -1 : 1));
    if (texts.length < 2) continue;  // nothing to choose from
    boxes.push([name, select(name, label, texts.map(text => [text, text])), (answer, value) => of(answer) === value]);
  }
  const order = select("order", "order", Object.keys(ORDERS).map(name => [name, name]), []);
  const search = labelled("search", "search", "input");
  search.type = "search";
  const groups = new Map();
  for (const answer of answers) groups.set(groupOf(answer), [...(groups.get(groupOf(answer)) || []), answer]);
  let left = [];
  const more = () => {
    for (const answer of left.splice(0, PAGE_OF_ANSWERS))
      addAnswer(document.getElementById("answers"), answer,
                answer.source ? groups.get(groupOf(answer)).filter(other => other !== answer) : []);
    document.getElementById("more").hidden = !left.length;
  };
  const refresh = () => {
    const words = search.value.trim().toLowerCase();
    const found = answer => !words || [answer.prompt, answer.answer, answer.ground_truth, answer.detail, answer.prompt_id]
      .some(text => (text || "").toLowerCase().includes(words));
    left = answers.filter(answer => found(answer) && boxes.every(([, box, fits]) => box.value === "all" || fits(answer, box.value)));
    if (order.value !== "oldest") left.reverse();
    if (ORDERS[order.value]) left.sort(ORDERS[order.value]);
    const [shown, all] = [left, answers].map(list => list.length.toLocaleString("en-US"));
    document.getElementById("answer-count").textContent = `${shown} of ${all}`;
    document.getElementById("answers").replaceChildren();
    more();
  };
  const remember = () => {
    const chosen = new URLSearchParams(boxes.filter(([, box]) => box.value !== "all").map(([name, box]) => [name, box.value]));
    if (order.value !== "newest") chosen.set("order", order.value);
    if (search.value.trim()) chosen.set("search", search.value.trim());
    history.replaceState(null, "", `#${chosen}`);
  };
  const recall = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const [name, box] of boxes) {
      box.value = chosen.get(name) ?? "all";
      if (box.selectedIndex < 0) box.value = "all";  // from another page
    }
    order.value = chosen.get("order") in ORDERS ? chosen.get("order") : "newest";
    search.value = chosen.get("search") ?? "";
    refresh();
  };
  document.getElementById("more").addEventListener("click", more);
  window.addEventListener("hashchange", recall);
  recall();
}

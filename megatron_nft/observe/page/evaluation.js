"use strict";
/* Fills the page of an evaluation from the embedded JSON. Everything is set as text: answers are untrusted. */

const data = JSON.parse(document.getElementById("data").textContent);
document.title = `Evaluation of ${data.model}`;
document.getElementById("title").textContent = document.title;
document.getElementById("settings").textContent = data.settings;
fillTables(document.getElementById("evaluation"), data.tables, label => label === data.model);
for (const note of data.notes) html("li", "quiet", document.getElementById("notes"), note);
browseAnswers(data.answers, [{name: "benchmark", label: "benchmark", of: answer => answer.benchmark}]);

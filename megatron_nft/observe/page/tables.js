"use strict";
/* fillTables(section, tables): tables of texts, the first row of each its head; rows that `isOurs` says are set in bold. */

function fillTables(section, tables, isOurs) {
  for (const rows of tables.filter(rows => rows.length)) {
    const table = html("table", "results", html("div", "scroll", section));
    rows.forEach((cells, i) => {
      const row = html("tr", isOurs(cells[0]) ? "ours" : "", table);
      cells.forEach((cell, j) => html(i ? "td" : "th", i && j ? "value" : "", row, cell));
    });
  }
}

"use strict";
// The state of the page is in the address, so that a link shows the same view:
// #filter=seed=0&point=alpha=0.1&sort=-linear/test_accuracy&metric=pretrain/loss
const data = JSON.parse(document.getElementById("data").textContent);
const tables = [...document.querySelectorAll("table.data")];
const filter = document.getElementById("filter");
const menu = document.getElementById("metric");
// The trials' rows in the order of the data, which sorting does not change.
const trialRows = [...document.querySelectorAll("#trials tbody tr")];
let source = null; // the data source of Bokeh's plot, once it is drawn

const readState = () => new URLSearchParams(location.hash.slice(1));
const numberOf = (text) => (/^[-+]?\d/.test(text) ? parseFloat(text) : NaN);

function setState(name, value) {
  const state = readState();
  if (value) state.set(name, value);
  else state.delete(name);
  history.replaceState(null, "", "#" + state);
  show();
}

function compare(a, b) {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (!isNaN(x) && !isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

// Sort the rows of a table by a column. Missing values ("–") come last in both directions.
function sortRows(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row.cells[column].textContent, row]);
  rows.sort(([a], [b]) => (a === "–") - (b === "–") || (descending ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function showSorted(key) {
  const descending = key.startsWith("-");
  const name = descending ? key.slice(1) : key;
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const isKey = name !== "" && cell.textContent === name;
      if (isKey && cell.ariaSort !== (descending ? "descending" : "ascending")) sortRows(table, column, descending);
      cell.ariaSort = isKey ? (descending ? "descending" : "ascending") : null;
    });
  }
}

// A word such as alpha=0.1 must be a whole part of a name, so that it does not show alpha=0.15. Other words may be anywhere.
function contains(content, word) {
  if (!word.includes("=")) return content.includes(word);
  for (let at = content.indexOf(word); at >= 0; at = content.indexOf(word, at + 1)) {
    const [before, after] = [content[at - 1] || " ", content[at + word.length] || " "];
    if (" ,/".includes(before) && " ,".includes(after)) return true;
  }
  return false;
}

// A verdict names a control in the row of another point, so the filter does not search verdicts.
const isSearched = (cell) => cell.className !== "verdict";

// Hide the rows that do not contain every word of the filter. If a point is chosen, also hide the rows of all other
// points. A point is shown if a row of its trials is shown.
function showFiltered(text, chosen) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const shownPoints = new Set();
  for (const table of [...tables].reverse()) {
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const content = [...row.cells].filter(isSearched).map((cell) => cell.textContent).join(" ").toLowerCase();
      const point = row.dataset.point;
      const fits = words.every((word) => contains(content, word)) || shownPoints.has(point);
      row.hidden = !fits || (chosen !== "" && point !== chosen);
      if (table.id === "trials" && !row.hidden) shownPoints.add(point);
    }
    const left = rows.filter((row) => !row.hidden).length;
    document.getElementById(table.id + "-count").textContent = left < rows.length ? `${left} of ${rows.length}` : left;
  }
}

function showCurves(metric) {
  const all = data.metrics[metric];
  const lines = all.filter(([trial]) => !trialRows[trial].hidden);
  source.data = {
    xs: lines.map(([, steps]) => data.steps[steps]),
    ys: lines.map(([, , values]) => values.map((value) => (value === null ? NaN : value))),
    trial: lines.map(([trial]) => data.names[trial]),
    color: lines.map(([trial]) => data.colors[trial]),
    dash: lines.map(([trial]) => data.dashes[trial]),
  };
  const count = document.getElementById("curves-count");
  count.textContent = lines.length < all.length ? `${lines.length} of ${all.length} shown` : "";
  document.getElementById("description").textContent =
    document.getElementById("descriptions").children[menu.selectedIndex].textContent;
  const points = new Map(lines.map(([trial]) => [data.points[trial], trial]));
  const legend = document.getElementById("legend");
  legend.replaceChildren();
  const chosen = readState().get("point") || "";
  for (const [point, trial] of points.size <= data.most_named ? points : []) { // with more, styles are repeated
    const entry = document.createElement("button");
    entry.textContent = data.labels[point] || point;
    entry.style.setProperty("--color", data.colors[trial]);
    entry.style.setProperty("--dash", data.dashes[trial]);
    entry.title = point === chosen ? "show all points" : "show only this point";
    entry.ariaPressed = point === chosen;
    entry.addEventListener("click", () => setState("point", point === chosen ? "" : point));
    legend.append(entry);
  }
}

function show() {
  const state = readState();
  const text = state.get("filter") || "";
  if (filter.value !== text) filter.value = text;
  showFiltered(text, state.get("point") || "");
  showSorted(state.get("sort") || "");
  if (source !== null) {
    const metric = state.get("metric");
    menu.value = Object.hasOwn(data.metrics, metric) ? metric : data.first;
    showCurves(menu.value);
  }
}

for (const table of tables) {
  const rows = [...table.tBodies[0].rows];
  for (const cell of table.tHead.rows[0].cells) {
    const name = cell.textContent;
    const cells = rows.map((row) => row.cells[cell.cellIndex]);
    const isNumeric = cells.some((each) => !isNaN(numberOf(each.textContent)));
    for (const each of cells) each.classList.toggle("number", isNumeric);
    cell.firstChild.addEventListener("click", () => setState("sort", readState().get("sort") === name ? "-" + name : name));
  }
}
document.getElementById("search").hidden = false;
let typing; // with 1,000 trials it takes a second to show the rows and curves, so typing must have paused
filter.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => setState("filter", filter.value), 250);
});
addEventListener("hashchange", show);
show();
if (data !== null) {
  menu.addEventListener("change", () => setState("metric", menu.value));
  Bokeh.set_log_level("error");
  Bokeh.embed.embed_item(data.plot, "plot").then(() => {
    source = Bokeh.documents[0].get_model_by_name("curves");
    show();
  });
}

"use strict";
document.documentElement.classList.add("js");

// A click on a header sorts by it; numbers begin with the highest. What has no value stays below.
function sort(table, head) {
  const heads = [...head.parentNode.cells], column = heads.indexOf(head), numeric = "numeric" in head.dataset;
  const now = head.getAttribute("aria-sort");
  const up = now === "none" ? !numeric : now === "descending";
  heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value ?? "";
  const compare = numeric ? (a, b) => a - b : new Intl.Collator(undefined, { numeric: true }).compare;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return up ? compare(x, y) : compare(y, x);
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sort(table, button.closest("th")));
  }
}

// A table that is wider than its box says so.
const watch = new ResizeObserver((boxes) => {
  for (const { target } of boxes) {
    target.previousElementSibling.classList.toggle("over", target.scrollWidth > target.clientWidth + 1);
  }
});
for (const box of document.querySelectorAll(".box")) watch.observe(box);

// A row is shown if it contains every word that was typed.
for (const input of document.querySelectorAll("input[type=search]")) {
  const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
  const count = input.closest(".tools").querySelector("[role=status]");
  const words = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
  const filter = () => {
    const typed = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => { row.hidden = !typed.every((word) => words[i].includes(word)); });
    count.textContent = typed.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  };
  input.addEventListener("input", filter);
  if (input.value) filter();
}

// A line's name lifts it out of the others: while pointed at, or until pressed again.
for (const figure of document.querySelectorAll(".curves")) {
  let pinned = null;
  const light = (name) => {
    figure.classList.toggle("dim", name !== null);
    for (const part of figure.querySelectorAll("[data-series]")) part.classList.toggle("on", part.dataset.series === name);
  };
  for (const button of figure.querySelectorAll("button[data-series]")) {
    const name = button.dataset.series;
    button.addEventListener("click", () => {
      pinned = pinned === name ? null : name;
      for (const other of figure.querySelectorAll("button[data-series]")) {
        other.setAttribute("aria-pressed", String(other.dataset.series === pinned));
      }
      light(pinned);
    });
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => light(name));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => light(pinned));
  }
}

window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});

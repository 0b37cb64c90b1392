// A click on a heading sorts its table: numbers by size, words by letters, cells without a figure last.
const worth = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
};
const compare = (one, other) => {
  const numbers = [one, other].map((value) => typeof value === "number");
  if (numbers[0] && numbers[1]) return one - other;
  return numbers[0] === numbers[1] ? String(one).localeCompare(String(other), undefined, { numeric: true }) : numbers[0] ? -1 : 1;
};
for (const heading of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const table = heading.closest("table");
    const rows = [...table.tBodies[0].rows].map((row) => [worth(row.cells[heading.cellIndex]), row]);
    const filled = rows.filter(([value]) => value !== "");
    const empty = rows.filter(([value]) => value === "");
    filled.sort(([one], [other]) => sign * compare(one, other));
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    table.tBodies[0].append(...[...filled, ...empty].map(([, row]) => row));
  });
}

document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("#all tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

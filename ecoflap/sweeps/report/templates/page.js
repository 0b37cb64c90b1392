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

// Every table copies as it is sorted and filtered, into Markdown or LaTeX (with booktabs).
const cellsOf = (table) => [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\s+/g, " ")));
const areNumbers = (table) => [...table.rows[0].cells].map((cell) => cell.classList.contains("number"));
const markdown = (table) => {
  const [head, ...body] = cellsOf(table).map((row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`);
  return [head, `|${areNumbers(table).map((number) => (number ? " ---: " : " --- ")).join("|")}|`, ...body].join("\n");
};
const SIGNS = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "−": "$-$", "×": "$\\times$", "–": "--", "…": "\\dots{}", "→": "$\\to$" };
const escaped = (text) => text.replace(/[\\~^±−×–…→&%$#_{}]/g, (sign) => SIGNS[sign] ?? `\\${sign}`);
const latex = (table) => {
  const [head, ...body] = cellsOf(table).map((row) => `${row.map(escaped).join(" & ")} \\\\`);
  const columns = areNumbers(table).map((number) => (number ? "r" : "l")).join("");
  return [`\\begin{tabular}{${columns}}`, "\\toprule", head, "\\midrule", ...body, "\\bottomrule", "\\end{tabular}"].join("\n");
};
const addButton = (bar, label, about, act) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.setAttribute("aria-label", `${label}: ${about}`);
  button.addEventListener("click", async () => {
    await act();
    button.textContent = "done";
    setTimeout(() => (button.textContent = label), 1200);
  });
  bar.append(button);
};
const makeBar = () => Object.assign(document.createElement("div"), { className: "tools" });
const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
};
for (const table of document.querySelectorAll("table.sortable")) {
  const bar = makeBar();
  const about = table.caption?.textContent ?? "this table";
  addButton(bar, "copy Markdown", about, () => copy(markdown(table)));
  addButton(bar, "copy LaTeX", about, () => copy(latex(table)));
  table.parentElement.after(bar);
}

// Every plot downloads as an SVG file in the colours of paper.
for (const figure of document.querySelectorAll("figure[data-name]")) {
  const bar = makeBar();
  addButton(bar, "download SVG", figure.dataset.name, () => {
    const drawing = figure.querySelector("svg").cloneNode(true);
    drawing.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    drawing.setAttribute("color", "#22252a");
    const file = new Blob([new XMLSerializer().serializeToString(drawing)], { type: "image/svg+xml" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: `${figure.dataset.name}.svg` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  figure.append(bar);
}

// A button above each table copies it as text that a spreadsheet takes.
"use strict";

// What a spreadsheet would take for a formula gets an apostrophe, as in core/spreadsheet.py; a
// number stays one.
function neutralised(text) {
  const formula = /^'*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text);
  return formula && !/^[+-][\d.,]+ ?%?$/.test(text) ? `'${text}` : text;
}

function textOf(cell) {
  return neutralised(cell.innerText.replace(/\s+/g, " ").trim());
}

function offerCopy(table) {
  if (table.dataset.copied !== undefined || !navigator.clipboard) return;
  table.dataset.copied = "";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy table";
  button.addEventListener("click", async () => {
    const rows = [...table.rows].map((row) => [...row.cells].map(textOf).join("\t"));
    await navigator.clipboard.writeText(rows.join("\n"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy table"), 2000);
  });
  const tools = document.getElementById(table.dataset.tools);
  if (tools) tools.append(button);
}

document.querySelectorAll("table[data-tools]").forEach(offerCopy);
document.addEventListener("htmx:after:swap", () =>
  document.querySelectorAll("table[data-tools]").forEach(offerCopy),
);

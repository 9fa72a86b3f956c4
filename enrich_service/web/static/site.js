// A button above each table copies it as tab-separated text for a spreadsheet.
"use strict";

// Prefix text that a spreadsheet would evaluate as a formula with an apostrophe, as
// core/spreadsheet.py does; signed numbers stay as they are.
function escapeFormula(text) {
  const formula = /^'*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text);
  return formula && !/^[+-][\d.,]+ ?%?$/.test(text) ? `'${text}` : text;
}

function textOf(cell) {
  return escapeFormula(cell.innerText.replace(/\s+/g, " ").trim());
}

function addCopyButton(table) {
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

document.querySelectorAll("table[data-tools]").forEach(addCopyButton);
document.addEventListener("htmx:after:swap", () =>
  document.querySelectorAll("table[data-tools]").forEach(addCopyButton),
);

// A header sorts its column up, then down, then gives the first order back.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], first = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const next = {null: "ascending", ascending: "descending"}[header.getAttribute("aria-sort")];
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    if (!next) { body.append(...first); return; }
    header.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    body.append(...[...first].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return sign * order;
    }));
  }));
}

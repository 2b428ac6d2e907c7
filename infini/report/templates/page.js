// A click on a header sorts its column, a second one the other way; missing values stay last.
function key(row, column) {
  const text = row.cells[column].textContent.replaceAll(",", "").replace("−", "-");
  const number = parseFloat(text);
  return isNaN(number) ? text : number;
}
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headers.forEach((header, column) => header.addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    body.append(...[...body.rows].sort((first, second) => {
      const [x, y] = [key(first, column), key(second, column)];
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      const words = typeof x === "string" || typeof y === "string";
      return sign * (words ? String(x).localeCompare(String(y)) : x - y);
    }));
  }));
}

// Sorts the table of results by the column whose head is clicked, and keeps the lines that hold the words typed above it.
for (const table of document.querySelectorAll("table.results")) {
  const body = table.tBodies[0], fixed = [...body.querySelectorAll("tr.reference")];
  const lines = [...body.rows].filter((line) => !fixed.includes(line));
  const value = (line, column) => {
    const cell = line.cells[column], data = cell.querySelector("data");
    return data ? Number(data.value) : cell.textContent.trim();
  };
  const place = (list) => body.append(...list, ...fixed);
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const known = (line) => !["–", ""].includes(value(line, column));
      const order = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return (down ? -1 : 1) * (isNaN(x - y) ? String(x).localeCompare(String(y), "en", { numeric: true }) : x - y);
      };
      place([...lines.filter(known).sort(order), ...lines.filter((line) => !known(line))]);
      table.classList.add("sorted");
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
  const filter = table.closest("section").querySelector("input");
  filter.closest("p").hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const line of lines) line.hidden = !words.every((word) => line.textContent.toLowerCase().includes(word));
  });
}

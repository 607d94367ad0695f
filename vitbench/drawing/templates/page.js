"use strict";
// Sorts and filters the tables. A number sorts by data-v, all else by its text; what is empty stands last either way.
{
  const collator = new Intl.Collator("en", { numeric: true });
  const cut = (text) => text.replace(/\s+/g, " ").trim();
  for (const box of document.querySelectorAll(".data")) {
    const table = box.querySelector("table"), body = table.tBodies[0], said = box.querySelector("output");
    const rows = [...body.rows], texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" "));
    const heads = [...table.tHead.rows[0].cells];
    let order = "";

    const say = () => {
      const left = rows.filter((row) => !row.hidden).length;
      const of = left < rows.length ? `${left} of ${rows.length}` : `${left}`;
      said.textContent = `${of} ${rows.length === 1 ? "row" : "rows"}${order}`;
    };

    const key = (cell) => (cell.dataset.v === undefined ? cut(cell.textContent) : Number(cell.dataset.v));
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)));

    heads.forEach((head, place) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row) => [key(row.cells[place]), row]);
      keyed.sort(([a], [b]) => (a === "") - (b === "") || (down ? compare(b, a) : compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
      order = `, sorted by ${cut(head.textContent)}, ${down ? "descending" : "ascending"}`;
      say();
    }));

    box.querySelector("input[type=search]").addEventListener("input", (event) => {
      const words = cut(event.target.value.toLowerCase()).split(" ");
      rows.forEach((row, place) => { row.hidden = !words.every((word) => texts[place].includes(word)); });
      say();
    });
    box.querySelector(".all")?.addEventListener("change", (event) => table.classList.toggle("whole", event.target.checked));
  }
}

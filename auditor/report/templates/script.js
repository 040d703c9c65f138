"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  const theme = byId("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", isDark() ? "Show the page light" : "Show the page dark");
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();
  theme.hidden = false;

  const open = [];
  window.addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not([open])")) {
      each.open = true;
      open.push(each);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const each of open.splice(0)) each.open = false;
  });

  const table = byId("rows");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row) => ({
    row,
    words: row.textContent.toLowerCase(),
    order: row.lastElementChild.textContent,
    cells: [...row.cells].map((cell) => (cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v))),
  }));
  const form = byId("filter");
  const find = byId("find");
  const order = byId("order");
  const found = byId("found");
  const whole = new Intl.NumberFormat("en");
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const each of rows) {
      const fits = words.every((word) => each.words.includes(word)) && (!order.value || each.order === order.value);
      each.row.hidden = !fits;
      shown += fits;
    }
    found.textContent = `${whole.format(shown)} of ${whole.format(rows.length)} rows`;
  };

  const sort = (at) => {
    const head = heads[at];
    const number = typeof rows[0].cells[at] === "number";
    const now = head.getAttribute("aria-sort");
    const up = now ? now === "descending" : !number;
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const by = number ? (a, b) => a - b : compare;
    rows.sort((a, b) => (up ? by(a.cells[at], b.cells[at]) : by(b.cells[at], a.cells[at])));
    body.append(...rows.map((each) => each.row));
  };

  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(at));
    head.replaceChildren(button);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  find.addEventListener("input", filter);
  order.addEventListener("change", filter);
  form.hidden = false;
  filter();
})();

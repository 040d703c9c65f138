"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const whole = new Intl.NumberFormat("en");
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, className, ...content) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...content);
    return made;
  };

  const shape = (tag, attributes, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const startTheme = () => {
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
  };

  const startAge = () => {
    const age = document.querySelector(".age");
    const minutes = (Date.now() - Date.parse(age.dataset.started)) / 60e3;
    if (!(minutes > 0)) return;
    const [size, unit] = minutes >= 2880 ? [1440, "days"] : minutes >= 120 ? [60, "h"] : [1, "min"];
    age.textContent = `· ${whole.format(Math.max(1, Math.floor(minutes / size)))} ${unit} old`;
  };

  const watchWidth = (box, update) => {
    const watcher = new ResizeObserver(() => update(box));
    for (const each of [box, ...box.children]) watcher.observe(each);
    box.addEventListener("scroll", () => update(box), { passive: true });
  };

  const markEdges = (box) => {
    const rest = box.scrollWidth - box.clientWidth - Math.abs(box.scrollLeft);
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", rest > 1);
  };

  const markFocusable = (box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };

  const copyButton = (button, code) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      window.setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  };

  const startTable = (form) => {
    const table = byId(form.dataset.table);
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows].map((row) => ({
      row,
      words: row.textContent.toLowerCase(),
      order: row.lastElementChild.textContent,
      state: row.dataset.state,
      cells: [...row.cells].map((cell) => {
        const value = cell.dataset.v;
        return value === undefined ? cell.textContent : Number.isNaN(Number(value)) ? value : Number(value);
      }),
    }));
    const find = form.querySelector(".find");
    const order = form.querySelector(".order");
    const chips = all(".chips button", form);
    const found = form.querySelector("output");
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    let states = [];

    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const each of rows) {
        const fits = words.every((word) => each.words.includes(word)) && (!order || !order.value || each.order === order.value)
          && (!states.length || states.includes(each.state));
        each.row.hidden = !fits;
        shown += fits;
      }
      found.textContent = `${whole.format(shown)} of ${whole.format(rows.length)} rows`;
    };

    const press = (chip) => {
      for (const each of chips) each.setAttribute("aria-pressed", String(each === chip));
      states = chip.dataset.states.split(" ").filter(Boolean);
      filter();
    };

    const sort = (at) => {
      const head = heads[at];
      const number = rows.length > 0 && typeof rows[0].cells[at] === "number";
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !number || head.dataset.up !== undefined;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const by = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : compare(a, b));
      rows.sort((a, b) => (up ? by(a.cells[at], b.cells[at]) : by(b.cells[at], a.cells[at])));
      body.append(...rows.map((each) => each.row));
    };

    heads.forEach((head, at) => {
      if (head.classList.contains("plain")) return;
      const button = make("button", "", ...head.childNodes);
      button.type = "button";
      button.addEventListener("click", () => sort(at));
      head.replaceChildren(button);
    });
    for (const chip of chips) chip.addEventListener("click", () => press(chip));
    form.addEventListener("submit", (event) => event.preventDefault());
    find.addEventListener("input", filter);
    if (order) order.addEventListener("change", filter);
    form.hidden = false;
    if (chips.length) press(chips[0]);
    else filter();
  };

  const COLORS = ["n0", "n1", "n2", "n3", "unordered"];
  const percent = (count, of) => {
    if (count === of) return "100%";
    if (count && 1000 * count < of) return "<0.1%";
    const tenths = Math.min(999, Math.round((1000 * count) / of));
    return `${tenths % 10 ? (tenths / 10).toFixed(1) : tenths / 10}%`;
  };

  const drawVersions = (versions, days) => {
    const places = days.map((_, run) => run).filter((run) => versions.some((each) => each[2][run] !== null));
    const total = (run) => versions.reduce((sum, each) => sum + (each[2][run] || 0), 0);
    const across = (run) => (days.length > 1 ? (100 * run) / (days.length - 1) : 0);
    const runs = places.length > 1 ? places : [places[0], places[0]];
    const x = places.length > 1 ? runs.map(across) : [0, 100];
    const plot = shape("svg", { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    const ends = shape("svg", { class: "ends", "aria-hidden": "true" });
    const axis = shape("svg", { class: "axis", "aria-hidden": "true" });
    const dates = shape("svg", { class: "dates", "aria-hidden": "true" });
    const ordered = [...versions].sort((a, b) => (a[0] === null) - (b[0] === null));
    let lower = runs.map(() => 0);
    let label = 108;
    for (const [text, age, counts] of ordered) {
      const upper = runs.map((run, at) => lower[at] + (counts[run] || 0) / (total(run) || 1));
      const top = x.map((left, at) => `${left.toFixed(1)} ${(100 - 100 * upper[at]).toFixed(1)}`);
      const below = x.map((left, at) => `${left.toFixed(1)} ${(100 - 100 * lower[at]).toFixed(1)}`).reverse();
      const color = text === null ? "n3" : age < 0 ? "newer" : COLORS[age];
      plot.append(shape("path", { class: `fill-${color} seam`, d: `M${top.join("L")}L${below.join("L")}Z` }));
      const last = runs.length - 1;
      if (upper[last] - lower[last] > 0.03) {
        label = Math.min(100 - 50 * (upper[last] + lower[last]), label - 9);
        ends.append(shape("text", { x: 0, y: `${Math.max(label, 4).toFixed(1)}%`, dy: ".35em" }, text === null ? "others" : text.slice(0, 14)));
      }
      lower = upper;
    }
    for (const level of [0, 50, 100]) {
      axis.append(shape("text", { x: "100%", y: `${100 - level}%`, dy: level === 100 ? ".7em" : level ? ".35em" : "0", "text-anchor": "end" }, `${level}%`));
    }
    dates.append(shape("text", { x: 0, y: 12 }, days[0]));
    const sameDay = `${days[0].split(", ")[0]}, `;
    const end = days[days.length - 1];
    if (days.length > 1) {
      dates.append(shape("text", { x: "100%", y: 12, "text-anchor": "end" }, end.startsWith(sameDay) ? end.slice(sameDay.length) : end));
    }
    return make("div", "chart", axis, plot, ends, dates);
  };

  const versionTable = (entry) => {
    const body = make("tbody");
    for (const [text, age, counts] of entry.versions) {
      const count = counts[counts.length - 1] || 0;
      if (!count) continue;
      const bar = shape("svg", { class: "mini bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
      bar.append(shape("rect", { class: "fill-track", width: 100, height: 8 }));
      const color = text === null ? "n3" : age < 0 ? "newer" : COLORS[age];
      bar.append(shape("rect", { class: `fill-${color}`, width: (100 * count) / entry.devices, height: 8 }));
      const cells = [make("td", "wide", bar), make("td", "r", whole.format(count)), make("td", "r", percent(count, entry.devices))];
      const name = make("th", "", text === null ? "others" : text);
      name.scope = "row";
      body.append(make("tr", "", name, ...cells));
    }
    const heads = ["Version", "", "Devices", "Share"].map((text, at) => {
      const head = make(text ? "th" : "td", at > 1 ? "r" : "", text);
      if (text) head.scope = "col";
      return head;
    });
    return make("table", "", make("thead", "", make("tr", "", ...heads)), body);
  };

  const startDetails = (island) => {
    const { runs, modules } = JSON.parse(island.textContent);
    const panel = byId("detail");
    const cells = all(".heat .cell");
    const address = (entry) => new URLSearchParams({ a: entry.account, p: entry.product, m: entry.module }).toString();

    const show = (at, write) => {
      const entry = modules[at];
      if (!entry) return false;
      for (const each of all("[data-rollout][aria-current]")) each.removeAttribute("aria-current");
      for (const each of all(`[data-rollout="${at}"]`)) each.setAttribute("aria-current", "true");
      const title = make("h2", "", `${entry.name} · ${entry.module}`);
      const about = make("p", "note", `${entry.account} · ${entry.product} · ${whole.format(entry.devices)} devices · ${whole.format(entry.count)} versions in use`);
      const state = make("span", `state ${entry.state}`, `${entry.glyph} ${entry.state.replace("_", " ")}`);
      const lead = make("p", "lead", state, ` ${entry.share}${entry.change ? `, ${entry.change}` : ""}`);
      panel.replaceChildren(title, about, lead);
      if (entry.versions.length) panel.append(make("div", "versions", drawVersions(entry.versions, runs), versionTable(entry)));
      if (entry.command) {
        const code = make("code", "", ...entry.command.split(" ").flatMap((word, at) => [at ? " " : "", make("span", "", word)]));
        const button = make("button", "copy", "Copy");
        button.type = "button";
        button.setAttribute("aria-label", "Copy the command that lists the devices behind");
        copyButton(button, code);
        panel.append(make("div", "command", code, button));
        watchWidth(code, markFocusable);
      }
      panel.hidden = false;
      if (write) window.history.replaceState(null, "", `#${address(entry)}`);
      return true;
    };

    const follow = () => {
      const wanted = new URLSearchParams(window.location.hash.slice(1));
      if (!wanted.has("m")) return false;
      const at = modules.findIndex((each) => each.module.toLowerCase() === wanted.get("m").toLowerCase()
        && each.product === wanted.get("p") && (!wanted.has("a") || each.account === wanted.get("a")));
      if (!show(at)) return false;
      byId("products").scrollIntoView();
      return true;
    };

    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-rollout]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !show(Number(link.dataset.rollout), true)) return;
      event.preventDefault();
      const outside = link.closest("#rollouts") || panel.getBoundingClientRect().top > window.innerHeight - 80;
      if (outside) panel.scrollIntoView({ block: "nearest" });
    });

    const grid = all(".heat tbody tr").map((row) => [...row.cells].slice(2).map((cell) => cell.firstElementChild));
    const move = (from, down, right) => {
      const y = grid.findIndex((row) => row.includes(from));
      let row = y;
      let column = grid[y].indexOf(from);
      do {
        row += down;
        column += right;
        if (!grid[row] || column < 0 || column >= grid[row].length) return;
      } while (!grid[row][column]);
      grid[row][column].focus();
    };
    const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    cells.forEach((cell, at) => {
      cell.tabIndex = at ? -1 : 0;
      cell.addEventListener("focus", () => {
        for (const each of cells) each.tabIndex = each === cell ? 0 : -1;
        show(Number(cell.dataset.rollout), false);
      });
      cell.addEventListener("keydown", (event) => {
        if (!STEPS[event.key]) return;
        event.preventDefault();
        move(cell, ...STEPS[event.key]);
      });
    });
    window.addEventListener("hashchange", follow);
    if (!follow()) show(0, false);
  };

  startTheme();
  startAge();
  for (const command of all(".command")) {
    copyButton(command.querySelector(".copy"), command.querySelector("code"));
    watchWidth(command.querySelector("code"), markFocusable);
  }
  for (const box of all(".scroll")) watchWidth(box, markEdges);
  for (const form of all(".filter")) startTable(form);
  const island = byId("data");
  if (island) startDetails(island);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    const find = document.querySelector(".find");
    if (!find) return;
    event.preventDefault();
    find.focus();
  });

  const sections = all(".top nav a").map((link) => [link, byId(link.hash.slice(1))]).filter(([, section]) => section);
  const mark = () => {
    const reached = sections.filter(([, section]) => section.getBoundingClientRect().top < 140);
    const current = (reached[reached.length - 1] || sections[0])[0];
    for (const [link] of sections) {
      if (link === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  window.addEventListener("scroll", mark, { passive: true });
  mark();
})();

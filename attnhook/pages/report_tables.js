// Tables: rounded numbers with the whole ones in their titles, sorted by any column.

const MISSING = "\u2013", SHORT = 24;

const isPart = (cell) => cell !== null && typeof cell === "object";
const isNumber = (value) => typeof value === "number";
const bare = (cell) => (isPart(cell) ? cell.value : cell);
const isMissing = (cell) => bare(cell) === null || bare(cell) === undefined || bare(cell) === "";
const written = (value, digits) => {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
};

// A dash after a minus sign is hard to read.
const between = (low, high, digits) => `(${written(low, digits)}${low < 0 ? " to " : "\u2013"}${written(high, digits)})`;

// An error that rounds to nothing has one digit that says something.
const seen = (error, digits) => (error > 0 && Number(error.toFixed(digits)) === 0 && error >= 1e-4 ? error.toPrecision(1) : written(error, digits));

// Names break after their separators, numbers do not.
function breakable(target, text) {
  const parts = String(text).split(/(?<=[_./:@-])(?<!\.(?=\d))(?![_./:@-])/);
  target.append(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
  return target;
}

function fillCell(target, cell, digits) {
  if (isMissing(cell)) {
    target.textContent = MISSING;
    target.title = "no value";
    target.classList.add("missing");
    return;
  }
  const value = bare(cell);
  if (!isNumber(value)) {
    const short = String(value).length <= SHORT;
    target.classList.toggle("short", short);
    if (short) target.textContent = value;
    else breakable(target, value);
    return;
  }
  target.classList.add("number");
  const part = isPart(cell) ? cell : {}, { error, low, high, n } = part, title = [String(value)];
  target.textContent = written(value, digits);
  const interval = isNumber(low) && isNumber(high);
  if (isNumber(error)) title[0] += ` \u00b1 ${error}`;
  if (isNumber(error) && !interval) target.append(element("span", ` \u00b1\u00a0${seen(error, digits)}`, "spread"));
  if (interval) target.append(element("span", ` ${between(low, high, digits)}`, "spread"));
  if (interval) title.push(`from ${low} to ${high}`);
  if (isNumber(n)) title.push(`n = ${n}`);
  target.title = title.join(", ");
}

// Numbers as numbers, before texts; what is missing comes last either way.
function compared(a, b, up) {
  if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
  const [p, q] = [bare(a), bare(b)];
  if (isNumber(p) && isNumber(q)) return up ? p - q : q - p;
  if (isNumber(p) !== isNumber(q)) return isNumber(p) ? -1 : 1;
  const order = String(p).localeCompare(String(q), undefined, { numeric: true });
  return up ? order : -order;
}

function drawTable(table, index) {
  const section = element("section", "", "table"), title = element("h2", table.title);
  section.id = `table-${index}`;
  title.id = `table-${index}-title`;
  section.setAttribute("aria-labelledby", title.id);
  section.append(title);
  if (table.note) section.append(element("p", table.note, "note"));

  const scroll = element("div", "", "scroll"), grid = element("table"), names = element("tr"), body = element("tbody");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-labelledby", title.id);
  const heads = table.columns.map((column, place) => {
    const head = element("th"), button = element("button");
    head.scope = "col";
    button.type = "button";
    breakable(button, column.label);
    if (column.help) button.title = column.help;
    if (table.rows.some((row) => isNumber(bare(row[column.key] ?? null)))) head.classList.add("number");
    button.addEventListener("click", () => sort(place));
    head.append(button);
    return head;
  });
  names.append(...heads);
  // On a phone the first column alone stays in sight; where it does not tell rows apart, it says the next ones, too.
  const firsts = table.rows.map((row) => row[table.columns[0].key]), numbers = heads.findIndex((head) => head.classList.contains("number"));
  const telling = new Set(firsts).size < firsts.length ? table.columns.slice(1, Math.max(1, numbers)) : [];
  const lines = table.rows.map((row) => {
    const line = element("tr");
    table.columns.forEach((column, place) => {
      const cell = element(place ? "td" : "th");
      if (!place) cell.scope = "row";
      if (heads[place].classList.contains("number")) cell.classList.add("number");
      fillCell(cell, row[column.key] ?? null, column.digits);
      const also = place ? [] : telling.map(({ key }) => bare(row[key] ?? null)).filter(Boolean);
      if (also.length) cell.append(element("span", also.join(", "), "also"));
      line.append(cell);
    });
    return { row, line };
  });
  body.append(...lines.map(({ line }) => line));

  // Up, down, and back to the file's own order.
  function sort(place) {
    const next = { ascending: "descending", descending: null }, before = heads[place].getAttribute("aria-sort");
    const way = before ? next[before] : "ascending", key = table.columns[place].key;
    for (const head of heads) head.removeAttribute("aria-sort");
    if (way) heads[place].setAttribute("aria-sort", way);
    const sorted = way ? [...lines].sort((a, b) => compared(a.row[key] ?? null, b.row[key] ?? null, way === "ascending")) : lines;
    body.append(...sorted.map(({ line }) => line));
  }

  const header = element("thead");
  header.append(names);
  grid.style.setProperty("--columns", table.columns.length);
  grid.append(header, body);
  scroll.append(grid);
  const hint = element("p", "more columns: scroll \u2192", "hint");
  hint.setAttribute("aria-hidden", "true");
  section.append(hint, scroll);
  const helped = table.columns.filter((column) => column.help);
  if (helped.length) {
    const details = element("details"), list = element("dl");
    details.append(element("summary", "What the columns say"), list);
    for (const column of helped) list.append(element("dt", column.label), element("dd", column.help));
    section.append(details);
  }
  return section;
}

// Whether a table goes on to the left or to the right of what is shown.
function watchTables() {
  const look = (box) => {
    const room = box.scrollWidth - box.clientWidth;
    box.parentElement.classList.toggle("more", room > 1 && box.scrollLeft < room - 1);
    box.parentElement.classList.toggle("less", room > 1 && box.scrollLeft > 1);
    box.parentElement.classList.toggle("scrolls", room > 1);
  };
  const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  for (const box of document.querySelectorAll(".table .scroll")) {
    watch.observe(box);
    box.addEventListener("scroll", () => look(box), { passive: true });
  }
}

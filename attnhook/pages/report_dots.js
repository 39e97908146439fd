// Scores as dots: a strip per score, a row per model or pair, its controls as marks of their own on the same axis.

const strips = file.strips, LANE = 13; // pixels between the marks of a row, which have a line each
const SHAPES = {
  model: ["circle", { r: 5 }], pair: ["circle", { r: 5 }], random_weights: ["path", { d: "M0-5 5 0 0 5-5 0Z" }], random_map: ["path", { d: "M-4-4 4 4M4-4-4 4" }],
  centre_prior: ["path", { d: "M-4.5-4.5H4.5V4.5H-4.5Z" }], chance: ["path", { d: "M0-6V6" }], shuffled: ["path", { d: "M-4-4 4 4M4-4-4 4" }],
  other_photo: ["path", { d: "M0-5 5 4H-5Z" }], random: ["path", { d: "M-4-4 4 4M4-4-4 4" }],
};

function drawing(kind, attributes = {}, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

const named = (kind) => kind.replaceAll("_", " ");
const shape = (kind) => drawing(SHAPES[kind][0], { ...SHAPES[kind][1], class: `mark ${kind}` });
const interval = ({ low, high }) => (isNumber(low) && isNumber(high) ? ` ${between(low, high, 2)}` : "");
const across = (strip, value) => `${(100 * (value - strip.low)) / (strip.high - strip.low)}%`;

function drawRow(strip, row) {
  const line = element("div", "", "strip-row"), height = LANE * row.marks.length + 8, values = row.marks.filter((_, i) => i === 0);
  line.setAttribute("role", "listitem");
  const picture = drawing("svg", { height, width: "100%", role: "img" });
  const said = row.marks.map((mark) => `${named(mark.kind)} ${written(mark.value, 2)}${interval(mark)}, n = ${mark.n}`);
  picture.setAttribute("aria-label", `${strip.title}, ${row.name}: ${said.join("; ")}`);
  for (const guide of strip.rows.filter((one) => one.guide)) for (const { kind, value } of guide.marks) {
    picture.append(drawing("line", { x1: across(strip, value), x2: across(strip, value), y1: 0, y2: height, class: `guide ${kind}` }));
  }
  row.marks.forEach((mark, i) => {
    const y = 4 + LANE * (i + 0.5), group = drawing("g", {}, drawing("title", {}, said[i]));
    if (isNumber(mark.low)) {
      const ends = { x1: across(strip, Math.max(mark.low, strip.low)), x2: across(strip, Math.min(mark.high, strip.high)), y1: y, y2: y };
      group.append(drawing("line", { ...ends, class: `range ${mark.kind}` }));
    }
    group.append(drawing("svg", { x: across(strip, mark.value), y, overflow: "visible" }, shape(mark.kind)));
    picture.append(group);
  });
  const text = element("span", "", "strip-value");
  for (const mark of values) text.append(written(mark.value, 2), element("span", interval(mark), "spread"));
  line.append(breakable(element("span", "", "strip-name"), row.name), text, picture);
  return line;
}

function drawAxis(strip) {
  const axis = drawing("svg", { height: 20, width: "100%", "aria-hidden": "true", class: "axis" });
  for (let i = 0; i <= Math.round((strip.high - strip.low) / strip.step); i++) {
    const value = strip.low + i * strip.step, x = across(strip, value);
    axis.append(drawing("line", { x1: x, x2: x, y1: 0, y2: 4 }), drawing("text", { x, y: 17, "text-anchor": "middle" }, written(value, 1)));
  }
  return axis;
}

function drawStrip(strip) {
  const figure = element("figure", "", "strip"), caption = element("figcaption"), rows = element("div", "", "strip-rows");
  caption.append(element("b", strip.title), ` ${strip.help}`);
  rows.setAttribute("role", "list");
  rows.append(...strip.rows.map((row) => drawRow(strip, row)));
  figure.append(caption, rows, drawAxis(strip));
  return figure;
}

// Strips with the same kinds of marks, and what these are.
function drawGroup(name, shown) {
  const group = element("div", "", "strips"), legend = element("ul", "", "marks");
  const kinds = [...new Set(shown.flatMap((strip) => strip.rows.flatMap((row) => row.marks.map((mark) => mark.kind))))];
  legend.append(...kinds.map((kind) => {
    const item = element("li"), picture = drawing("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, shape(kind));
    item.append(picture, element("span", `${named(kind)}: ${file.marks[kind]}`));
    return item;
  }));
  group.append(element("h3", name), legend, ...shown.map(drawStrip));
  return group;
}

function drawStrips() {
  const shown = strips.filter((strip) => strip.view === Number($("strip-view").value)), groups = [...new Set(shown.map((strip) => strip.group))];
  $("strips").replaceChildren(...groups.map((name) => drawGroup(name, shown.filter((strip) => strip.group === name))));
}

function startStrips() {
  const present = views.map((view, i) => [view, i]).filter(([, i]) => strips.some((strip) => strip.view === i));
  $("scores").hidden = !present.length;
  if (!present.length) return;
  $("strip-view").append(...present.map(([view, i]) => new Option(view.label, String(i))));
  $("strip-view-field").hidden = present.length < 2;
  if (present.length === 1) $("scores-title").textContent = `Scores: ${present[0][0].label}`;
  $("strip-view").addEventListener("change", drawStrips);
  drawStrips();
}

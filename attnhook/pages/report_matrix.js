// Photos by models: one canvas a cell, drawn when it comes into view, and all of them for paper.

const PHONE = matchMedia("(max-width: 700px)");
const CELL = { least: 150, most: 260 }, MANY = 200; // cells; more are printed with a pixel a pixel, as all are in memory then
const rows = [], cells = new Map(); // cells by their canvas
const layout = { size: 0, sharp: 1 }; // the longer edge of a picture, and how many pixels a canvas has for one of it

function makeCell(row, model) {
  const place = model === null ? element("th", "", "photo") : element("td"), picture = element("div", "", "picture"), canvas = element("canvas");
  const cell = { row, model, place, picture, canvas, seen: false };
  const name = model === null ? "Photo" : models[model].name;
  canvas.width = canvas.height = 1;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", model === null ? `${photos[row.number].name}, the photo itself` : `${name} over ${photos[row.number].name}`);
  canvas.tabIndex = model === null ? 0 : -1;
  cell.frame = element("div", "", "frame");
  cell.point = element("div", "", "point");
  cell.point.hidden = true;
  cell.none = element("p", "", "none");
  cell.outline = makeOutline(photos[row.number].outline);
  cell.peak = cased("0 0 16 16", "M3 3 13 13M13 3 3 13", "peak");
  picture.append(canvas, cell.outline, cell.frame, cell.peak, cell.point, cell.none);
  const who = breakable(element("p", "", "who"), name);
  who.setAttribute("aria-hidden", "true"); // the table's header says it
  place.append(who, picture);
  if (model !== null) {
    cell.bar = element("div", "", "bar");
    cell.low = element("span");
    cell.high = element("span");
    cell.bar.append(cell.low, element("span", "", "colors"), cell.high);
    place.append(cell.bar);
  } else place.scope = "row";
  cell.value = element("p", "", "value");
  if (model !== null) place.append(cell.value);
  cells.set(canvas, cell);
  return cell;
}

function makeRow(number) {
  const photo = photos[number], line = element("tr");
  const row = { number, photo, line, look: WHOLE, at: null, image: null, bare: null };
  row.cells = [null, ...models.keys()].map((model) => makeCell(row, model));
  const facts = element("div", "", "facts"), own = row.cells[0];
  facts.append(breakable(element("p", "", "name"), photo.name));
  if (photo.label) facts.append(element("p", photo.label, "quiet"));
  facts.append(element("p", `all models saw ${Math.round(100 * photo.shared)} %`, "quiet"));
  row.buttons = zoomButtons(row);
  facts.append(row.buttons.group, own.value);
  own.place.append(facts);
  line.append(...row.cells.map((cell) => cell.place));
  rows.push(row);
  return line;
}

function makeMatrix() {
  $("names").append(...["Photo", ...models.map((model) => model.name)].map((name) => {
    const head = breakable(element("th"), name);
    head.scope = "col";
    return head;
  }));
  $("rows").append(...photos.map((_, number) => makeRow(number)));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const cell = cells.get(entry.target);
      cell.seen = entry.isIntersecting;
      if (cell.seen) redraw(cell);
      else if (!printing) clearCell(cell);
    }
  }, { rootMargin: "200px" });
  for (const canvas of cells.keys()) watch.observe(canvas);
  new ResizeObserver(measure).observe($("maps"));
  measure();
  addEventListener("load", () => rows.forEach(loadImage)); // printing cannot wait for them
  addEventListener("beforeprint", drawForPaper);
  addEventListener("afterprint", backToScreen);
}

// As wide as lets all models stand side by side, within limits; two a line on phones.
function measure() {
  const wide = $("maps").clientWidth, gap = 12, across = PHONE.matches ? 2 : models.length + 1;
  const room = Math.floor((wide - (PHONE.matches ? gap : (gap * across + 2))) / across);
  const size = PHONE.matches ? Math.min(room, CELL.most) : Math.min(Math.max(room, CELL.least), CELL.most);
  const sharp = Math.min(2, window.devicePixelRatio || 1);
  $("matrix").classList.toggle("fits", PHONE.matches || room >= CELL.least); // the page scrolls then, not the matrix
  $("maps").style.setProperty("--controls", `${$("controls").offsetHeight}px`);
  if (layout.size === size && layout.sharp === sharp) return;
  Object.assign(layout, { size, sharp });
  $("matrix").style.setProperty("--cell", `${size}px`);
  for (const row of rows) {
    const { width, height } = row.photo, shrink = size / Math.max(width, height);
    row.shown = [Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink))];
    row.bare = null;
    row.line.style.setProperty("--wide", `${row.shown[0]}px`);
    row.line.style.setProperty("--tall", `${row.shown[1]}px`);
    row.line.style.setProperty("--part", row.shown[0] / size); // of its column, on paper
    row.line.style.setProperty("--shape", row.shown[0] / row.shown[1]);
  }
  redraw();
}

// --- drawing ------------------------------------------------------------------------------------------------------------------

const waiting = new Set();
function redraw(...asked) {
  if (!waiting.size) requestAnimationFrame(() => {
    const now = [...waiting];
    waiting.clear();
    for (const cell of now) if (cell.seen || printing) drawCell(cell);
  });
  for (const cell of asked.length ? asked : cells.values()) waiting.add(cell);
}

function loadImage(row) {
  if (row.image) return;
  row.image = new Image();
  row.image.onload = () => { row.ready = true; redraw(...row.cells); };
  row.image.onerror = () => { row.broken = true; redraw(...row.cells); };
  row.image.src = `data:image/jpeg;base64,${row.photo.jpeg}`;
}

// The part of the photo that is shown, without a map; undefined until the photo is loaded.
function bareOf(row) {
  loadImage(row);
  if (!row.ready && !row.broken) return undefined;
  if (!row.bare) {
    const pad = document.createElement("canvas"), context = pad.getContext("2d", { willReadFrequently: true });
    [pad.width, pad.height] = row.shown.map((edge) => Math.round(edge * layout.sharp));
    context.imageSmoothingQuality = "high";
    const { naturalWidth: wide, naturalHeight: tall } = row.image, { top, left, size } = row.look;
    if (row.ready) context.drawImage(row.image, left * wide, top * tall, size * wide, size * tall, 0, 0, pad.width, pad.height);
    row.bare = context.getImageData(0, 0, pad.width, pad.height);
  }
  return row.bare;
}

function drawCell(cell) {
  const { row, canvas, model } = cell, bare = bareOf(row), map = model === null ? null : mapOf(model, row.number);
  if (!bare) return;
  let picture = bare;
  if (map) {
    const scale = colorsOf(map, row.photo, row.number);
    picture = painted(map, row.photo, bare, row.look, scale);
    cell.low.textContent = scale.log ? "1/N" : trim(scale.low);
    cell.high.textContent = scale.log ? `${state.top}/N` : trim(scale.high);
    cell.bar.title = scale.name === state.scale ? "" : "its own range: the chosen scale does not fit this map";
    cell.bar.classList.toggle("own", scale.name !== state.scale);
  }
  if (model !== null) {
    const reason = reasonOf(model, row.number);
    cell.bar.classList.toggle("empty", !map);
    cell.none.hidden = Boolean(map);
    if (!map) cell.none.replaceChildren(element("b", "no map"), element("span", reason));
    cell.none.title = map ? "" : reason;
    cell.picture.classList.toggle("empty", !map);
  } else {
    cell.none.hidden = !row.broken;
    if (row.broken) cell.none.textContent = "the photo cannot be read";
  }
  [canvas.width, canvas.height] = [bare.width, bare.height];
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(picture, 0, 0);
  canvas.dataset.drawn = "yes";
  drawFrame(cell);
  drawOutline(cell);
  drawPeak(cell);
  drawPoint(cell);
}

function clearCell({ canvas }) { // its memory, not its place
  canvas.width = canvas.height = 1;
  delete canvas.dataset.drawn;
}

let printing = false;
function drawForPaper() {
  printing = true;
  layout.sharp = cells.size > MANY ? 1 : 2;
  for (const row of rows) {
    row.bare = null;
    row.cells.forEach(drawCell);
  }
}

function backToScreen() {
  printing = false;
  for (const cell of cells.values()) if (!cell.seen) clearCell(cell);
  layout.sharp = 0; // whatever the screen's is
  measure();
}

const percent = (part) => `${100 * part}%`;

function drawFrame({ row, model, frame }) {
  const { photo, look } = row, [top, left, bottom, right] = photo.box;
  const whole = top <= 0 && left <= 0 && bottom >= photo.height && right >= photo.width;
  const none = model !== null && !mapOf(model, row.number);
  frame.hidden = !state.frame || none || whole || !(bottom > top && right > left);
  frame.style.top = percent((top / photo.height - look.top) / look.size);
  frame.style.left = percent((left / photo.width - look.left) / look.size);
  frame.style.height = percent((bottom - top) / photo.height / look.size);
  frame.style.width = percent((right - left) / photo.width / look.size);
}

// White over a dark edge, so that lines show on any picture.
function cased(box, path, name) {
  const lines = ["casing", "line"].map((kind) => drawing("path", { d: path, class: kind, "vector-effect": "non-scaling-stroke" }));
  return drawing("svg", { viewBox: box, class: name, preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
}

function makeOutline(outline) {
  const [tall, wide] = outline ? outline.size : [1, 1];
  return cased(`0 0 ${wide} ${tall}`, outline ? outline.path : "", "outline");
}

const toggle = (drawn, shown) => drawn.classList.toggle("off", !shown); // SVG elements know nothing of `hidden`

function drawOutline({ row, outline }) {
  const { look, photo } = row;
  toggle(outline, state.outline && photo.outline);
  if (!photo.outline) return;
  const [tall, wide] = photo.outline.size;
  outline.setAttribute("viewBox", [look.left * wide, look.top * tall, look.size * wide, look.size * tall].join(" "));
}

function drawPeak({ row, model, peak }) {
  const { look, photo } = row, at = model === null ? null : mapOf(model, row.number)?.peak;
  const place = at && { y: (at[0] / photo.height - look.top) / look.size, x: (at[1] / photo.width - look.left) / look.size };
  toggle(peak, state.peak && place && place.y >= 0 && place.y <= 1 && place.x >= 0 && place.x <= 1);
  if (place) { peak.style.top = percent(place.y); peak.style.left = percent(place.x); }
}

// What is at the row's point: a mark on each picture, and a line under it.
function drawPoint(cell) {
  const { row, model, point, value } = cell, { at, look, photo } = row;
  delete value.dataset.value;
  const place = at && { y: (at.y - look.top) / look.size, x: (at.x - look.left) / look.size };
  point.hidden = !place || place.y < 0 || place.y > 1 || place.x < 0 || place.x > 1;
  if (!point.hidden) { point.style.top = percent(place.y); point.style.left = percent(place.x); }
  if (!at) { value.textContent = ""; return; }
  if (model === null) {
    value.textContent = `row ${Math.min(photo.height - 1, Math.floor(at.y * photo.height))}, column ${Math.min(photo.width - 1, Math.floor(at.x * photo.width))}`;
    return;
  }
  const map = mapOf(model, row.number);
  if (!map) { value.textContent = ""; return; }
  const down = mapAlong(map, 0, [at.y * photo.height]), across = mapAlong(map, 1, [at.x * photo.width]);
  const found = valueAt(valuesOf(map), map.grid[1], down, across, 0, 0);
  if (Number.isNaN(found)) { value.textContent = down.own[0] < 0 || across.own[0] < 0 ? "not seen" : "no value: patch dropped"; return; }
  value.dataset.value = String(found);
  value.textContent = trim(found);
  if (views[state.view].mass && map.uniform) value.append(element("span", ` \u00b7 ${trim(found / map.uniform)}\u00a0\u00d7\u00a01/N`, "quiet"));
}

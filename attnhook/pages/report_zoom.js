// Zooming, moving and pointing: what happens to one picture happens to its whole row.

const MOST = 16; // times
const STEP = 1.5;
let lastRow = null; // the last one whose zoom was changed
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

function setLook(row, look) {
  const size = clamp(look.size, 1 / MOST, 1);
  const fitted = size === 1 ? WHOLE : { size, top: clamp(look.top, 0, 1 - size), left: clamp(look.left, 0, 1 - size) };
  lastRow = row;
  for (const one of state.together ? rows : [row]) {
    one.look = fitted;
    one.bare = null;
    one.line.classList.toggle("zoomed", fitted.size < 1);
    one.buttons.out.disabled = one.buttons.whole.disabled = fitted.size === 1;
    one.buttons.closer.disabled = fitted.size <= 1 / MOST;
    one.buttons.text.textContent = fitted.size === 1 ? "" : `${trim(1 / fitted.size)} \u00d7`;
    redraw(...one.cells);
  }
}

// By a factor, with one point of the photo staying where it is on the screen.
function zoom(row, factor, at) {
  const { top, left, size } = row.look, middle = at || row.at || { y: top + size / 2, x: left + size / 2 };
  const next = clamp(size / factor, 1 / MOST, 1), keep = next / size;
  setLook(row, { size: next, top: middle.y - (middle.y - top) * keep, left: middle.x - (middle.x - left) * keep });
}

function setPoint(row, at) {
  row.at = at && { y: clamp(at.y, 0, 1 - 1e-9), x: clamp(at.x, 0, 1 - 1e-9) };
  for (const cell of row.cells) drawPoint(cell);
}

function zoomButtons(row) {
  const group = element("div", "", "zoom"), button = (text, label, act) => {
    const made = element("button", text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", `${label}: ${row.photo.name}`);
    made.addEventListener("click", act);
    return made;
  };
  const out = button("\u2212", "zoom out", () => zoom(row, 1 / STEP)), closer = button("+", "zoom in", () => zoom(row, STEP));
  const whole = button("whole", "show the whole photo", () => setLook(row, WHOLE)), text = element("output", "", "quiet");
  out.disabled = whole.disabled = true;
  group.append(out, closer, whole, text);
  return { group, out, closer, whole, text };
}

// Where on the photo an event is, relative to the photo.
function placeOf(event, cell) {
  const box = cell.canvas.getBoundingClientRect(), { top, left, size } = cell.row.look;
  return { y: top + ((event.clientY - box.top) / box.height) * size, x: left + ((event.clientX - box.left) / box.width) * size };
}

function connectMatrix() {
  const matrix = $("matrix"), fingers = new Map();
  let drag = null; // { cell, place } while one finger or button is down, { cell, place, apart } while two are
  const cellOf = (event) => cells.get(event.target);
  const between = () => {
    const [a, b] = [...fingers.values()];
    return { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2, apart: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) };
  };
  const grab = (cell) => {
    if (fingers.size === 2) { const both = between(); drag = { cell, place: placeOf(both, cell), apart: both.apart, size: cell.row.look.size }; }
    else drag = fingers.size === 1 ? { cell, place: placeOf([...fingers.values()][0], cell) } : null;
  };
  matrix.addEventListener("pointerdown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.button > 0) return;
    fingers.set(event.pointerId, event);
    event.target.setPointerCapture(event.pointerId);
    event.target.focus({ preventScroll: true });
    grab(cell);
    setPoint(cell.row, placeOf(event, cell));
  });
  matrix.addEventListener("pointermove", (event) => {
    const cell = cellOf(event);
    if (!cell) return;
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
    if (drag && fingers.size) {
      const both = fingers.size === 2 ? between() : event, size = drag.apart ? clamp(drag.size * drag.apart / Math.max(1, both.apart), 1 / MOST, 1) : drag.cell.row.look.size;
      const box = drag.cell.canvas.getBoundingClientRect(), row = drag.cell.row;
      const look = { size, top: drag.place.y - ((both.clientY - box.top) / box.height) * size, left: drag.place.x - ((both.clientX - box.left) / box.width) * size };
      if (size < 1 || row.look.size < 1) setLook(row, look);
    }
    setPoint(cell.row, placeOf(event, cell));
  });
  for (const kind of ["pointerup", "pointercancel"]) matrix.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    const cell = cellOf(event);
    if (cell) grab(cell);
  });
  matrix.addEventListener("pointerout", (event) => {
    const cell = cellOf(event), next = cells.get(event.relatedTarget);
    if (cell && event.pointerType === "mouse" && (!next || next.row !== cell.row)) setPoint(cell.row, null);
  });
  matrix.addEventListener("dblclick", (event) => { if (cellOf(event)) setLook(cellOf(event).row, WHOLE); });
  matrix.addEventListener("wheel", (event) => {
    const cell = cellOf(event);
    if (!cell || !(event.ctrlKey || event.metaKey || document.activeElement === event.target)) return;
    event.preventDefault();
    const lines = event.deltaMode ? 30 : 1, speed = event.ctrlKey ? 0.01 : 0.002;
    zoom(cell.row, Math.exp(clamp(-event.deltaY * lines * speed, -0.7, 0.7)), placeOf(event, cell));
  }, { passive: false });
  matrix.addEventListener("keydown", onPictureKey);
}

function onPictureKey(event) {
  const cell = cells.get(event.target), moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const { row } = cell, { look } = row;
  if (moves[event.key]) {
    const [dy, dx] = moves[event.key], at = row.at || { y: look.top + look.size / 2, x: look.left + look.size / 2 }, step = look.size / 40;
    setPoint(row, { y: at.y + dy * step, x: at.x + dx * step });
    const follow = (start, place) => clamp(start, place - look.size, place);
    const top = follow(look.top, row.at.y), left = follow(look.left, row.at.x);
    if (top !== look.top || left !== look.left) setLook(row, { ...look, top, left });
  } else if (event.key === "+" || event.key === "=") zoom(row, STEP);
  else if (event.key === "-") zoom(row, 1 / STEP);
  else if (event.key === "0") setLook(row, WHOLE);
  else if (event.key === "Escape") { setLook(row, WHOLE); setPoint(row, null); event.target.blur(); }
  else return;
  event.preventDefault();
}

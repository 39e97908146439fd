// Zoom and pan: the stage is a window onto the sheet, which holds the picture and its marks.

const STEP = 1.5, MOST = 8, FLATTEST = 2, NARROWEST = 0.6; // the stage's shape stays usable where the photo's is not
const view = { zoom: 1, x: 0.5, y: 0.5 }; // relative to the whole photo; what is in the middle of the stage, as shares of the photo

// The stage's size, and the sheet's where the whole photo fits; `cover`: the zoom at which the photo fills the stage.
function fitted() {
  const [height, width] = factsNow().size, { clientWidth, clientHeight } = $("stage");
  const scale = Math.min(clientWidth / width, clientHeight / height);
  const cover = Math.max(clientWidth / (scale * width), clientHeight / (scale * height));
  return { stage: [clientWidth, clientHeight], whole: [scale * width, scale * height], cover };
}

// Where the sheet begins along an axis: it leaves no gap where it is longer than the stage, and is in the middle where it is not.
const begin = (stage, sheet, middle) => (sheet <= stage ? (stage - sheet) / 2 : Math.min(0, Math.max(stage - sheet, stage / 2 - middle * sheet)));

function sheetBox() {
  const { stage, whole } = fitted(), size = whole.map((edge) => edge * view.zoom);
  return { stage, size, start: [begin(stage[0], size[0], view.x), begin(stage[1], size[1], view.y)] };
}

function place() {
  const { stage, size, start } = sheetBox(), sheet = $("sheet").style;
  [view.x, view.y] = [0, 1].map((axis) => (stage[axis] / 2 - start[axis]) / size[axis]);
  sheet.width = `${size[0]}px`; sheet.height = `${size[1]}px`;
  sheet.left = `${start[0]}px`; sheet.top = `${start[1]}px`;
  $("stage").classList.toggle("pannable", size.some((edge, axis) => edge > stage[axis] + 1));
  $("zoom-text").textContent = `${Math.round(view.zoom * 100)} %`;
  $("farther").disabled = $("whole").disabled = view.zoom <= 1;
  $("closer").disabled = view.zoom >= MOST * fitted().cover;
}

// Zooms around a point of the stage, which stays where it is.
function zoomBy(factor, point = fitted().stage.map((edge) => edge / 2)) {
  const { stage, size, start } = sheetBox(), before = view.zoom;
  view.zoom = Math.min(Math.max(before * factor, 1), MOST * fitted().cover);
  [view.x, view.y] = [0, 1].map((axis) => {
    const grown = size[axis] * view.zoom / before;
    return (stage[axis] / 2 - point[axis] + (point[axis] - start[axis]) / size[axis] * grown) / grown;
  });
  place();
}

function panBy(across, down) {
  const { size } = sheetBox();
  view.x -= across / size[0];
  view.y -= down / size[1];
  place();
}

function showWhole() { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); place(); }

// The photo as it is first shown: whole, but what the model saw of an elongated one.
function resetView() {
  const scene = scenes[state.scene], [height, width] = scene.facts.size, ratio = width / height;
  $("stage").style.setProperty("--ratio", String(Math.min(Math.max(ratio, NARROWEST), FLATTEST)));
  showWhole();
  if (ratio >= NARROWEST && ratio <= FLATTEST) return;
  const { y, x, bottom, right } = seenBox(scene, scene.facts.blocks.find((block) => block.grid));
  Object.assign(view, { zoom: fitted().cover, x: (x + right) / 2 / width, y: (y + bottom) / 2 / height });
  place();
}

// Pans so that a box of the photo is in view.
function reveal(box) {
  const [height, width] = factsNow().size, { stage, size, start } = sheetBox();
  const missing = [[box.x, box.right, width], [box.y, box.bottom, height]].map(([from, to, edge], axis) => {
    const near = start[axis] + from / edge * size[axis], far = start[axis] + to / edge * size[axis];
    return near < 0 ? -near : far > stage[axis] ? stage[axis] - far : 0;
  });
  panBy(...missing);
}

let dragged = false; // the click that ends a drag asks for no patch
function connectZoom() {
  const stage = $("stage"), fingers = new Map();
  const at = (e) => { const box = stage.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
  const middle = ([[x, y], [otherX, otherY] = [x, y]]) => [(x + otherX) / 2, (y + otherY) / 2];
  const apart = ([[x, y], [otherX, otherY]]) => Math.hypot(x - otherX, y - otherY);
  stage.addEventListener("wheel", (e) => {
    const factor = Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.002));
    if (factor < 1 && view.zoom <= 1) return; // the page scrolls
    e.preventDefault();
    zoomBy(factor, at(e));
  }, { passive: false });
  stage.addEventListener("touchmove", (e) => { if (e.touches.length > 1) e.preventDefault(); }, { passive: false });
  stage.addEventListener("pointerdown", (e) => { if (!fingers.size) dragged = false; fingers.set(e.pointerId, at(e)); });
  stage.addEventListener("pointermove", (e) => {
    if (!fingers.has(e.pointerId)) return;
    const before = [...fingers.values()], now = at(e), [x, y] = fingers.get(e.pointerId);
    const moves = dragged || fingers.size > 1 || (stage.classList.contains("pannable") && Math.hypot(now[0] - x, now[1] - y) > 4);
    if (!moves) return;
    if (!dragged) for (const id of fingers.keys()) stage.setPointerCapture(id);
    dragged = true;
    fingers.set(e.pointerId, now);
    const after = [...fingers.values()], from = middle(before), to = middle(after);
    panBy(to[0] - from[0], to[1] - from[1]);
    if (after.length > 1) zoomBy(apart(after) / Math.max(apart(before), 1), to);
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) stage.addEventListener(name, (e) => fingers.delete(e.pointerId));
  $("closer").addEventListener("click", () => zoomBy(STEP));
  $("farther").addEventListener("click", () => zoomBy(1 / STEP));
  $("whole").addEventListener("click", showWhole);
  new ResizeObserver(place).observe(stage);
}

// The viewer's picture and the marks on it.

// --- between photo and patches ------------------------------------------------------------------------------------------------

// Where the photo's pixels are among a block's patches, along both axes.
function placesOf(scene, { grid, area, start, reach }) {
  const key = JSON.stringify([grid, area, start, reach]), { facts } = scene; // blocks of one grid may lie differently
  if (!scene.places.has(key)) {
    scene.places.set(key, [0, 1].map((axis) => {
      const stretch = facts.original[axis] / facts.size[axis];
      return along({ ...facts, area, start, reach }, axis, grid[axis], Float64Array.from({ length: facts.size[axis] }, (_, i) => (i + 0.5) * stretch));
    }));
  }
  return scene.places.get(key);
}

function boxOf(facts, { grid, area, start }, row, column) {
  const edge = (axis, i) => {
    const at = (start[axis] + i * area[axis] / grid[axis] - facts.offset[axis]) / facts.scale[axis] * facts.size[axis] / facts.original[axis];
    return Math.min(Math.max(at, 0), facts.size[axis]);
  };
  return { y: edge(0, row), x: edge(1, column), bottom: edge(0, row + 1), right: edge(1, column + 1) };
}

function patchAt(event) {
  const scene = scenes[state.scene], block = blockNow();
  if (!block.grid) return null;
  const box = canvas.getBoundingClientRect(), [height, width] = scene.facts.size;
  const y = Math.floor((event.clientY - box.top) / box.height * height), x = Math.floor((event.clientX - box.left) / box.width * width);
  if (y < 0 || x < 0 || y >= height || x >= width) return null;
  const [down, across] = placesOf(scene, block);
  return down.own[y] < 0 || across.own[x] < 0 ? { outside: true } : { row: down.own[y], column: across.own[x] };
}

// The part of the photo that the model saw, in pixels.
function seenBox(scene, block) {
  const [[y, bottom], [x, right]] = placesOf(scene, block).map(({ own }) => {
    let from = 0, to = own.length;
    while (from < to && own[from] < 0) from++;
    while (to > from && own[to - 1] < 0) to--;
    return [from, to];
  });
  return { y, x, bottom, right };
}

// --- drawing ------------------------------------------------------------------------------------------------------------------

// The 1st, 50th and 99th percentile of the pixels.
const cached = { key: "", shares: [0, 0, 0] };
function percentiles(scene) {
  const key = JSON.stringify([state.scene, state.block, state.head, state.source, state.query, state.smooth]);
  if (cached.key !== key) Object.assign(cached, { key, shares: percentilesOf(scene.values) });
  return cached.shares;
}

// The colours' range and where opacity begins; the whole range where the percentiles coincide.
function scaleNow(scene, own, uniform) {
  if (state.scale === "uniform") return colorScale([uniform, state.top * uniform], uniform, true);
  const [first, middle, last] = percentiles(scene);
  return colorScale(state.scale === "robust" && !isFlat([first, last]) ? [first, last] : own, middle);
}

function draw() {
  const scene = scenes[state.scene];
  if (!scene.bytes) return;
  const row = currentRow();
  state.shown = row;
  $("notice").textContent = row.missing || row.block.value_multiplier || "";
  if (row.missing) {
    context.putImageData(scene.photo, 0, 0);
    drawPalette();
    $("low").textContent = $("high").textContent = $("bar-text").textContent = "";
    $("masses").replaceChildren();
  } else {
    const { grid, first } = row.block, values = row.values.subarray(first, first + grid[0] * grid[1]);
    if (state.mask) drawMask(scene, row.block, values);
    else drawHeat(scene, row, values);
    drawMasses(row);
  }
  drawMarks();
  drawTexts();
  drawValue();
  canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
}

function drawHeat(scene, row, patches) {
  valuesAt(patches, row.block.grid[1], ...placesOf(scene, row.block), scene.values);
  const own = spread(endsOf(scene.values));
  const scale = scaleNow(scene, own, 1 / row.part.keys);
  context.putImageData(blended(scene.photo, scene.values, scale), 0, 0);
  drawPalette(scale);
  $("low").textContent = state.scale === "uniform" ? "\u2264 1/N" : `${own[0] < scale.low ? "≤ " : ""}${number(scale.low)}`;
  $("high").textContent = `${own[1] > scale.high ? "≥ " : ""}${number(scale.high)}`;
  $("bar-text").textContent = state.scale === "uniform"
    ? `1 to ${number(state.top)} times uniform attention (1/${row.part.keys}), logarithmic: comparable between views`
    : isFlat(own) ? "flat: every patch gets the same"
    : `${state.scale === "robust" ? "this view's 1st to 99th percentile" : "this view's own range"}: not comparable between views`;
}

function drawMarks() {
  const scene = scenes[state.scene], block = blockNow(), [height, width] = scene.facts.size, marks = $("marks");
  marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
  marks.setAttribute("preserveAspectRatio", "none");
  const rects = [];
  const add = (box, name) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("x", box.x); rect.setAttribute("y", box.y);
    rect.setAttribute("width", Math.max(0, box.right - box.x)); rect.setAttribute("height", Math.max(0, box.bottom - box.y));
    rect.setAttribute("class", name);
    rects.push(rect);
  };
  if (block.grid) {
    const seen = seenBox(scene, block), asked = patchOfQuery(), cursor = state.cursor;
    if (seen.y > 0 || seen.x > 0 || seen.bottom < height || seen.right < width) for (const name of ["seen-under", "seen"]) add(seen, name);
    if (asked) for (const name of ["under", "over"]) add(boxOf(scene.facts, block, asked.row, asked.column), name);
    if (cursor && cursor.row < block.grid[0] && cursor.column < block.grid[1])
      for (const name of ["cursor-under", "cursor"]) add(boxOf(scene.facts, block, cursor.row, cursor.column), name);
  }
  marks.replaceChildren(...rects);
}

// The picture as a PNG of the size at which the photo is stored, with the patch that was asked.
function savePicture() {
  const { facts } = scenes[state.scene], block = blockNow(), asked = patchOfQuery(), copy = document.createElement("canvas");
  [copy.height, copy.width] = facts.size;
  const pen = copy.getContext("2d");
  pen.drawImage(canvas, 0, 0);
  if (asked) {
    const { y, x, bottom, right } = boxOf(facts, block, asked.row, asked.column);
    for (const [color, width] of [["#000", 3.5], ["#fff", 1.5]]) {
      Object.assign(pen, { strokeStyle: color, lineWidth: width });
      pen.strokeRect(x, y, right - x, bottom - y);
    }
  }
  copy.toBlob((blob) => {
    const link = document.createElement("a"), url = URL.createObjectURL(blob);
    Object.assign(link, { href: url, download: pictureName(facts, block) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }, "image/png");
}

// The viewer's picture, the marks on it, and the texts next to it.

// --- between photo and patches ------------------------------------------------------------------------------------------------

// Where the photo's pixels are among the patches, along both axes.
function placesOf(scene, grid) {
  const key = grid.join(), { facts } = scene;
  if (!scene.places.has(key)) {
    scene.places.set(key, [0, 1].map((axis) => {
      const stretch = facts.original[axis] / facts.size[axis];
      return along(facts, axis, grid[axis], Float64Array.from({ length: facts.size[axis] }, (_, i) => (i + 0.5) * stretch));
    }));
  }
  return scene.places.get(key);
}

function boxOf(scene, grid, row, column) {
  const edge = (axis, i) => {
    const at = (i * facts.area[axis] / grid[axis] - facts.offset[axis]) / facts.scale[axis] * facts.size[axis] / facts.original[axis];
    return Math.min(Math.max(at, 0), facts.size[axis]);
  };
  const facts = scene.facts;
  return { y: edge(0, row), x: edge(1, column), bottom: edge(0, row + 1), right: edge(1, column + 1) };
}

function patchAt(event) {
  const scene = scenes[state.scene], grid = gridNow();
  if (!grid) return null;
  const box = canvas.getBoundingClientRect(), [height, width] = scene.facts.size;
  const y = Math.floor((event.clientY - box.top) / box.height * height), x = Math.floor((event.clientX - box.left) / box.width * width);
  if (y < 0 || x < 0 || y >= height || x >= width) return null;
  const [down, across] = placesOf(scene, grid);
  return down.own[y] < 0 || across.own[x] < 0 ? { outside: true } : { row: down.own[y], column: across.own[x] };
}

const gridNow = () => scenes[state.scene].facts.blocks[state.block].grid;

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
  const scene = scenes[state.scene], facts = scene.facts;
  if (!scene.bytes) return;
  const row = currentRow();
  state.shown = row;
  $("notice").textContent = row.missing || row.block.value_multiplier || "";
  if (row.missing) {
    context.putImageData(scene.photo, 0, 0);
    $("low").textContent = $("high").textContent = $("bar-text").textContent = "";
    $("masses").replaceChildren();
  } else {
    const { grid, first } = row.block, count = grid[0] * grid[1];
    valuesAt(row.values.subarray(first, first + count), grid[1], ...placesOf(scene, grid), scene.values);
    const own = spread(endsOf(scene.values));
    const uniform = 1 / row.part.keys;
    const scale = scaleNow(scene, own, uniform);
    context.putImageData(blended(scene.photo, scene.values, scale), 0, 0);
    drawPalette(scale);
    $("low").textContent = state.scale === "uniform" ? "\u2264 1/N" : `${own[0] < scale.low ? "≤ " : ""}${number(scale.low)}`;
    $("high").textContent = `${own[1] > scale.high ? "≥ " : ""}${number(scale.high)}`;
    $("bar-text").textContent = state.scale === "uniform"
      ? `1 to ${trim(state.top)} times uniform attention (1/${row.part.keys}), logarithmic: comparable between views`
      : isFlat(own) ? "flat: every patch gets the same"
      : `${state.scale === "robust" ? "this view's 1st to 99th percentile" : "this view's own range"}: not comparable between views`;
    drawMasses(row);
  }
  drawMarks();
  drawTexts(facts);
  drawValue();
  canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
}

function drawMarks() {
  const scene = scenes[state.scene], facts = scene.facts, grid = gridNow(), marks = $("marks");
  marks.setAttribute("viewBox", `0 0 ${facts.size[1]} ${facts.size[0]}`);
  marks.setAttribute("preserveAspectRatio", "none");
  const rects = [];
  const add = (box, name) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("x", box.x); rect.setAttribute("y", box.y);
    rect.setAttribute("width", Math.max(0, box.right - box.x)); rect.setAttribute("height", Math.max(0, box.bottom - box.y));
    rect.setAttribute("class", name);
    rects.push(rect);
  };
  if (grid) {
    const [down, across] = placesOf(scene, grid);
    const rows = seen(down.own), columns = seen(across.own);
    if (rows[0] > 0 || columns[0] > 0 || rows[1] < facts.size[0] || columns[1] < facts.size[1])
      add({ y: rows[0], x: columns[0], bottom: rows[1], right: columns[1] }, "seen");
    const asked = patchOfQuery();
    if (asked) for (const name of ["under", "over"]) add(boxOf(scene, grid, asked.row, asked.column), name);
    if (state.cursor && state.cursor.row < grid[0] && state.cursor.column < grid[1])
      for (const name of ["cursor-under", "cursor"]) add(boxOf(scene, grid, state.cursor.row, state.cursor.column), name);
  }
  marks.replaceChildren(...rects);
}

function seen(own) {
  let from = 0, to = own.length;
  while (from < to && own[from] < 0) from++;
  while (to > from && own[to - 1] < 0) to--;
  return [from, to];
}

function drawTexts(facts) {
  const block = facts.blocks[state.block], heads = headsNow(), rollout = state.source === "rollout";
  const head = rollout || state.head < 0 ? `mean over ${heads} head${heads > 1 ? "s" : ""}` : `head ${state.head}`;
  $("query-text").textContent = `${queryName()}, block ${block.number[0]}, ${head}, ${rollout ? "rollout up to here" : "raw attention"}`;
  $("module").textContent = block.name;
  $("block-text").textContent = block.number.join(" of ");
  $("head-text").textContent = rollout || state.head < 0 ? "mean" : `${state.head} of ${heads - 1}`;
  $("alpha-text").textContent = `${Math.round(state.alpha * 100)} %`;
  $("top-text").textContent = `${trim(state.top)} × 1/N`;
  $("top").disabled = state.scale !== "uniform";
  $("head").disabled = rollout || heads < 2;
  $("query").value = state.query.row !== undefined ? `row ${state.query.row}` : patchOfQuery() ? "patch" : `token ${state.query.token}`;
  const patch = patchOfQuery(), option = $("query").querySelector('[value="patch"]');
  option.hidden = !patch;
  option.textContent = patch ? `row ${patch.row}, column ${patch.column}` : "";
  $("back").hidden = state.query.row === READOUT;
}

function drawValue() {
  const target = state.pointer || state.cursor, out = $("value"), row = state.shown;
  delete out.dataset.value;
  if (!row || row.missing) { out.textContent = ""; return; }
  if (!target) { out.textContent = "Point at a patch to read its value."; return; }
  if (target.outside) { out.textContent = "The model did not see this part of the photo."; return; }
  const index = row.block.first + target.row * row.block.grid[1] + target.column;
  const value = row.values[index], bound = row.bounds[index];
  out.textContent = `patch at row ${target.row}, column ${target.column}: ${withBound(value, bound)}, ${number(value * row.part.keys)} times uniform`;
  Object.assign(out.dataset, { value: String(value), bound: String(bound), row: String(target.row), column: String(target.column) });
}

function drawMasses(row) {
  const { specials, first, grid } = row.block, parts = [];
  let patches = 0;
  for (let i = first; i < first + grid[0] * grid[1]; i++) patches += row.values[i];
  parts.push(["patches", patches]);
  const registers = specials.filter(([, name]) => name.startsWith("register"));
  for (const [index, name] of specials) if (!(registers.length > 1 && name.startsWith("register"))) parts.push([name, row.values[index]]);
  if (registers.length > 1) parts.push([`${registers.length} registers`, registers.reduce((sum, [index]) => sum + row.values[index], 0)]);
  const shown = parts.length > 6 ? [...parts.slice(0, 5), ["other tokens", parts.slice(5).reduce((sum, [, v]) => sum + v, 0)]] : parts;
  $("masses").replaceChildren(...shown.flatMap(([name, mass]) => {
    const label = element("span", name), track = element("span", "", "track"), fill = element("span", "", "fill");
    fill.style.width = `${Math.min(100, 100 * mass)}%`;
    track.append(fill);
    return [label, track, element("span", `${(100 * mass).toFixed(1)} %`, "number")];
  }));
}

// --- words --------------------------------------------------------------------------------------------------------------------

const trim = (value) => String(Number(value.toPrecision(3)));
const number = (value) => String(Number(value.toPrecision(3))); // plain decimals down to a millionth

// As many digits as the quantisation leaves, and one more; the bound rounded up, so that it also covers the rounding of the value.
function withBound(value, bound) {
  const digits = Math.min(10, Math.max(3, Math.ceil(-Math.log10(bound || 1e-9)) + 1)), unit = 10 ** digits;
  return `${value.toFixed(digits)} ± ${(Math.ceil(bound * unit + 0.5) / unit).toFixed(digits)}`;
}

const headsNow = () => { const b = scenes[state.scene].facts.blocks[state.block]; return (b.rows || b.matrix || { heads: 1 }).heads; };

function patchOfQuery() {
  const block = scenes[state.scene].facts.blocks[state.block];
  if (state.query.token === undefined || !block.grid) return null;
  const index = state.query.token - block.first;
  return index < 0 || index >= block.grid[0] * block.grid[1] ? null : { row: Math.floor(index / block.grid[1]), column: index % block.grid[1] };
}

function queryName() {
  const facts = scenes[state.scene].facts;
  if (state.query.row !== undefined) return sentence(facts.named[state.query.row] || "readout");
  const patch = patchOfQuery();
  if (patch) return `Patch at row ${patch.row}, column ${patch.column}`;
  const special = (facts.blocks[state.block].specials || []).find(([index]) => index === state.query.token);
  return sentence(special ? special[1] : `token ${state.query.token}`);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// The file's facts; maps from their bytes to places on the photo, to values and to colours.

const $ = (id) => document.getElementById(id);
const file = JSON.parse($("header").textContent);
const { photos, models, views } = file;
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const palettes = Object.fromEntries(Object.entries(file.palettes).map(([name, text]) => [name, bytesOf(text)]));
const state = {
  view: 0, alpha: 0.6, scale: "own", top: file.uniform_top, colormap: "viridis", smooth: true, frame: true, together: false,
};
const WHOLE = Object.freeze({ top: 0, left: 0, size: 1 }); // the part of a photo that is shown, relative to the photo
const FLAT = 1e-6; // a relative range below this is rounding, not structure
const byPlace = (list) => new Map(list.map((one) => [[one.view, one.model, one.photo].join(), one]));
const maps = byPlace(file.maps), reasons = byPlace(file.reasons);

const mapOf = (model, photo) => maps.get([state.view, model, photo].join());
const reasonOf = (model, photo) => reasons.get([state.view, model, photo].join())?.text ?? "";

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const trim = (value) => {
  const size = Math.abs(value);
  return size && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
};

// --- values -------------------------------------------------------------------------------------------------------------------

function valuesOf(map) {
  if (!map.values) {
    const bytes = bytesOf(map.data), view = new DataView(bytes.buffer), step = (map.high - map.low) / 65534;
    map.values = Float64Array.from({ length: map.grid[0] * map.grid[1] }, (_, i) => {
      const code = view.getUint16(2 * i, true);
      return code === 65535 ? NaN : map.low + step * code;
    });
    map.holes = map.values.some(Number.isNaN);
    map.ranges = {};
  }
  return map.values;
}

// Where places along one axis of the photo (in its pixels) lie among the patches; `own` is -1 where the model did not look.
function along(map, axis, places) {
  const count = map.grid[axis], end = Math.min(map.valid[axis + 2], map.area[axis]), n = places.length;
  const axes = { own: new Int32Array(n), first: new Int32Array(n), second: new Int32Array(n), t: new Float64Array(n) };
  const clip = (v) => Math.min(Math.max(v, 0), count - 1);
  for (let i = 0; i < n; i++) {
    const onInput = places[i] * map.scale[axis] + map.offset[axis];
    if (!(onInput >= map.valid[axis] && onInput <= end)) { axes.own[i] = -1; continue; }
    const at = onInput * (count / map.area[axis]), before = Math.floor(at - 0.5);
    axes.own[i] = clip(Math.floor(at));
    axes.first[i] = clip(before);
    axes.second[i] = clip(before + 1);
    axes.t[i] = at - 0.5 - before;
  }
  return axes;
}

// One value; patches without one (NaN) stay within their own pixels.
function valueAt(map, down, across, y, x) {
  const values = valuesOf(map), columns = map.grid[1];
  if (down.own[y] < 0 || across.own[x] < 0) return NaN;
  const own = values[down.own[y] * columns + across.own[x]];
  if (!state.smooth || own !== own) return own;
  const a = down.first[y] * columns, b = down.second[y] * columns, t = down.t[y], u = across.t[x];
  const taps = [[a + across.first[x], (1 - t) * (1 - u)], [a + across.second[x], (1 - t) * u], [b + across.first[x], t * (1 - u)], [b + across.second[x], t * u]];
  let sum = 0, known = 0;
  for (const [index, weight] of taps) if (values[index] === values[index]) { sum += weight * values[index]; known += weight; }
  return sum / known;
}

// Values at all pairs of places: `down` by `across`.
function valuesAt(map, down, across) {
  const values = valuesOf(map), columns = map.grid[1], height = down.own.length, width = across.own.length;
  const out = new Float64Array(height * width), line = new Float64Array(columns);
  for (let y = 0; y < height; y++) {
    const base = y * width;
    if (down.own[y] < 0) { out.fill(NaN, base, base + width); continue; }
    if (map.holes) {
      for (let x = 0; x < width; x++) out[base + x] = valueAt(map, down, across, y, x);
      continue;
    }
    const own = down.own[y] * columns, a = down.first[y] * columns, b = down.second[y] * columns, t = down.t[y];
    for (let c = 0; c < columns; c++) line[c] = state.smooth ? values[a + c] * (1 - t) + values[b + c] * t : values[own + c];
    for (let x = 0; x < width; x++) {
      const patch = across.own[x], u = across.t[x];
      out[base + x] = patch < 0 ? NaN : state.smooth ? line[across.first[x]] * (1 - u) + line[across.second[x]] * u : line[patch];
    }
  }
  return out;
}

// --- ranges -------------------------------------------------------------------------------------------------------------------

// The pixels of the whole photo beside patch centres and edges and at the ends of what the model saw. Between them values go one way only,
// so the lowest and the highest value of all pixels are among these.
function tellingPixels(map, photo, axis) {
  const count = axis ? photo.width : photo.height, found = new Set();
  const add = (onInput) => {
    const pixel = Math.floor((onInput - map.offset[axis]) / map.scale[axis] - 0.5);
    for (const i of [pixel - 1, pixel, pixel + 1, pixel + 2]) if (i >= 0 && i < count) found.add(i);
  };
  for (let half = 0; half <= 2 * map.grid[axis]; half++) add(half / 2 * map.area[axis] / map.grid[axis]);
  add(map.valid[axis]);
  add(Math.min(map.valid[axis + 2], map.area[axis]));
  found.add(0).add(count - 1);
  return Float64Array.from([...found].sort((p, q) => p - q), (i) => i + 0.5);
}

// The lowest and the highest value of a map over the whole photo, however much of it is shown.
function rangeOf(map, photo) {
  valuesOf(map);
  const key = String(state.smooth);
  if (!map.ranges[key]) {
    let low = Infinity, high = -Infinity;
    for (const v of valuesAt(map, ...[0, 1].map((axis) => along(map, axis, tellingPixels(map, photo, axis))))) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    map.ranges[key] = low <= high ? [low, high] : [0, 0];
  }
  return map.ranges[key];
}

const spread = ([low, high]) => (high - low > FLAT * Math.max(Math.abs(low), Math.abs(high)) ? [low, high] : [low, low]);

// The values that get the first and the last colour, and on which scale that is.
function colorRange(map, photo, number) {
  if (state.scale === "uniform" && map.uniform) return { ends: [0, state.top * map.uniform], scale: "uniform" };
  if (state.scale === "row") {
    const ranges = models.map((_, m) => mapOf(m, number)).filter(Boolean).map((one) => rangeOf(one, photo));
    const ends = spread([Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))]);
    if (ends[1] > ends[0]) return { ends, scale: "row" };
  }
  return { ends: spread(rangeOf(map, photo)), scale: "own" };
}

// --- colours ------------------------------------------------------------------------------------------------------------------

// The map blended over a picture of the part of the photo that `look` says.
function painted(map, photo, bare, look, ends) {
  const { width, height } = bare, places = (n, size, start) => Float64Array.from({ length: n }, (_, i) => (start + ((i + 0.5) / n) * look.size) * size);
  const down = along(map, 0, places(height, photo.height, look.top)), across = along(map, 1, places(width, photo.width, look.left));
  const values = valuesAt(map, down, across), table = palettes[state.colormap];
  const picture = new ImageData(new Uint8ClampedArray(bare.data), width, height), data = picture.data;
  const opacity = Math.round(state.alpha * 255) / 255, [low, high] = ends, factor = high > low ? 255 / (high - low) : 0;
  for (let i = 0; opacity > 0 && i < values.length; i++) {
    const v = values[i];
    if (v !== v) continue;
    const level = Math.min(255, Math.max(0, Math.floor((v - low) * factor + 0.5))), at = 4 * i, color = 3 * level;
    for (let k = 0; k < 3; k++) data[at + k] = data[at + k] * (1 - opacity) + table[color + k] * opacity;
  }
  return picture;
}

// What the viewer and the report share: the file's facts, and maps from values over patches to pixels of the photo and to colours.

const $ = (id) => document.getElementById(id);
const file = JSON.parse($("header").textContent);
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const palettes = Object.fromEntries(Object.entries(file.palettes).map(([name, text]) => [name, bytesOf(text)]));
const FLAT = 1e-6; // a relative range below this is rounding, not structure

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

// Where places along one axis of the photo (in its pixels) are among `count` patches; `own` is -1 where the model did not look.
// `where` has the scale, offset and valid part of the model's input, and how patches lie on it: the area that their cells cover, where the first
// cell starts, and how far kernels reach beyond their cells.
function along(where, axis, count, places) {
  const start = where.start[axis], reach = where.reach[axis], n = places.length;
  const begin = Math.max(where.valid[axis], start - reach), end = Math.min(where.valid[axis + 2], start + where.area[axis] + reach);
  const axes = { own: new Int32Array(n), first: new Int32Array(n), second: new Int32Array(n), t: new Float64Array(n) };
  const clip = (v) => Math.min(Math.max(v, 0), count - 1);
  for (let i = 0; i < n; i++) {
    const onInput = places[i] * where.scale[axis] + where.offset[axis];
    if (!(onInput >= begin && onInput <= end)) { axes.own[i] = -1; continue; }
    const at = (onInput - start) * (count / where.area[axis]), before = Math.floor(at - 0.5);
    axes.own[i] = clip(Math.floor(at));
    axes.first[i] = clip(before);
    axes.second[i] = clip(before + 1);
    axes.t[i] = at - 0.5 - before;
  }
  return axes;
}

// One value; patches without one (NaN) stay within their own pixels.
function valueAt(values, columns, down, across, y, x) {
  if (down.own[y] < 0 || across.own[x] < 0) return NaN;
  const own = values[down.own[y] * columns + across.own[x]];
  if (!state.smooth || own !== own) return own;
  const a = down.first[y] * columns, b = down.second[y] * columns, t = down.t[y], u = across.t[x];
  const taps = [[a + across.first[x], (1 - t) * (1 - u)], [a + across.second[x], (1 - t) * u], [b + across.first[x], t * (1 - u)], [b + across.second[x], t * u]];
  let sum = 0, known = 0;
  for (const [index, weight] of taps) if (values[index] === values[index]) { sum += weight * values[index]; known += weight; }
  return sum / known;
}

// Values at all pairs of places, `down` by `across`, written to `out`; `holes` says whether some patches have no value.
function valuesAt(values, columns, down, across, out, holes = false) {
  const height = down.own.length, width = across.own.length, line = new Float64Array(columns);
  for (let y = 0; y < height; y++) {
    const base = y * width;
    if (down.own[y] < 0) { out.fill(NaN, base, base + width); continue; }
    if (holes) {
      for (let x = 0; x < width; x++) out[base + x] = valueAt(values, columns, down, across, y, x);
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

// The lowest and the highest value; places that the model did not see (NaN) do not count.
function endsOf(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : [0, 0];
}

const isFlat = ([low, high]) => !(high - low > FLAT * Math.max(Math.abs(low), Math.abs(high)));
const spread = (ends) => (isFlat(ends) ? [ends[0], ends[0]] : ends);

// --- the look, the same as in Python --------------------------------------------------------------------------------------------

const STEEPNESS = 1.6, FADE = 0.4, UNSEEN = 222, PAPER = 240;

// The way from values to the 256 colours. Opacity begins at `floor`: the median, 1/N on the logarithmic scale, else the lowest value.
function colorScale([low, high], middle = low, log = false) {
  return { low, high, log, floor: log ? low : Math.min(Math.max(middle, low), (low + high) / 2) };
}

function opacities({ low, high, floor }) {
  const alpha = Math.round(state.alpha * 255) / 255;
  if (!state.weighted) return new Float64Array(256).fill(alpha);
  if (!(high > low)) return new Float64Array(256);
  const begin = (floor - low) / (high - low);
  const rise = (i) => STEEPNESS * (i / 255 - begin) / (1 - begin);
  return Float64Array.from({ length: 256 }, (_, i) => Math.round(alpha * Math.min(1, Math.max(0, rise(i))) * 255) / 255);
}

// The 1st, 50th and 99th percentile of what the model saw.
function percentilesOf(values) {
  const known = Float64Array.from(values.filter((v) => v === v)).sort();
  if (!known.length) return [0, 0, 0];
  return [0.01, 0.5, 0.99].map((share) => {
    const place = share * (known.length - 1), i = Math.floor(place);
    return known[i] + (known[Math.min(i + 1, known.length - 1)] - known[i]) * (place - i);
  });
}

// Values in colours over a picture of as many pixels; what the model did not see is faded.
function blended(bare, values, scale) {
  const picture = new ImageData(new Uint8ClampedArray(bare.data), bare.width, bare.height), data = picture.data;
  const { low, high, log } = scale, table = palettes[state.colormap], weights = opacities(scale);
  const factor = high > low ? 255 / (log ? Math.log(high / low) : high - low) : 0;
  for (let i = 0; i < values.length; i++) {
    const v = values[i], at = 4 * i;
    if (v !== v) {
      for (let k = 0; k < 3; k++) data[at + k] = data[at + k] * (1 - FADE) + UNSEEN * FADE;
      continue;
    }
    const above = log ? Math.log(Math.max(v, low) / low) : v - low;
    const level = Math.min(255, Math.max(0, Math.floor(above * factor + 0.5))), opacity = weights[level], color = 3 * level;
    if (opacity > 0) for (let k = 0; k < 3; k++) data[at + k] = data[at + k] * (1 - opacity) + table[color + k] * opacity;
  }
  return picture;
}

// The colours as they appear over white paper, [red, green, blue] of each level.
function shownColors(scale) {
  const table = palettes[state.colormap], weights = opacities(scale);
  return Array.from(weights, (opacity, i) => [0, 1, 2].map((k) => Math.round(table[3 * i + k] * opacity + PAPER * (1 - opacity))));
}

function drawPalette(scale = colorScale([0, 1])) {
  const small = $("colors").getContext("2d"), picture = small.createImageData(256, 1);
  shownColors(scale).forEach((color, i) => picture.data.set([...color, 255], 4 * i));
  small.putImageData(picture, 0, 0);
}

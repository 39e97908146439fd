// The report's maps, from their bytes to values, ranges and pictures.

const { photos, models, views } = file;
const state = {
  view: 0, alpha: 0.6, scale: "own", top: file.uniform_top, colormap: "viridis", smooth: true, frame: true, together: false,
};
const WHOLE = Object.freeze({ top: 0, left: 0, size: 1 }); // the part of a photo that is shown, relative to the photo
const byPlace = (list) => new Map(list.map((one) => [[one.view, one.model, one.photo].join(), one]));
const maps = byPlace(file.maps), reasons = byPlace(file.reasons);

const mapOf = (model, photo) => maps.get([state.view, model, photo].join());
const reasonOf = (model, photo) => reasons.get([state.view, model, photo].join())?.text ?? "";

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

const mapAlong = (map, axis, places) => along(map, axis, map.grid[axis], places);

// Values at all pairs of places, `down` by `across`.
function mapValues(map, down, across) {
  const values = valuesOf(map);
  return valuesAt(values, map.grid[1], down, across, new Float64Array(down.own.length * across.own.length), map.holes);
}

// --- ranges -------------------------------------------------------------------------------------------------------------------

// The pixels of the whole photo next to patch centres and edges and at the ends of what the model saw. Between them values only rise or only
// fall, so the lowest and the highest value of all pixels are among these.
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
  map.ranges[key] ??= endsOf(mapValues(map, ...[0, 1].map((axis) => mapAlong(map, axis, tellingPixels(map, photo, axis)))));
  return map.ranges[key];
}

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
  const down = mapAlong(map, 0, places(height, photo.height, look.top)), across = mapAlong(map, 1, places(width, photo.width, look.left));
  return blended(bare, mapValues(map, down, across), ends);
}

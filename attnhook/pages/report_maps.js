// The report's maps, from their bytes to values, ranges and pictures.

const { photos, models, views } = file;
const state = {
  view: 0, alpha: 0.85, weighted: true, scale: "uniform", top: file.uniform_top, colormap: "plasma", smooth: true, frame: true, together: false,
  outline: true, peak: true,
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

const SAMPLES = 160; // along each edge of the photo

// The 1st, 50th and 99th percentile of a map over the whole photo, however much of it is shown.
function sharesOf(map, photo) {
  valuesOf(map);
  const key = String(state.smooth), places = (size) => Float64Array.from({ length: SAMPLES }, (_, i) => ((i + 0.5) / SAMPLES) * size);
  map.ranges[key] ??= percentilesOf(mapValues(map, mapAlong(map, 0, places(photo.height)), mapAlong(map, 1, places(photo.width))));
  return map.ranges[key];
}

// The colours of a map, where its opacity begins, and the name of its scale.
function colorsOf(map, photo, number) {
  if (state.scale === "uniform" && map.uniform) return { ...colorScale([map.uniform, state.top * map.uniform], 0, true), name: "uniform" };
  if (state.scale === "row") {
    const shares = models.map((_, m) => mapOf(m, number)).filter(Boolean).map((one) => sharesOf(one, photo));
    const ends = spread([Math.min(...shares.map((s) => s[0])), Math.max(...shares.map((s) => s[2]))]);
    const middle = shares.reduce((sum, s) => sum + s[1], 0) / shares.length;
    if (ends[1] > ends[0]) return { ...colorScale(ends, middle), name: "row" };
  }
  const [first, middle, last] = sharesOf(map, photo);
  return { ...colorScale(spread([first, last]), middle), name: "own" };
}

// --- colours ------------------------------------------------------------------------------------------------------------------

// The map blended over a picture of the part of the photo that `look` says.
function painted(map, photo, bare, look, scale) {
  const { width, height } = bare, places = (n, size, start) => Float64Array.from({ length: n }, (_, i) => (start + ((i + 0.5) / n) * look.size) * size);
  const down = mapAlong(map, 0, places(height, photo.height, look.top)), across = mapAlong(map, 1, places(width, photo.width, look.left));
  return blended(bare, mapValues(map, down, across), scale);
}

// The viewer's scenes and their bytes, and the row of attention that is shown.

const READOUT = 0; // the first of the rows that every block has
const state = {
  scene: 0, block: 0, head: -1, alpha: 0.85, weighted: true, scale: "robust", top: 16, source: "raw",
  query: { row: READOUT }, smooth: true, colormap: "plasma", cursor: null, pointer: null, shown: null,
};
const scenes = file.scenes.map((facts) => ({ facts, bytes: null, photo: null, places: null }));
const canvas = $("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });

// --- reading the file ---------------------------------------------------------------------------------------------------------

function fromLetters(text, length) {
  const digits = new Uint8Array(128);
  for (let i = 0; i < 85; i++) digits[file.letters.charCodeAt(i)] = i;
  const bytes = new Uint8Array((text.length / 5) * 4);
  const view = new DataView(bytes.buffer);
  for (let i = 0, at = 0; i < text.length; i += 5, at += 4) {
    let word = 0;
    for (let k = 0; k < 5; k++) word = word * 85 + digits[text.charCodeAt(i + k)];
    view.setUint32(at, word);
  }
  return bytes.subarray(0, length);
}

async function open(number) {
  const scene = scenes[number];
  if (scene.bytes) return;
  const packed = fromLetters($(`payload-${number}`).textContent, scene.facts.length);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  const image = new Image();
  image.src = scene.facts.photo;
  await image.decode();
  const [height, width] = scene.facts.size;
  const pad = document.createElement("canvas");
  pad.width = width; pad.height = height;
  const draw = pad.getContext("2d", { willReadFrequently: true });
  draw.drawImage(image, 0, 0);
  scene.photo = draw.getImageData(0, 0, width, height);
  scene.values = new Float32Array(width * height);
  scene.places = new Map();
  scene.bytes = bytes;
}

// Values of one row of one head, and how far the true ones may be from them.
function readRow(bytes, part, head, query) {
  const { bits, keys, queries } = part;
  const top = bits === 8 ? 255 : 65535;
  const row = head * queries + query;
  const codes = bits === 8
    ? new Uint8Array(bytes, part.codes + row * keys, keys)
    : new Uint16Array(bytes.slice(part.codes + row * keys * 2, part.codes + (row + 1) * keys * 2));
  const maximum = new DataView(bytes).getFloat32(part.maxima + row * 4, true);
  const values = new Float64Array(keys), bounds = new Float64Array(keys);
  for (let i = 0; i < keys; i++) {
    values[i] = maximum * (codes[i] / top) ** 2;
    bounds[i] = maximum * (codes[i] + 0.25) / top ** 2;
  }
  return { values, bounds };
}

function averaged(bytes, part, query) {
  const sum = { values: new Float64Array(part.keys), bounds: new Float64Array(part.keys) };
  for (let head = 0; head < part.heads; head++) {
    const one = readRow(bytes, part, head, query);
    for (let i = 0; i < part.keys; i++) {
      sum.values[i] += one.values[i] / part.heads;
      sum.bounds[i] += one.bounds[i] / part.heads;
    }
  }
  return sum;
}

// What to show: values over all tokens, or a sentence that says why the file does not have them.
function currentRow() {
  const scene = scenes[state.scene], block = scene.facts.blocks[state.block];
  if (!block.grid) return { missing: `The keys of ${block.name} are not on a patch grid (${block.refused}).` };
  const rollout = state.source === "rollout";
  const asksRow = state.query.row !== undefined;
  const part = asksRow ? block[rollout ? "rollout_rows" : "rows"] : block[rollout ? "rollout_matrix" : "matrix"];
  if (!part) return { missing: missingText(scene, block, rollout, asksRow) };
  const query = asksRow ? state.query.row : state.query.token;
  if (query >= part.queries) return { missing: `${block.name} has no such query.` };
  if (state.head >= 0 && state.head >= part.heads && !rollout) return { missing: `For single tokens of ${block.name}, this file has only the mean over heads. Choose the mean, or press Esc for the readout.` };
  const row = rollout || state.head < 0 ? averaged(scene.bytes, part, query) : readRow(scene.bytes, part, state.head, query);
  return { ...row, block, part };
}

function missingText(scene, block, rollout, asksRow) {
  if (asksRow) return `${block.name} has no row of the model's readout${rollout ? " under rollout" : ""}. Click a patch, or choose the last block.`;
  const stored = scene.facts.blocks.filter((one) => one[rollout ? "rollout_matrix" : "matrix"]);
  if (!stored.length) return "This file has only the readout's attention, not where single patches look.";
  return `This file has the rows of single tokens only for block${stored.length > 1 ? "s" : ""} ${ranges(stored)}. Go there, or press Esc for the readout.`;
}

// Numbers of blocks, counted from 1: "1 to 4, 7".
function ranges(blocks) {
  const runs = [];
  for (const { number: [n] } of blocks) {
    const last = runs[runs.length - 1];
    if (last && last[1] === n - 1) last[1] = n; else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a} to ${b}`)).join(", ");
}

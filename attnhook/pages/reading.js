// The viewer's scenes and their bytes, and the row of attention that is shown.

const READOUT = 0; // the first of the rows that every block has
const state = {
  scene: 0, block: 0, head: -1, alpha: 0.85, weighted: true, scale: "robust", top: 16, source: "raw",
  query: { row: READOUT }, smooth: true, colormap: "plasma", mask: false, keep: 0.6, cursor: null, pointer: null, shown: null,
};
const scenes = file.scenes.map((facts) => ({ facts, bytes: null, photo: null, places: null }));
const factsNow = () => scenes[state.scene].facts;
const blockNow = () => factsNow().blocks[state.block];
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
  for (const { matrix } of scene.facts.blocks) if (matrix) addGuesses(bytes, matrix);
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

// A matrix is stored as differences from a guess: the mean of the row before and of the row of the patch above.
function addGuesses(bytes, { heads, queries, keys, columns, codes: start }) {
  const length = queries * keys, above = columns * keys;
  for (let head = 0; head < heads; head++) {
    const codes = new Uint8Array(bytes, start + head * length, length);
    for (let i = keys; i < length; i++) codes[i] += (codes[i - keys] + (i < above ? 0 : codes[i - above])) >> 1;
  }
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

// A token's row of rollout: its unit row times W = (I + A) / 2 of each block down to the first, A the mean over heads. With r off by at most e, and A
// by at most E, r A is off by at most e A + (r + e) E.
function rolledRow(bytes, blocks, query) {
  const shares = Float64Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
  const errors = Float64Array.from({ length: 256 }, (_, code) => (code + 0.25) / 255 ** 2);
  const { keys } = blocks[0].matrix, view = new DataView(bytes);
  let values = new Float64Array(keys), bounds = new Float64Array(keys);
  values[query] = 1;
  for (const { matrix: { heads, codes: start, maxima } } of [...blocks].reverse()) {
    const nextValues = values.map((v) => v / 2), nextBounds = bounds.map((v) => v / 2);
    for (let row = 0; row < heads * keys; row++) {
      const scale = view.getFloat32(maxima + row * 4, true) / (2 * heads), value = scale * values[row % keys], off = scale * bounds[row % keys];
      if (value + off === 0) continue;
      const codes = new Uint8Array(bytes, start + row * keys, keys);
      for (let j = 0; j < keys; j++) {
        const code = codes[j];
        nextValues[j] += value * shares[code];
        nextBounds[j] += off * shares[code] + (value + off) * errors[code];
      }
    }
    [values, bounds] = [nextValues, nextBounds];
  }
  return { values, bounds };
}

// The blocks that a patch's rollout passes through; or none, if the file does not have all of their matrices.
function blocksOfRollout() {
  const blocks = factsNow().blocks.slice(0, state.block + 1);
  return blocks.every((block) => block.matrix && block.adds_up) ? blocks : null;
}

// What to show: values over all tokens, of which head (-1: the mean); or a sentence that says why the file does not have them.
function currentRow() {
  const { bytes, facts } = scenes[state.scene], block = blockNow(), { source, query } = state;
  if (!block.grid) return { missing: `This file has no map of ${blockName(block)}: it is not known where its keys lie in the photo (${block.refused}).` };
  const asksRow = query.row !== undefined, rollout = source === "rollout";
  if (rollout && !asksRow) {
    const blocks = blocksOfRollout();
    if (!blocks) return { missing: missingText(facts, block) };
    return { ...rolledRow(bytes, blocks, query.token), block, part: block.matrix, head: -1, fused: true };
  }
  const part = source === "received" ? block.received : !asksRow ? block.matrix : rollout ? block.rollout_rows : block.rows;
  const index = source === "received" ? 0 : asksRow ? query.row : query.token;
  if (!part || index >= part.queries) return { missing: missingText(facts, block) };
  const fused = part.heads === 1, head = fused ? -1 : state.head;
  const row = head < 0 ? averaged(bytes, part, index) : readRow(bytes, part, head, index);
  return { ...row, block, part, head, fused };
}

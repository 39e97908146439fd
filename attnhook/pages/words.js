// The texts next to the viewer's picture.

const number = (value) => String(Number(value.toPrecision(3))); // plain decimals down to a millionth
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const touch = matchMedia("(hover: none)").matches; // a phone: no pointer that hovers, no keys
const homeward = ({ named }) => (!named.length ? "choose received attention" : touch ? "go back to the readout" : "press Esc for the readout");
const SOURCES = { raw: "raw attention", rollout: "rollout up to here", received: "received attention" };

const blockName = ({ pooling, number: [n, count] }) => (pooling ? "attention pooling" : `block ${n} of ${count}`);

// "blocks 1 to 4, 7 of 12 and the attention pooling"
function blockNames(blocks) {
  const runs = [], numbers = blocks.filter((block) => !block.pooling).map((block) => block.number);
  for (const [n] of numbers) {
    const last = runs[runs.length - 1];
    if (last && last[1] === n - 1) last[1] = n; else runs.push([n, n]);
  }
  const shown = runs.map(([a, b]) => (a === b ? `${a}` : `${a} to ${b}`)).join(", ");
  const words = numbers.length ? [`block${numbers.length > 1 ? "s" : ""} ${shown} of ${numbers[0][1]}`] : [];
  return [...words, ...(numbers.length < blocks.length ? ["the attention pooling"] : [])].join(" and ");
}

function missingText(facts, block) {
  const name = sentence(blockName(block)), having = (part) => facts.blocks.filter((one) => one[part]), matrices = having("matrix");
  if (state.source === "received") return `${name} has no received attention in this file, because only some rows were captured.`;
  if (state.query.row !== undefined) {
    const stored = having(state.source === "rollout" ? "rollout_rows" : "rows");
    const advice = stored.length ? `Choose ${blockNames(stored)}` : "Choose another map";
    return `${name} has no row of the model's readout${state.source === "rollout" ? " under rollout" : ""}. ${advice}${matrices.length ? `, or ${touch ? "tap" : "click"} a patch` : ""}.`;
  }
  if (!matrices.length) return "This file has only the readout's attention, not where single patches look.";
  if (state.source === "rollout") return `Rollout from a patch needs the matrices of all blocks up to this one; this file has those of ${blockNames(matrices)}. Choose raw attention, or ${homeward(facts)}.`;
  return `This file has the rows of single tokens only for ${blockNames(matrices)}. Choose one of these, or ${homeward(facts)}.`;
}

function drawTexts() {
  const facts = factsNow(), block = blockNow(), row = state.shown, { heads } = block, received = state.source === "received";
  const fused = !row.missing && row.fused, single = !fused && state.head >= 0;
  const head = heads === undefined ? "" : single ? `, head ${state.head}` : (heads > 1 ? `, mean of ${heads} heads` : ", 1 head");
  $("query-text").textContent = `${received ? "All queries" : queryName()}, ${blockName(block)}${head}, ${SOURCES[state.source]}`;
  $("module").textContent = `${block.name}${fused && heads > 1 && state.source === "raw" ? " (this file has only the mean over heads of its matrix)" : ""}`;
  $("block-text").textContent = block.pooling ? "pooling" : block.number.join(" of ");
  $("head-text").textContent = single ? `${state.head} of ${heads - 1}` : "mean";
  $("alpha-text").textContent = `${Math.round(state.alpha * 100)} %`;
  $("keep-text").textContent = `${Math.round(state.keep * 100)} %`;
  $("top-text").textContent = `${number(state.top)} × 1/N`;
  for (const id of ["alpha", "scale", "colormap", "weighted", "smooth"]) $(id).disabled = state.mask;
  $("top").disabled = state.mask || state.scale !== "uniform";
  $("keep").disabled = !state.mask;
  $("colors").style.visibility = state.mask ? "hidden" : "";
  $("head").disabled = fused || heads < 2;
  $("save").disabled = Boolean(row.missing);
  const patch = patchOfQuery(), option = $("query").querySelector('[value="patch"]');
  option.hidden = !patch;
  option.textContent = patch ? `row ${patch.row}, column ${patch.column}` : "";
  $("query").disabled = received;
  $("query").value = received ? "all" : state.query.row !== undefined ? `row ${state.query.row}` : patch ? "patch" : `token ${state.query.token}`;
  $("back").hidden = received || state.query.row === READOUT;
  $("back").textContent = facts.named.length ? "Back to the readout" : "Back to received attention";
}

function drawValue() {
  const target = state.pointer || state.cursor, out = $("value"), row = state.shown;
  delete out.dataset.value;
  if (!row || row.missing) { out.textContent = ""; return; }
  if (!target) { out.textContent = touch ? "Tap a patch to read its value." : "Point at a patch to read its value."; return; }
  if (target.outside) { out.textContent = "The model did not see this part of the photo."; return; }
  const index = row.block.first + target.row * row.block.grid[1] + target.column;
  const value = row.values[index], bound = row.bounds[index];
  out.textContent = `patch at row ${target.row}, column ${target.column}: ${withBound(value, bound)}, ${number(value * row.part.keys)} times uniform`;
  Object.assign(out.dataset, { value: String(value), bound: String(bound), row: String(target.row), column: String(target.column) });
}

// As many digits as the quantisation leaves, and one more; the bound rounded up, so that it also covers the rounding of the value.
function withBound(value, bound) {
  const digits = Math.min(10, Math.max(3, Math.ceil(-Math.log10(bound || 1e-9)) + 1)), unit = 10 ** digits;
  return `${value.toFixed(digits)} ± ${(Math.ceil(bound * unit + 0.5) / unit).toFixed(digits)}`;
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

function patchOfQuery() {
  const block = blockNow();
  if (state.source === "received" || state.query.token === undefined || !block.grid) return null;
  const index = state.query.token - block.first;
  return index < 0 || index >= block.grid[0] * block.grid[1] ? null : { row: Math.floor(index / block.grid[1]), column: index % block.grid[1] };
}

function queryName() {
  if (state.query.row !== undefined) return sentence(factsNow().named[state.query.row] || "readout");
  const patch = patchOfQuery();
  if (patch) return `Patch at row ${patch.row}, column ${patch.column}`;
  const special = (blockNow().specials || []).find(([index]) => index === state.query.token);
  return sentence(special ? special[1] : `token ${state.query.token}`);
}

// What a picture's file is called: "cat-block-12-head-3-rollout.png".
function pictureName(facts, block) {
  const { head } = state.shown, patch = patchOfQuery();
  const parts = [facts.name.replace(/\.[^.]*$/, ""), block.pooling ? "pooling" : `block-${block.number[0]}`, head < 0 ? "" : `head-${head}`,
    patch ? `patch-${patch.row}-${patch.column}` : "", state.source === "raw" ? "" : state.source, state.mask ? "mask" : ""];
  return `${parts.filter(Boolean).join("-").replace(/[^\p{L}\p{N}._]+/gu, "-")}.png`;
}

function about(facts) {
  const sized = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);
  const having = (name) => facts.blocks.filter((block) => block[name]);
  const rows = having("rows"), matrices = having("matrix"), whole = matrices.filter(({ matrix, heads }) => matrix.heads === heads);
  const any = facts.blocks.find((block) => block.grid), heads = whole.length === matrices.length ? "every head" : `mean over heads${whole.length ? `; every head of ${blockNames(whole)}` : ""}`;
  const lines = [
    ["size", `${sized(Number(file.bytes))} in all; this photo ${sized(facts.photo_bytes)}, its attention ${sized(facts.length)}, compressed`],
    ["photo", `${facts.name}, ${facts.original[1]} × ${facts.original[0]} pixels${facts.size[0] === facts.original[0] ? "" : `, stored at ${facts.size[1]} × ${facts.size[0]}`}, as JPEG`],
    ["model", file.model],
    ["tokens", `${any.grid[0]} × ${any.grid[1]} patches${any.specials.length ? `, ${any.specials.map(([, name]) => name).join(", ")}` : ""}`],
    ["rows", rows.length ? `${facts.named.join(", ") || "readout"} of ${blockNames(rows)}, every head, ${file.bits.rows} bits` : "none"],
    ["matrices", matrices.length ? `${blockNames(matrices)}, ${heads}, ${file.bits.matrices} bits` : "none"],
    ["received", having("received").length ? `${blockNames(having("received"))}, every head, ${file.bits.rows} bits` : "none"],
    ["precision", "values are rounded, and the true value is within ± of each value shown (stored: square roots relative to the largest value of the row)"],
    ["made", `${file.made}, attnhook ${file.version}`],
  ];
  $("about").replaceChildren(...lines.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

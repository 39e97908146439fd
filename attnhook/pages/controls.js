// What people move, click and type.

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function ask(query) {
  if (state.source === "received") chooseSource("raw");
  state.query = query;
  redraw();
}

function chooseSource(name) {
  state.source = name;
  document.querySelector(`[name="source"][value="${name}"]`).checked = true;
}

// Where the patch under the pointer looks.
function askPatch(patch) {
  const block = blockNow();
  if (!patch || patch.outside || !block.grid) return;
  ask({ token: block.first + patch.row * block.grid[1] + patch.column });
}

const canAsk = () => factsNow().blocks.some((block) => block.matrix) && (state.source !== "received" || Boolean(blockNow().matrix));
const follows = () => $("follow").checked && !$("follow").disabled && state.source !== "received";

// Where no row is what the model reads, to received attention.
function askReadout() {
  state.cursor = null;
  if (!factsNow().named.length) chooseSource("received");
  state.query = { row: READOUT };
  redraw();
}

function step(id, by) {
  const slider = $(id);
  if (slider.disabled) return;
  slider.value = String(Number(slider.value) + by);
  slider.dispatchEvent(new Event("input"));
}

let turn = 0; // of the photo that was asked for last: an earlier one that takes longer is not shown over it
async function show(number) {
  const own = ++turn;
  $("stage").setAttribute("aria-busy", "true");
  try { await open(number); } finally { if (own === turn) $("stage").removeAttribute("aria-busy"); }
  if (own !== turn) return;
  state.scene = number;
  const facts = scenes[number].facts;
  [canvas.height, canvas.width] = facts.size;
  state.block = Math.min(state.block, facts.blocks.length - 1);
  state.cursor = state.pointer = null;
  fillQueries(facts);
  $("photo").value = String(number);
  $("before").disabled = number === 0;
  $("after").disabled = number === scenes.length - 1;
  $("block").max = String(facts.blocks.length - 1);
  $("block").value = String(state.block);
  limitHeads();
  allowSources(facts);
  if (state.query.token !== undefined || !facts.named[state.query.row]) state.query = { row: READOUT };
  $("follow").disabled = !facts.blocks.some((block) => block.matrix);
  $("keys-short").textContent = !$("follow").disabled ? `${touch ? "Tap" : "Click"} a patch to see where it looks.${touch ? "" : " Esc goes back."}`
    : facts.named.length ? "This file has only the readout's attention, not where single patches look."
    : "This model has no readout row: its map is what each position receives from all queries.";
  about(facts);
  resetView();
  draw();
}

// The maps that this photo has; it begins with the readout's, or with received attention where there is none.
function allowSources({ blocks, no_rollout: refused, named }) {
  const has = {
    raw: blocks.some((block) => block.rows || block.matrix), rollout: !refused, received: blocks.some((block) => block.received),
  };
  for (const input of document.querySelectorAll('[name="source"]')) {
    input.disabled = !has[input.value];
    input.parentElement.classList.toggle("off", input.disabled);
  }
  $("sources").title = refused ?? "";
  if (has[state.source] && (state.source !== "raw" || named.length)) return chooseSource(state.source);
  chooseSource(has.raw && (named.length || !has.received) ? "raw" : "received");
}

function fillQueries(facts) {
  const select = $("query"), options = facts.named.map((name, i) => new Option(`${name}${facts.named.length === 1 ? " (readout)" : ""}`, `row ${i}`));
  const withMatrix = facts.blocks.find((block) => block.matrix);
  for (const [index, name] of withMatrix ? withMatrix.specials : []) {
    if (!(facts.named.length === 1 && name === facts.named[0])) options.push(new Option(name, `token ${index}`));
  }
  for (const [name, value] of [["", "patch"], ["all queries", "all"]]) {
    options.push(new Option(name, value));
    options.at(-1).hidden = true;
  }
  select.replaceChildren(...options);
}

// Another grid has other patches.
function chooseBlock(index) {
  const before = String(blockNow().grid);
  state.block = index;
  if (String(blockNow().grid) !== before) state.cursor = state.pointer = null;
  limitHeads();
}

function limitHeads() {
  const heads = blockNow().heads;
  $("head").max = String(heads - 1);
  state.head = Math.min(state.head, heads - 1);
  $("head").value = String(state.head);
}

function connect() {
  $("block").addEventListener("input", (e) => { chooseBlock(Number(e.target.value)); redraw(); });
  $("head").addEventListener("input", (e) => { state.head = Number(e.target.value); redraw(); });
  $("alpha").addEventListener("input", (e) => { state.alpha = Number(e.target.value) / 100; redraw(); });
  $("top").addEventListener("input", (e) => { state.top = 2 ** Number(e.target.value); redraw(); });
  $("scale").addEventListener("change", (e) => { state.scale = e.target.value; redraw(); });
  $("colormap").addEventListener("change", (e) => { state.colormap = e.target.value; redraw(); });
  $("weighted").addEventListener("change", (e) => { state.weighted = e.target.checked; redraw(); });
  $("smooth").addEventListener("change", (e) => { state.smooth = e.target.checked; redraw(); });
  $("mask").addEventListener("change", (e) => { state.mask = e.target.checked; redraw(); });
  $("keep").addEventListener("input", (e) => { state.keep = Number(e.target.value) / 100; redraw(); });
  $("save").addEventListener("click", savePicture);
  $("before").addEventListener("click", () => turnTo(-1));
  $("after").addEventListener("click", () => turnTo(1));
  $("photo").addEventListener("change", (e) => show(Number(e.target.value)).catch(failed));
  $("query").addEventListener("change", (e) => {
    const [kind, index] = e.target.value.split(" ");
    if (index !== undefined) ask(kind === "row" ? { row: Number(index) } : { token: Number(index) });
  });
  for (const input of document.querySelectorAll('[name="source"]')) {
    input.addEventListener("change", (e) => { state.source = e.target.value; redraw(); });
  }
  $("back").addEventListener("click", askReadout);
  const stage = $("stage");
  stage.addEventListener("pointermove", (e) => {
    state.pointer = patchAt(e);
    if (follows()) askPatch(state.pointer);
    else drawValue();
  });
  stage.addEventListener("pointerleave", () => { state.pointer = null; drawValue(); });
  stage.addEventListener("click", (e) => {
    if (dragged) return;
    state.pointer = patchAt(e);
    state.cursor = null;
    if (!canAsk()) { if (state.pointer && !state.pointer.outside) state.cursor = state.pointer; redraw(); return; }
    askPatch(state.pointer);
  });
  stage.addEventListener("keydown", onStageKey);
  document.addEventListener("keydown", onKey);
  connectZoom();
}

function turnTo(by) {
  const number = Number($("photo").value) + by;
  if (number < 0 || number >= scenes.length) return;
  $("photo").value = String(number);
  show(number).catch(failed);
}

function onStageKey(e) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, block = blockNow(), { grid } = block;
  const move = moves[e.key];
  if (move && e.shiftKey) {
    const { stage } = fitted();
    panBy(-move[1] * stage[0] / 8, -move[0] * stage[1] / 8);
    e.preventDefault();
  } else if (move && grid) {
    const at = state.cursor || patchOfQuery() || { row: Math.floor(grid[0] / 2), column: Math.floor(grid[1] / 2) };
    const clip = (v, most) => Math.min(Math.max(v, 0), most - 1);
    state.cursor = { row: clip(at.row + move[0], grid[0]), column: clip(at.column + move[1], grid[1]) };
    state.pointer = null;
    reveal(boxOf(factsNow(), block, state.cursor.row, state.cursor.column));
    if (follows()) askPatch(state.cursor);
    drawMarks();
    drawValue();
    e.preventDefault();
  } else if ((e.key === "Enter" || e.key === " ") && state.cursor) {
    if (canAsk()) askPatch(state.cursor);
    e.preventDefault();
  }
}

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  const toggle = (id) => { const box = $(id); if (!box.disabled) { box.checked = !box.checked; box.dispatchEvent(new Event("change")); } };
  const act = {
    "[": () => step("block", -1), "]": () => step("block", 1), ",": () => step("head", -1), ".": () => step("head", 1),
    "-": () => step("alpha", -10), "+": () => step("alpha", 10), "=": () => step("alpha", 10), s: () => toggle("smooth"), f: () => toggle("follow"),
    o: () => toggle("weighted"), m: () => toggle("mask"), d: () => { if (!$("save").disabled) savePicture(); },
    z: () => zoomBy(STEP), Z: () => zoomBy(1 / STEP), 0: showWhole, p: () => turnTo(-1), n: () => turnTo(1),
    u: () => { const scale = $("scale"); if (scale.disabled) return; scale.selectedIndex = (scale.selectedIndex + 1) % scale.length; scale.dispatchEvent(new Event("change")); },
    r: () => {
      const inputs = [...document.querySelectorAll('[name="source"]:enabled')], at = inputs.findIndex((input) => input.checked);
      chooseSource(inputs[(at + 1) % inputs.length].value);
      redraw();
    },
    Escape: askReadout,
  }[e.key];
  if (act) { act(); e.preventDefault(); }
}

function failed(error) {
  $("notice").textContent = typeof DecompressionStream === "undefined"
    ? "This browser cannot unpack the file: it needs DecompressionStream (every browser since May 2023 has it)."
    : `This file cannot be read: ${error && error.message ? error.message : error}`;
}

function start() {
  $("model").textContent = file.model;
  scenes.forEach((scene, i) => $("photo").append(new Option(scene.facts.name, String(i))));
  $("photos").hidden = scenes.length < 2;
  if (scenes.length === 1) $("model").append(element("span", ` · ${scenes[0].facts.name}`, "quiet"));
  for (const name of Object.keys(palettes)) $("colormap").append(new Option(name, name, false, name === state.colormap));
  state.block = file.scenes[0].blocks.length - 1;
  connect();
  show(0).catch(failed);
}

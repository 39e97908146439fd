// What people move, click and type.

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function ask(query) { state.query = query; redraw(); }

function askPatch(patch) {
  const block = scenes[state.scene].facts.blocks[state.block];
  if (!patch || patch.outside || !block.grid) return;
  ask({ token: block.first + patch.row * block.grid[1] + patch.column });
}

function askReadout() { state.cursor = null; ask({ row: READOUT }); }

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
  $("stage").style.setProperty("--ratio", String(facts.size[1] / facts.size[0]));
  state.block = Math.min(state.block, facts.blocks.length - 1);
  state.cursor = state.pointer = null;
  fillQueries(facts);
  $("block").max = String(facts.blocks.length - 1);
  $("block").value = String(state.block);
  limitHeads();
  for (const input of document.querySelectorAll('[name="source"]')) input.disabled = Boolean(facts.no_rollout);
  $("sources").classList.toggle("off", Boolean(facts.no_rollout));
  $("sources").title = facts.no_rollout ?? "";
  if (facts.no_rollout) state.source = "raw";
  document.querySelector(`[name="source"][value="${state.source}"]`).checked = true;
  if (state.query.token !== undefined || !facts.named[state.query.row]) state.query = { row: READOUT };
  $("follow").disabled = !facts.blocks.some((block) => block.matrix);
  $("keys-short").textContent = $("follow").disabled
    ? "This file has only the readout's attention, not where single patches look."
    : "Click a patch to see where it looks. Esc goes back to the readout.";
  about(facts);
  draw();
}

function fillQueries(facts) {
  const select = $("query"), options = facts.named.map((name, i) => new Option(`${name}${facts.named.length === 1 ? " (readout)" : ""}`, `row ${i}`));
  const withMatrix = facts.blocks.find((block) => block.matrix);
  for (const [index, name] of withMatrix ? withMatrix.specials : []) {
    if (!(facts.named.length === 1 && name === facts.named[0])) options.push(new Option(name, `token ${index}`));
  }
  const patch = new Option("", "patch");
  patch.hidden = true;
  select.replaceChildren(...options, patch);
}

function limitHeads() {
  const heads = headsNow();
  $("head").max = String(heads - 1);
  state.head = Math.min(state.head, heads - 1);
  $("head").value = String(state.head);
}

function about(facts) {
  const sized = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);
  const having = (name) => facts.blocks.filter((block) => block[name]);
  const rows = having("rows"), matrices = having("matrix"), any = facts.blocks.find((block) => block.grid);
  const lines = [
    ["size", `${sized(Number(file.bytes))} in all; this photo ${sized(facts.photo_bytes)}, its attention ${sized(facts.length)} deflated`],
    ["photo", `${facts.name}, ${facts.original[1]} × ${facts.original[0]} pixels${facts.size[0] === facts.original[0] ? "" : `, stored at ${facts.size[1]} × ${facts.size[0]}`}, as JPEG`],
    ["model", file.model],
    ["tokens", `${any.grid[0]} × ${any.grid[1]} patches${any.specials.length ? `, ${any.specials.map(([, name]) => name).join(", ")}` : ""}`],
    ["rows", rows.length ? `${facts.named.join(", ") || "readout"} of blocks ${ranges(rows)}, every head, ${file.bits.rows} bits` : "none"],
    ["matrices", matrices.length ? `blocks ${ranges(matrices)}, ${matrices[0].matrix.heads < headsNow() ? "mean over heads" : "every head"}, ${file.bits.matrices} bits` : "none"],
    ["precision", "values are stored as square roots, relative to the largest of their row; every value shown is within its ± of the true value"],
    ["made", `${file.made}, attnhook ${file.version}`],
  ];
  $("about").replaceChildren(...lines.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

function connect() {
  $("block").addEventListener("input", (e) => { state.block = Number(e.target.value); limitHeads(); redraw(); });
  $("head").addEventListener("input", (e) => { state.head = Number(e.target.value); redraw(); });
  $("alpha").addEventListener("input", (e) => { state.alpha = Number(e.target.value) / 100; redraw(); });
  $("top").addEventListener("input", (e) => { state.top = 2 ** Number(e.target.value); redraw(); });
  $("scale").addEventListener("change", (e) => { state.scale = e.target.value; redraw(); });
  $("colormap").addEventListener("change", (e) => { state.colormap = e.target.value; redraw(); });
  $("weighted").addEventListener("change", (e) => { state.weighted = e.target.checked; redraw(); });
  $("smooth").addEventListener("change", (e) => { state.smooth = e.target.checked; redraw(); });
  $("photo").addEventListener("change", (e) => show(Number(e.target.value)).catch(failed));
  $("query").addEventListener("change", (e) => {
    const [kind, index] = e.target.value.split(" ");
    if (kind !== "patch") ask(kind === "row" ? { row: Number(index) } : { token: Number(index) });
  });
  for (const input of document.querySelectorAll('[name="source"]')) {
    input.addEventListener("change", (e) => { state.source = e.target.value; redraw(); });
  }
  $("back").addEventListener("click", askReadout);
  const stage = $("stage");
  stage.addEventListener("pointermove", (e) => {
    state.pointer = patchAt(e);
    if ($("follow").checked && !$("follow").disabled) askPatch(state.pointer);
    else drawValue();
  });
  stage.addEventListener("pointerleave", () => { state.pointer = null; drawValue(); });
  stage.addEventListener("click", (e) => {
    state.pointer = patchAt(e);
    state.cursor = null;
    if ($("follow").disabled) { if (state.pointer && !state.pointer.outside) state.cursor = state.pointer; redraw(); return; }
    askPatch(state.pointer);
  });
  stage.addEventListener("keydown", onStageKey);
  document.addEventListener("keydown", onKey);
}

function onStageKey(e) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, grid = gridNow();
  if (!grid) return;
  if (moves[e.key]) {
    const at = state.cursor || patchOfQuery() || { row: Math.floor(grid[0] / 2), column: Math.floor(grid[1] / 2) };
    const clip = (v, most) => Math.min(Math.max(v, 0), most - 1);
    state.cursor = { row: clip(at.row + moves[e.key][0], grid[0]), column: clip(at.column + moves[e.key][1], grid[1]) };
    state.pointer = null;
    if ($("follow").checked && !$("follow").disabled) askPatch(state.cursor);
    drawMarks();
    drawValue();
    e.preventDefault();
  } else if ((e.key === "Enter" || e.key === " ") && state.cursor) {
    if (!$("follow").disabled) askPatch(state.cursor);
    e.preventDefault();
  }
}

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  const toggle = (id) => { const box = $(id); if (!box.disabled) { box.checked = !box.checked; box.dispatchEvent(new Event("change")); } };
  const act = {
    "[": () => step("block", -1), "]": () => step("block", 1), ",": () => step("head", -1), ".": () => step("head", 1),
    "-": () => step("alpha", -10), "+": () => step("alpha", 10), "=": () => step("alpha", 10), s: () => toggle("smooth"), f: () => toggle("follow"),
    u: () => { const scale = $("scale"); scale.selectedIndex = (scale.selectedIndex + 1) % scale.length; scale.dispatchEvent(new Event("change")); },
    r: () => {
      const other = document.querySelector(`[name="source"][value="${state.source === "raw" ? "rollout" : "raw"}"]`);
      if (!other.disabled) { other.checked = true; other.dispatchEvent(new Event("change")); }
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

// The page of an answer: hover over a word, or step through the words, and see where each looks.

const NAMES = { image: "image", first: "first token", text: "prompt", words: "answer so far", other: "other keys" };
const state = { at: 0, smooth: true, weighted: true, alpha: 0.85, colormap: "plasma" };
const shown = []; // one entry per picture
const number = (v) => String(+v.toPrecision(3));

async function start() {
  $("title").textContent = file.title;
  const { tokens, layers, heads } = file.about;
  $("about").textContent = `${tokens} tokens, ${layers} layers, ${heads} heads. Made ${file.made} with attnhook ${file.version}.`;
  file.words.forEach((word, index) => {
    const button = element("button", word.text);
    button.type = "button";
    button.onclick = button.onmouseenter = button.onfocus = () => show(index);
    $("words").append(button, " ");
  });
  $("kind").onchange = draw;
  $("smooth").onchange = () => { state.smooth = $("smooth").checked; draw(); };
  document.addEventListener("keydown", onKey);
  await Promise.all(file.parts.map(addPart));
  show(0);
  document.documentElement.dataset.ready = "true";
}

async function addPart(part, index) {
  const [width, height] = part.size, image = new Image(), canvas = element("canvas"), box = element("figure");
  image.src = `data:image/jpeg;base64,${$(`picture-${index}`).textContent}`;
  await image.decode();
  Object.assign(canvas, { width, height });
  canvas.setAttribute("role", "img");
  canvas.style.setProperty("--shape", width / height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const centres = (n) => Float64Array.from({ length: n }, (_, i) => i + 0.5);
  const values = new Float32Array(bytesOf(part.values).buffer), [rows, columns] = part.grid, cells = rows * columns;
  const mean = new Float64Array(cells);
  values.forEach((v, i) => { mean[i % cells] += v / file.words.length; });
  shown[index] = {
    part, canvas, pen, values, mean, cells, columns, bare: pen.getImageData(0, 0, width, height), out: new Float32Array(width * height),
    down: along(part.where, 0, rows, centres(height)), across: along(part.where, 1, columns, centres(width)),
  };
  box.append(canvas, element("figcaption", part.blank ? `${part.name}: ${rows} x ${columns} patches, without the photo` : `${part.name}: ${rows} x ${columns} patches`));
  box.style.order = index;
  $("pictures").append(box);
}

function show(at) {
  const words = file.words;
  if (!words.length) return;
  state.at = Math.min(Math.max(at, 0), words.length - 1);
  const word = words[state.at];
  $("words").querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.at)));
  $("word").textContent = `${word.text} (${state.at + 1} of ${words.length})`;
  $("masses").replaceChildren();
  for (const [name, mass] of Object.entries(word.mass)) {
    if (words.every((one) => one.mass[name] < 1e-6)) continue;
    const bar = element("dd", "", "bar");
    bar.style.backgroundSize = `${100 * mass}% 100%, 100% 100%`;
    $("masses").append(element("dt", NAMES[name] || name), bar, element("dd", `${(100 * mass).toFixed(1)} %`));
  }
  draw();
}

function draw() {
  const relative = $("kind").value === "relative", ends = [];
  for (const one of shown) {
    const { values, mean, cells, columns, down, across, out } = one;
    const own = values.subarray(state.at * cells, (state.at + 1) * cells);
    const cellsNow = relative ? own.map((v, i) => (mean[i] > 0 ? v / mean[i] : 0)) : own;
    valuesAt(cellsNow, columns, down, across, out);
    const [low, middle, high] = percentilesOf(Array.from(cellsNow)), scale = colorScale(spread([low, high]), middle);
    one.pen.putImageData(blended(one.bare, out, scale), 0, 0);
    one.canvas.setAttribute("aria-label", `${one.part.name}: where ${file.words[state.at].text} looks`);
    ends.push(`${shown.length > 1 ? `${one.part.name}: ` : ""}${number(low)} to ${number(high)}`);
    if (one === shown[0]) drawPalette(scale);
  }
  $("ends").textContent = `${relative ? "Times the answer's mean" : "Attention per patch"}, 1st to 99th percentile. ${ends.join("; ")}.`;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const acts = {
    ArrowLeft: () => show(state.at - 1),
    ArrowRight: () => show(state.at + 1),
    Home: () => show(0),
    End: () => show(file.words.length - 1),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
  const button = $("words").querySelectorAll("button")[state.at];
  if (document.activeElement && document.activeElement.parentElement === $("words")) button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "nearest" });
}

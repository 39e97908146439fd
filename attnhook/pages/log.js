// The page of a training log: a slider over its steps, the picture of each, and curves of the main numbers.

const WIDE = 388, HIGH = 120, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 20;
const state = { tag: 0, at: 0, timer: 0 };
const plots = [];
const number = (v) => (v === null || v === undefined ? "none" : String(+v.toPrecision(4)));
const stepsNow = () => (file.tags.length ? file.tags[state.tag].steps : file.steps);

function start() {
  $("title").textContent = `Attention log: ${file.title}`;
  for (const one of file.tags) $("tag").append(element("option", one.tag));
  file.tags.forEach((_, index) => { $("tag").options[index].value = index; });
  $("tags").hidden = $("picture").hidden = !file.tags.length;
  makePlots();
  fillAbout();
  $("tag").onchange = () => { const step = stepsNow()[state.at]; state.tag = +$("tag").value; goTo(step); };
  $("step").oninput = () => { pause(); show(+$("step").value); };
  $("play").onclick = () => (state.timer ? pause() : play());
  document.addEventListener("keydown", onKey);
  show(stepsNow().length - 1);
}

function show(at) {
  const steps = stepsNow();
  state.at = Math.min(Math.max(at, 0), steps.length - 1);
  const step = steps[state.at], picture = $(`picture-${state.tag}-${state.at}`);
  if (picture) {
    $("picture").src = `data:image/jpeg;base64,${picture.textContent}`;
    $("picture").alt = `${file.tags[state.tag].tag} at step ${step}`;
  }
  $("tag").value = state.tag;
  $("step").max = steps.length - 1;
  $("step").value = state.at;
  $("step").setAttribute("aria-valuetext", `step ${step}`);
  $("step-text").textContent = `step ${step} (${state.at + 1} of ${steps.length})`;
  for (const plot of plots) plot.mark(step);
}

// The step itself, or the nearest one that has a picture.
function goTo(step) {
  const steps = stepsNow();
  let best = 0;
  steps.forEach((one, index) => { if (Math.abs(one - step) < Math.abs(steps[best] - step)) best = index; });
  show(best);
}

function play() {
  if (state.at === stepsNow().length - 1) show(0);
  $("play").textContent = "Pause";
  state.timer = setInterval(() => {
    show(state.at + 1);
    if (state.at === stepsNow().length - 1) pause();
  }, 250);
}

function pause() {
  clearInterval(state.timer);
  state.timer = 0;
  $("play").textContent = "Play";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const turn = (by) => { const step = stepsNow()[state.at]; state.tag = (state.tag + by + file.tags.length) % file.tags.length; goTo(step); };
  const acts = {
    ArrowLeft: () => { pause(); show(state.at - 1); },
    ArrowRight: () => { pause(); show(state.at + 1); },
    Home: () => { pause(); show(0); },
    End: () => { pause(); show(stepsNow().length - 1); },
    p: () => $("play").click(),
    "[": () => file.tags.length && turn(-1),
    "]": () => file.tags.length && turn(1),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

// --- curves -------------------------------------------------------------------------------------------------------------------

// Tags are `<prefix>attention/entropy`, `<prefix>attention/alarms/<name>` and `<prefix>attention/<block>/<kind>`.
function makePlots() {
  const groups = new Map();
  for (const [tag, values] of Object.entries(file.numbers)) {
    const found = /^(.*?)attention\/(?:(alarms)\/)?(?:(.+)\/)?([^/]+)$/.exec(tag);
    if (!found) continue;
    const [, prefix, alarms, block, kind] = found;
    if (!groups.has(prefix)) groups.set(prefix, { model: {}, alarms: {}, blocks: {} });
    const group = groups.get(prefix);
    if (alarms) group.alarms[kind] = values;
    else if (block) (group.blocks[kind] = group.blocks[kind] || {})[block] = values;
    else group.model[kind] = values;
  }
  for (const [prefix, group] of groups) {
    const name = prefix ? `${prefix.replace(/\/$/, "")}: ` : "";
    if (group.model.entropy) addPlot(`${name}mean entropy, nats`, [["all blocks", group.model.entropy, "var(--c0)"]]);
    const kinds = Object.keys(group.blocks);
    if (kinds.length) addPlot(`${name}by block`, null, { kinds, lines: (kind) => ofBlocks(group.blocks[kind]) });
    const alarms = Object.entries(group.alarms).map(([kind, values], index) => [kind.replaceAll("_", " "), values, `var(--c${index % 4})`]);
    if (alarms.length) addPlot(`${name}alarms`, alarms, { zero: true });
  }
}

// In the order of the model, from the first block's colour to the last one's.
function ofBlocks(blocks) {
  const names = Object.keys(blocks).sort((a, b) => a.localeCompare(b, "en", { numeric: true })), last = Math.max(names.length - 1, 1);
  return names.map((name, i) => [name, blocks[name], `color-mix(in oklab, var(--last) ${Math.round((100 * i) / last)}%, var(--first))`]);
}

function svg(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function addPlot(title, lines, { kinds = null, lines: linesOf = null, zero = false } = {}) {
  const box = element("div", "", "plot"), drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title });
  const list = element("ul", "", "values"), now = svg("line", { class: "now", y1: TOP, y2: HIGH - BOTTOM });
  const first = file.steps[0], span = file.steps[file.steps.length - 1] - first || 1;
  const x = (step) => LEFT + ((WIDE - LEFT - RIGHT) * (step - first)) / span;
  let shown = lines, current = first;
  const draw = () => {
    const known = shown.flatMap(([, values]) => values.filter((v) => v !== null));
    let [low, high] = endsOf(known);
    if (zero) [low, high] = [0, Math.max(high, 1)];
    if (high === low) [low, high] = [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
    const y = (v) => HIGH - BOTTOM - ((HIGH - TOP - BOTTOM) * (v - low)) / (high - low);
    const parts = [svg("path", { class: "axis", d: `M${LEFT},${TOP}V${HIGH - BOTTOM}H${WIDE - RIGHT}` }), now];
    for (const [, values, color] of shown) {
      let path = "", dots = 0, pen = "M";
      values.forEach((v, i) => {
        if (v === null) { pen = "M"; return; }
        path += `${pen}${x(file.steps[i]).toFixed(1)},${y(v).toFixed(1)}`;
        pen = "L";
        dots += 1;
      });
      if (dots === 1) path += "h2";
      const line = svg("path", { d: path });
      line.style.stroke = color;
      parts.push(line);
    }
    for (const [text, at, anchor, down] of [[number(high), LEFT - 4, "end", TOP + 8], [number(low), LEFT - 4, "end", HIGH - BOTTOM], [`step ${first}`, LEFT, "start", HIGH - 4], [String(first + span), WIDE - RIGHT, "end", HIGH - 4]]) {
      const label = svg("text", { x: at, y: down, "text-anchor": anchor });
      label.textContent = text;
      parts.push(label);
    }
    drawing.replaceChildren(...parts);
    mark(current);
  };
  const mark = (step) => {
    current = step;
    now.setAttribute("x1", x(step));
    now.setAttribute("x2", x(step));
    const index = file.steps.indexOf(step);
    list.replaceChildren(...shown.map(([name, values, color]) => {
      const item = element("li"), swatch = element("i"), value = element("b", index < 0 ? "none" : number(values[index]));
      swatch.style.background = color;
      item.append(swatch, element("span", name), value);
      return item;
    }));
  };
  const heading = element("h2", title);
  box.append(heading);
  if (kinds) {
    const label = element("label", "", "row"), choice = element("select");
    for (const kind of kinds) { const option = element("option", kind.replaceAll("_", " ")); option.value = kind; choice.append(option); }
    choice.value = kinds.includes("entropy") ? "entropy" : kinds[0];
    choice.onchange = () => { shown = linesOf(choice.value); draw(); };
    label.append(element("span", "Number"), choice);
    box.append(label);
    shown = linesOf(choice.value);
  }
  drawing.onclick = (event) => {
    const place = drawing.getBoundingClientRect(), at = ((event.clientX - place.left) / place.width) * WIDE;
    pause();
    goTo(first + (span * (at - LEFT)) / (WIDE - LEFT - RIGHT));
  };
  box.append(drawing, list);
  $("plots").append(box);
  plots.push({ mark });
  draw();
}

function fillAbout() {
  const facts = [
    ["file", `${Math.round(+file.bytes / 1000)} KB in all, made ${file.made} by attnhook ${file.version}`],
    ["pictures", `${file.shown} of ${file.logged} logged steps`],
    ...file.texts,
  ];
  if (file.shown < file.logged) $("notice").textContent = `This page has the pictures of ${file.shown} of ${file.logged} logged steps.`;
  if (file.steps.length < file.measured) $("notice").textContent += ` The curves have ${file.steps.length} of ${file.measured} logged steps.`;
  if (file.unread) $("notice").textContent += ` ${file.unread} incomplete ${file.unread === 1 ? "line of scalars.jsonl was" : "lines of scalars.jsonl were"} left out.`;
  for (const [name, text] of facts) $("about").append(element("dt", name), element("dd", text));
}

// The page around the tables and the maps: notes, failures, controls, and what is said about the file.

const LEVELS = { ok: ["\u2713", "Passed"], warning: ["!", "Warning"], info: ["i", "Note"] };

function drawNotes() {
  const order = ["warning", "ok", "info"], known = (note) => (LEVELS[note.level] ? note.level : "info");
  const notes = [...file.notes].sort((a, b) => order.indexOf(known(a)) - order.indexOf(known(b)));
  $("notes").hidden = !notes.length;
  $("notes").querySelector("ul").append(...notes.map((note) => {
    const [sign, word] = LEVELS[known(note)], line = element("li", "", known(note)), mark = element("span", sign, "sign");
    mark.setAttribute("aria-hidden", "true");
    const text = element("p");
    text.append(element("b", `${word}. `), note.text);
    line.append(mark, text);
    return line;
  }));
}

function drawFailures() {
  const { failures } = file;
  $("failures").hidden = !failures.length;
  $("failures-title").textContent = `${failures.length} failure${failures.length === 1 ? "" : "s"}`;
  $("failures").querySelector("ul").append(...failures.map((one) => {
    const line = element("li"), where = element("p");
    where.append(element("b", one.model));
    if (one.photo !== null) where.append(", photo ", element("b", one.photo));
    line.append(where, element("pre", one.error));
    return line;
  }));
}

function drawFigures() {
  $("figures").append(...file.figures.map((one, i) => {
    const section = element("section"), picture = element("img");
    section.id = `figure-${i}`;
    picture.src = `data:image/png;base64,${one.png}`;
    picture.alt = one.title;
    picture.className = "figure";
    section.append(element("h2", one.title), picture);
    return section;
  }));
}

const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function drawContents() {
  const warnings = file.notes.filter((note) => note.level === "warning").length;
  const links = photos.length ? [["Maps", "#maps"]] : [];
  if (strips.length) links.push(["Scores", "#scores"]);
  if (file.notes.length) links.push([warnings ? counted(warnings, "warning") : "Notes", "#notes", warnings && "warned"]);
  if (file.failures.length) links.push([counted(file.failures.length, "failure"), "#failures", "failed"]);
  links.push(...file.tables.map((table, i) => [table.title, `#table-${i}`]));
  links.push(...file.figures.map((one, i) => [one.title, `#figure-${i}`]));
  links.push(["What this is", "#about-title"]);
  $("contents").append(...links.map(([text, target, name]) => {
    const link = element("a", text, name);
    link.href = target;
    return link;
  }));
}

function drawAbout() {
  const sized = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);
  const pictures = photos.reduce((sum, photo) => sum + photo.jpeg.length, 0), values = file.maps.reduce((sum, map) => sum + map.data.length, 0);
  const lines = [
    ["size", `${sized(Number(file.bytes))}: photos ${sized(pictures)}, maps ${sized(values)}`],
    ["holds", `${counted(models.length, "model")}, ${counted(photos.length, "photo")}, ${counted(views.length, "view")}, ${counted(file.maps.length, "map")}`],
    ["photos", "scaled down, as JPEG; positions refer to the original size"],
    ["precision", "maps are stored in 65535 steps between their lowest and highest value; tables show rounded numbers, their tooltips the full ones"],
    ["made", `${file.made}, attnhook ${file.version}`],
  ];
  $("about").append(...lines.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

// --- controls -----------------------------------------------------------------------------------------------------------------

function drawLegend() {
  const words = {
    own: "From the 1st to the 99th percentile of each map; opacity begins at its median. You cannot compare colours between pictures.",
    uniform: `From 1 to ${state.top} \u00d7 1/N, logarithmic, where 1/N is uniform attention over a model's N keys; lower values leave the photo as it is. You can compare colours between all pictures.`,
    row: "From the lowest 1st to the highest 99th percentile of all models' maps of one photo. You can compare colours within a row.",
  };
  $("legend").textContent = words[state.scale];
  $("alpha-text").textContent = `${Math.round(state.alpha * 100)} %`;
  $("controls-short").textContent = `${views[state.view].label} \u00b7 ${$("scale").selectedOptions[0].textContent}`;
}

function drawColors() {
  drawPalette();
  const colors = shownColors(colorScale([0, 1])), stops = Array.from({ length: 18 }, (_, i) => `rgb(${colors[15 * i].join()})`);
  $("matrix").style.setProperty("--colors", `linear-gradient(to right, ${stops.join()})`);
}

// A scale of attention mass is no scale for other values.
function offerScales() {
  const { mass } = views[state.view], option = $("scale").querySelector('[value="uniform"]');
  option.disabled = !mass;
  option.title = mass ? "" : "This view's values are not attention mass.";
  if (!mass && state.scale === "uniform") $("scale").value = state.scale = "own";
  $("top-field").hidden = state.scale !== "uniform";
}

function connectControls() {
  const changed = () => { offerScales(); drawLegend(); redraw(); measure(); };
  const on = (id, kind, act) => $(id).addEventListener(kind, (event) => { act(event.target); changed(); });
  on("view", "change", (field) => { state.view = Number(field.value); });
  on("scale", "change", (field) => { state.scale = field.value; });
  on("top", "change", (field) => { state.top = Number(field.value); });
  on("alpha", "input", (field) => { state.alpha = Number(field.value) / 100; drawColors(); });
  on("colormap", "change", (field) => { state.colormap = field.value; drawColors(); });
  on("weighted", "change", (field) => { state.weighted = field.checked; drawColors(); });
  on("smooth", "change", (field) => { state.smooth = field.checked; });
  on("frame", "change", (field) => { state.frame = field.checked; });
  on("outline", "change", (field) => { state.outline = field.checked; });
  on("peak", "change", (field) => { state.peak = field.checked; });
  on("together", "change", (field) => { state.together = field.checked; if (field.checked && lastRow) setLook(lastRow, lastRow.look); });
  $("controls").addEventListener("toggle", measure);
  PHONE.addEventListener("change", fold);
}

const fold = () => { $("controls").open = !PHONE.matches; };

function startMaps() {
  $("maps").hidden = !(photos.length && models.length && views.length);
  if ($("maps").hidden) return;
  $("view").append(...views.map((view, i) => new Option(view.label, String(i))));
  $("view-field").hidden = views.length < 2;
  $("outline-field").hidden = !photos.some((photo) => photo.outline);
  if (views.length === 1) $("maps-title").textContent = `Maps: ${views[0].label}`;
  for (const name of Object.keys(palettes)) $("colormap").append(new Option(name, name, false, name === state.colormap));
  for (const top of [2, 4, 8, 16, 32, 64]) $("top").append(new Option(`${top} \u00d7 1/N`, String(top)));
  $("top").value = String(state.top);
  fold();
  offerScales();
  drawColors();
  drawLegend();
  makeMatrix();
  connectControls();
  connectMatrix();
}

function start() {
  $("title").textContent = file.title;
  $("subtitle").textContent = `${file.made}, attnhook ${file.version}`;
  drawNotes();
  drawFailures();
  $("tables").append(...file.tables.map(drawTable));
  drawFigures();
  startMaps();
  startStrips();
  watchTables();
  drawContents();
  drawAbout();
}

// The fewest patches that hold a share of the mass, as Python's style "mask" shows them.

const SHADE = 0.6, SUMMING = 1e-12; // the darkness outside; the relative rounding of a sum of shares

// Which patches: Uint8Array of 0 and 1.
function massMask(values, keep) {
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  const inside = new Uint8Array(values.length), total = order.reduce((sum, i) => sum + values[i], 0);
  let before = 0;
  for (const i of order) {
    if (!(before < keep * (1 - SUMMING) * total) || !(values[i] > 0)) break;
    inside[i] = 1;
    before += values[i];
  }
  return inside;
}

function drawMask(scene, block, values) {
  const inside = massMask(values, state.keep), count = inside.reduce((sum, one) => sum + one, 0);
  const [down, across] = placesOf(scene, block), { width, height, data: bare } = scene.photo;
  const picture = new ImageData(new Uint8ClampedArray(bare), width, height), data = picture.data;
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
    const unseen = down.own[y] < 0 || across.own[x] < 0;
    if (!unseen && inside[down.own[y] * block.grid[1] + across.own[x]]) continue;
    for (let k = 0; k < 3; k++) data[at + k] = unseen ? bare[at + k] * (1 - FADE) + UNSEEN * FADE : bare[at + k] * (1 - SHADE);
  }
  context.putImageData(picture, 0, 0);
  outline(scene, block, inside);
  $("low").textContent = $("high").textContent = "";
  $("bar-text").textContent = `not darkened: the ${count} of ${values.length} patches that hold ${Math.round(state.keep * 100)} % of the attention on patches`;
}

function outline(scene, block, inside) {
  const [rows, columns] = block.grid, path = new Path2D(), seen = seenBox(scene, block), thin = Math.max(1, Math.min(...scene.facts.size) / 300);
  const out = (row, column) => row < 0 || column < 0 || row >= rows || column >= columns || !inside[row * columns + column];
  const line = (x, y, toX, toY) => { path.moveTo(x, y); path.lineTo(toX, toY); };
  inside.forEach((one, i) => {
    if (!one) return;
    const row = Math.floor(i / columns), column = i % columns, { y, x, bottom, right } = boxOf(scene.facts, block, row, column);
    if (out(row - 1, column)) line(x, y, right, y);
    if (out(row + 1, column)) line(x, bottom, right, bottom);
    if (out(row, column - 1)) line(x, y, x, bottom);
    if (out(row, column + 1)) line(right, y, right, bottom);
  });
  context.save();
  context.beginPath();
  context.rect(seen.x, seen.y, seen.right - seen.x, seen.bottom - seen.y);
  context.clip();
  context.lineCap = "round";
  for (const [color, width] of [["rgba(0, 0, 0, 0.6)", 3], ["#fff", 1.4]]) {
    Object.assign(context, { strokeStyle: color, lineWidth: thin * width });
    context.stroke(path);
  }
  context.restore();
}

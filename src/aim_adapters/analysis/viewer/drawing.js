// Colors, and maps drawn over frames.

const STOPS = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96], [207, 68, 70], [237, 105, 37], [251, 155, 6],
  [247, 209, 61], [252, 255, 164],
]; // matplotlib's inferno

function inferno(value) {
  const place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((channel, index) => channel + (place - low) * (STOPS[low + 1][index] - channel));
}
const COLORS = Array.from({ length: 256 }, (_, index) => inferno(index / 255));

const scratch = document.createElement("canvas");

// Draws one frame, and over it the map of that frame; values of `low` get the darkest color, of `top` the brightest.
function drawOverlay(canvas, picture, map, mapFrame, { opacity, smooth, low, top, side }) {
  const context = canvas.getContext("2d"), { width, height } = canvas;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  if (!map || !opacity) return;
  const { rows, cols, data } = map, start = mapFrame * rows * cols;
  const high = smooth ? side : rows, across = smooth ? side : cols;
  scratch.width = across;
  scratch.height = high;
  const pen = scratch.getContext("2d"), image = pen.createImageData(across, high);
  for (let y = 0, out = 0; y < high; y++) {
    const v = Math.min(Math.max(((y + 0.5) / high) * rows - 0.5, 0), rows - 1), y0 = Math.floor(v), y1 = Math.min(y0 + 1, rows - 1);
    for (let x = 0; x < across; x++, out += 4) {
      const u = Math.min(Math.max(((x + 0.5) / across) * cols - 0.5, 0), cols - 1), x0 = Math.floor(u), x1 = Math.min(x0 + 1, cols - 1);
      const upper = data[start + y0 * cols + x0] * (x0 + 1 - u) + data[start + y0 * cols + x1] * (u - x0);
      const lower = data[start + y1 * cols + x0] * (x0 + 1 - u) + data[start + y1 * cols + x1] * (u - x0);
      const value = upper * (y0 + 1 - v) + lower * (v - y0);
      const share = Math.min(Math.max((value - low) / (top - low), 0), 1);
      const color = COLORS[Math.round(255 * share)];
      image.data[out] = color[0];
      image.data[out + 1] = color[1];
      image.data[out + 2] = color[2];
      image.data[out + 3] = 255 * opacity * (0.4 + 0.6 * share);
    }
  }
  pen.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.drawImage(scratch, 0, 0, width, height);
  context.imageSmoothingEnabled = true;
}

function outline(canvas, map, [row, col], firm) {
  const context = canvas.getContext("2d"), w = canvas.width / map.cols, h = canvas.height / map.rows;
  const line = Math.max(1.5, canvas.width / 240);
  for (const [color, width] of [["#000c", 2.4 * line], ["#fff", line]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(firm ? [] : [3 * line, 2 * line]);
    context.strokeRect(col * w, row * h, w, h);
  }
  context.setLineDash([]);
}

// Sizes a canvas for the screen; returns whether it is visible.
function fit(canvas, [height, width], ratio = window.devicePixelRatio || 1) {
  const shown = canvas.clientWidth;
  if (!shown) return false;
  const w = Math.round(shown * ratio), h = Math.round((w * height) / width);
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  return true;
}

function drawMatrix(canvas, time, frame) {
  const n = time.frames, cell = Math.max(Math.floor(336 / n), 4);
  canvas.width = canvas.height = cell * n;
  const context = canvas.getContext("2d"), top = time.data.reduce((a, b) => Math.max(a, b), 1e-12);
  for (let row = 0; row < n; row++) {
    for (let col = 0; col < n; col++) {
      context.fillStyle = `rgb(${COLORS[Math.round(255 * (time.data[row * n + col] / top))].map(Math.round).join(" ")})`;
      context.fillRect(col * cell, row * cell, cell, cell);
    }
  }
  context.strokeStyle = "#fff";
  context.lineWidth = 4;
  context.strokeRect(2, frame * cell + 2, n * cell - 4, cell - 4);
}

const SVG = "http://www.w3.org/2000/svg";
function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

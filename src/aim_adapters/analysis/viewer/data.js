// What the page holds: the scene, and the maps of every variant, unpacked on arrival.

const scene = JSON.parse(document.getElementById("scene").textContent);
const maps = new Map(); // "variant/kind/block" -> {shape, scale, bytes}
const ALL = -1; // no head chosen: the mean over heads

async function unpack() {
  const blobs = await Promise.all(scene.parts.map((_, index) => inflate(document.getElementById(`part-${index}`))));
  scene.variants.forEach((variant, place) => {
    for (const map of variant.maps) {
      const size = map.shape.reduce((a, b) => a * b, 1);
      const bytes = blobs[map.part].subarray(map.offset, map.offset + size);
      maps.set(`${place}/${map.kind}/${map.block}`, { shape: map.shape, scale: map.scale, bytes });
    }
  });
}

async function inflate(element) {
  const packed = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  element.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes are square roots of values, which keeps small ones apart: value = scale * (byte / 255)^2.
function values(bytes, scale) {
  return Float32Array.from(bytes, (byte) => scale * (byte / 255) ** 2);
}

function pick(key, head) {
  const map = maps.get(head === ALL ? key.mean : key.heads);
  if (!map) return null;
  if (head === ALL) return { shape: map.shape, data: values(map.bytes, map.scale[0]) };
  const shape = map.shape.slice(1), size = shape.reduce((a, b) => a * b, 1);
  return { shape, data: values(map.bytes.subarray(head * size, (head + 1) * size), map.scale[head]) };
}

const cache = new Map();
function cached(key, make) {
  if (!cache.has(key)) {
    if (cache.size > 64) cache.delete(cache.keys().next().value);
    cache.set(key, make());
  }
  return cache.get(key);
}

// The maps over the patches [T, rows, cols] of one choice.
function spatialMap(variant, kind, block, head) {
  const perBlock = kind === "attention";
  if (!perBlock || !maps.has(`${variant}/heads/${block}`)) head = ALL;
  return cached(`space/${variant}/${kind}/${block}/${head}`, () => {
    const names = perBlock
      ? { mean: `${variant}/mean/${block}`, heads: `${variant}/heads/${block}` }
      : { mean: `${variant}/${kind}/null` };
    const found = pick(names, head);
    if (!found) return null;
    const [frames, rows, cols] = found.shape;
    return { frames, rows, cols, data: found.data, ...range(found.data) };
  });
}

// What colors span: single patches that stand out far above all others do not darken the rest.
function range(data) {
  const sorted = Float32Array.from(data).sort(), most = sorted[sorted.length - 1];
  const low = sorted[0], top = sorted[Math.floor(0.995 * (sorted.length - 1))];
  return { low, top: Math.max(top, low + 1e-12), most: Math.max(most, 1e-12) };
}

// Attention between frames [T, T] of one patch, or of all; `heads` and `patches` say whose mean it is.
function timeMap(variant, block, head, patch) {
  const grid = patch && maps.get(`${variant}/grid/${block}`);
  if (grid) {
    const [rows, cols, frames] = grid.shape, size = frames * frames;
    const row = Math.min(patch[0], rows - 1), col = Math.min(patch[1], cols - 1), start = (row * cols + col) * size;
    return { frames, patch: [row, col], head: ALL, data: values(grid.bytes.subarray(start, start + size), grid.scale[0]) };
  }
  if (!maps.has(`${variant}/time_heads/${block}`)) head = ALL;
  const found = pick({ mean: `${variant}/time/${block}`, heads: `${variant}/time_heads/${block}` }, head);
  return found && { frames: found.shape[0], patch: null, head, data: found.data };
}

// Where a map is strongest in one frame.
function strongest(map, frame) {
  const size = map.rows * map.cols, start = frame * size;
  let best = 0;
  for (let index = 1; index < size; index++) if (map.data[start + index] > map.data[start + best]) best = index;
  return { row: Math.floor(best / map.cols), col: best % map.cols, value: map.data[start + best] };
}

const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;

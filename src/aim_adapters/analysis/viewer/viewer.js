// The controls, and what is drawn when one of them changes.

const $ = (id) => document.getElementById(id);
const state = { variant: scene.variants.length - 1, kind: "attention", block: 0, head: ALL, frame: 0, patch: null, hover: null };
const pictures = [];
let playing = null;

const KINDS = {
  attention: scene.classToken
    ? ["Attention", "Where the [class] token looks in one block: of each frame's attention, the share that each patch gets."]
    : ["Attention", "Where the patches look in one block, on average: of each frame's attention, the share that each patch gets."],
  rollout: ["Rollout", "Attention followed through all blocks (Abnar & Zuidema, 2020)."],
  relevance: ["For the class", `What speaks for “${scene.target.name}”: attention of all blocks, weighted by its gradient (Chefer et al., 2021).`],
};

function add(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

const variant = () => scene.variants[state.variant];
const blockOf = () => variant().blocks[state.block];
const mapOf = (place = state.variant) => {
  const blocks = scene.variants[place].blocks;
  return spatialMap(place, state.kind, blocks[Math.min(state.block, blocks.length - 1)].index, state.head);
};
const mapFrame = (frame = state.frame) => Math.floor((frame * scene.mapFrames) / scene.frames.length);
const framesText = (index) => {
  const each = scene.frames.length / scene.mapFrames;
  return each === 1 ? `${index + 1}` : `${index * each + 1}–${(index + 1) * each}`;
};

// ------------------------------------------------------------------ drawing
function look(map, frame, side) {
  const size = map ? map.rows * map.cols : 0, start = mapFrame(frame) * size;
  const { low, top } = map && $("each").checked ? range(map.data.subarray(start, start + size)) : map || {};
  return { opacity: $("opacity").value / 100, smooth: $("smooth").checked, low, top, side };
}

function drawStage() {
  const canvas = $("picture"), map = mapOf();
  if (!fit(canvas, scene.size)) return;
  drawOverlay(canvas, pictures[state.frame], map, mapFrame(), look(map, state.frame, 160));
  if (map && state.patch) outline(canvas, map, clamp(state.patch, map), true);
  if (map && state.hover) outline(canvas, map, clamp(state.hover, map), false);
}

const clamp = ([row, col], map) => [Math.min(row, map.rows - 1), Math.min(col, map.cols - 1)];

function drawCards() {
  scene.variants.forEach((_, place) => {
    const canvas = $(`card-${place}`), map = mapOf(place);
    if (fit(canvas, scene.size)) drawOverlay(canvas, pictures[state.frame], map, mapFrame(), look(map, state.frame, 64));
  });
}

function drawStrip(again) {
  const map = mapOf(), time = currentTime();
  [...$("strip").children].forEach((cell, frame) => {
    const canvas = cell.querySelector("canvas"), patch = state.hover || state.patch;
    cell.setAttribute("aria-current", frame === state.frame);
    cell.tabIndex = frame === state.frame ? 0 : -1; // one stop of Tab for all of them
    if (again && fit(canvas, scene.size)) {
      drawOverlay(canvas, pictures[frame], map, mapFrame(frame), look(map, frame, 64));
      if (patch && map) outline(canvas, map, clamp(patch, map), true);
    }
    const column = cell.querySelector(".column"), bar = column.firstChild, number = cell.querySelector(".share");
    column.hidden = number.hidden = !time;
    if (!time) return;
    const row = time.data.subarray(mapFrame() * time.frames, (mapFrame() + 1) * time.frames);
    const top = Math.max(time.data.reduce((a, b) => Math.max(a, b), 0), 1.5 / time.frames), share = row[mapFrame(frame)];
    bar.style.height = `${(78 * share) / top}px`;
    column.style.setProperty("--even", `${78 / time.frames / top}px`);
    number.textContent = percent(share, share < 0.0995 ? 1 : 0);
  });
}

function currentTime() {
  return variant().temporal.includes(blockOf().index)
    ? timeMap(state.variant, blockOf().index, state.head, state.hover || state.patch)
    : null;
}

function drawTime() {
  const time = currentTime(), block = blockOf().index, patch = state.hover || state.patch;
  $("release").hidden = !state.patch;
  $("matrix").parentElement.hidden = $("time-numbers").hidden = !time;
  if (!time) {
    const blocks = scene.variants[state.variant].temporal;
    $("time-text").textContent = blocks.length
      ? `Block ${block} does not attend over time; these do: ${blocks.join(", ")}.`
      : `With “${variant().name}”, no block here attends over time: ${variant().instead}.`;
    return;
  }
  const whose = time.patch ? `the patch at row ${time.patch[0]}, column ${time.patch[1]}` : patch
    ? "the mean over all patches (single patches were left out, see below)" : "the mean over all patches";
  const each = scene.frames.length / scene.mapFrames, joined = each > 1 ? ` To the model, ${each} frames are one.` : "";
  const head = time.head === ALL ? "mean over heads" : `head ${time.head}`;
  $("time-text").textContent =
    `How much frame ${framesText(mapFrame())} attends to each frame in block ${block}, ${head}: ${whose}. Dashed: all frames alike.${joined}`;
  drawMatrix($("matrix"), time, mapFrame());
  $("matrix").setAttribute("aria-label", `Attention between all ${time.frames} frames; the table below has the numbers.`);
  if ($("time-numbers").open) fillTimeTable(time);
}

function fillTimeTable(time) {
  const table = $("time-table");
  table.replaceChildren();
  add(table, "caption", "Share of attention that each frame (row) gives to each frame (column)", { class: "unseen" });
  const head = add(add(table, "thead"), "tr"), body = add(table, "tbody");
  add(head, "th", "Frame", { scope: "col" });
  for (let key = 0; key < time.frames; key++) add(head, "th", `to ${framesText(key)}`, { scope: "col" });
  for (let query = 0; query < time.frames; query++) {
    const row = add(body, "tr");
    add(row, "th", framesText(query), { scope: "row" });
    for (let key = 0; key < time.frames; key++) add(row, "td", percent(time.data[query * time.frames + key]));
  }
}

function say() {
  const map = mapOf(), frame = `Frame ${state.frame + 1} of ${scene.frames.length}`;
  $("frame-text").textContent = `${state.frame + 1} / ${scene.frames.length}`;
  $("frame").value = state.frame;
  $("frame").setAttribute("aria-valuetext", frame);
  let text = frame;
  if (map) {
    const best = strongest(map, mapFrame()), patch = state.hover || state.patch;
    text += `. Strongest at row ${best.row}, column ${best.col}: ${amount(best.value, map)}.`;
    if (patch) {
      const [row, col] = clamp(patch, map);
      text += ` At row ${row}, column ${col}: ${amount(map.data[(mapFrame() * map.rows + row) * map.cols + col], map)}.`;
    }
  }
  $("readout").textContent = text;
  const { low, top } = look(map, state.frame);
  $("least").textContent = map ? amount(low, map) : "";
  $("most").textContent = map ? `${amount(top, map)} and more` : "";
  clearTimeout(say.timer);
  if (!playing && !state.hover) say.timer = setTimeout(() => ($("live").textContent = text), 300);
}

// Relevance has no unit, so it is told as a share of the largest in the clip.
const amount = (value, map) => (state.kind === "attention" ? percent(value) : `${Math.round((100 * value) / map.most)}% of the largest`);

function refresh() {
  const { blocks } = variant(), perBlock = state.kind === "attention";
  state.block = Math.min(state.block, blocks.length - 1);
  const { index, heads } = blockOf(), kept = maps.has(`${state.variant}/heads/${index}`);
  $("block").max = blocks.length - 1;
  $("block").value = state.block;
  $("block").disabled = blocks.length === 1;
  $("block").setAttribute("aria-valuetext", `Block ${index}`);
  const last = blocks[blocks.length - 1].index;
  $("block-text").textContent = blocks.length > 1 ? `${index} (${blocks[0].index}–${last})` : index;
  if ($("head").childElementCount !== heads + 1) {
    $("head").replaceChildren();
    add($("head"), "option", `Mean of ${heads}`, { value: ALL });
    for (let head = 0; head < heads; head++) add($("head"), "option", `Head ${head}`, { value: head });
    if (state.head >= heads) state.head = ALL;
  }
  $("head").disabled = !kept;
  $("head").value = kept ? state.head : ALL;
  $("head-text").textContent = kept ? "" : "mean only";
  $("opacity-text").textContent = `${$("opacity").value}%`;
  const missing = mapOf() ? "" : " This model has no such map; “About this report” says why.";
  const note = perBlock ? "" : " Block and head choose the attention over time below.";
  $("kind-text").textContent = KINDS[state.kind][1] + note + missing;
  for (const cell of $("answers").querySelectorAll("[data-variant]")) {
    cell.classList.toggle("chosen", Number(cell.dataset.variant) === state.variant);
  }
  $("stage").setAttribute("aria-label", `The clip under attention, ${variant().name}, block ${index}. Arrow keys choose a patch.`);
  draw(true);
}

function draw(strip) {
  drawStage();
  drawCards();
  drawStrip(strip);
  drawTime();
  say();
}

// ------------------------------------------------------------------ moves
function show(frame) {
  const count = scene.frames.length;
  state.frame = (frame + count) % count;
  draw(false);
}

function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(() => show(state.frame + 1), 1000 / Number($("speed").value)) : null;
  $("play").textContent = on ? "Pause" : "Play";
  if (!on) say();
}

function choose(patch) {
  state.patch = patch;
  state.hover = null;
  draw(true);
}

function patchAt(event) {
  const map = mapOf(), box = $("picture").getBoundingClientRect();
  if (!map) return null;
  const row = Math.floor(((event.clientY - box.top) / box.height) * map.rows);
  const col = Math.floor(((event.clientX - box.left) / box.width) * map.cols);
  return row < 0 || col < 0 || row >= map.rows || col >= map.cols ? null : [row, col];
}

const same = (a, b) => a && b && a[0] === b[0] && a[1] === b[1];

function listen() {
  $("play").onclick = () => play(!playing);
  $("speed").onchange = () => playing && play(true);
  $("frame").oninput = (event) => { play(false); show(Number(event.target.value)); };
  $("block").oninput = (event) => { state.block = Number(event.target.value); refresh(); };
  $("head").onchange = (event) => { state.head = Number(event.target.value); refresh(); };
  for (const id of ["opacity", "smooth", "each"]) $(id).oninput = refresh;
  $("release").onclick = () => { choose(null); $("stage").focus(); };
  $("time-numbers").ontoggle = drawTime;
  $("theme").onclick = () => dress(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  const stage = $("stage");
  stage.onclick = (event) => { const patch = patchAt(event); choose(same(patch, state.patch) ? null : patch); };
  stage.onpointermove = (event) => {
    if (event.pointerType === "touch") return;
    const patch = patchAt(event);
    if (!same(patch, state.hover)) { state.hover = patch; draw(true); }
  };
  stage.onpointerleave = () => { if (state.hover) { state.hover = null; draw(true); } };
  $("matrix").onclick = (event) => {
    const row = Math.floor((event.offsetY / $("matrix").clientHeight) * scene.mapFrames);
    play(false);
    show((Math.min(row, scene.mapFrames - 1) * scene.frames.length) / scene.mapFrames);
  };
  document.addEventListener("keydown", press);
  new ResizeObserver(() => { draw(true); plotDeletion(); }).observe($("report"));
}

function press(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const { key, target } = event, onStage = target.id === "stage", turn = { ArrowLeft: -1, ArrowRight: 1, PageUp: -1, PageDown: 1 }[key];
  const inStrip = target.closest("#strip");
  const busy = target.closest("input, select, textarea, button, summary, a");
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
  if (key === "Escape" && state.patch) choose(null);
  else if (event.shiftKey && (key === "ArrowUp" || key === "ArrowDown") && (!busy || onStage)) {
    state.block = Math.min(Math.max(state.block + (key === "ArrowUp" ? 1 : -1), 0), variant().blocks.length - 1);
    refresh();
  } else if (event.shiftKey || (busy && !onStage && !(inStrip && turn))) return;
  else if (key === " ") play(!playing);
  else if (inStrip && turn) { play(false); show(state.frame + turn); $("strip").children[state.frame].focus(); }
  else if (onStage && step && mapOf()) {
    const map = mapOf(), [row, col] = state.patch ? clamp(state.patch, map) : [Math.floor(map.rows / 2), Math.floor(map.cols / 2)];
    const move = state.patch ? step : [0, 0];
    choose([Math.min(Math.max(row + move[0], 0), map.rows - 1), Math.min(Math.max(col + move[1], 0), map.cols - 1)]);
  } else if (turn && (onStage || key.startsWith("Arrow"))) { play(false); show(state.frame + turn); }
  else return;
  event.preventDefault();
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
}

// What is written once: cards, tables, plots; and the start.

function option(parent, name, value, checked, change) {
  const label = add(parent, "label"), input = add(label, "input", undefined, { type: "radio", name, value });
  input.checked = checked;
  input.onchange = change;
  return label;
}

function buildChoices() {
  scene.variants.forEach((entry, place) => {
    const card = option($("variant-cards"), "variant", place, place === state.variant, () => { state.variant = place; refresh(); });
    card.className = "card";
    add(card, "canvas", undefined, { id: `card-${place}`, "aria-hidden": "true" });
    const text = add(card, "span"), [first] = entry.answers;
    add(text, "strong", entry.name);
    add(text, "span", first.name, { class: "said", title: first.name });
    add(text, "span", percent(first.probability), { class: "quiet" });
  });
  for (const kind of scene.kinds) {
    const label = option($("kinds"), "kind", kind, kind === state.kind, () => { state.kind = kind; refresh(); });
    add(label, "span", KINDS[kind][0]);
  }
  scene.frames.forEach((_, frame) => {
    const cell = add($("strip"), "button", undefined, { type: "button", class: "cell", "aria-label": `Frame ${frame + 1}` });
    add(add(cell, "span", undefined, { class: "column" }), "i");
    add(cell, "canvas");
    add(cell, "span", frame + 1);
    add(cell, "span", "", { class: "share" });
    cell.onclick = () => { play(false); show(frame); };
  });
}

function row(body, cells, scope = "row") {
  const line = add(body, "tr");
  cells.forEach((cell, place) => add(line, scope === "col" || !place ? "th" : "td", cell, scope === "col" || !place ? { scope } : {}));
  return line;
}

function buildAnswers() {
  const table = $("answers"), head = add(table, "thead"), body = add(table, "tbody");
  add(table, "caption", "Probability of each class", { class: "unseen" });
  const titles = row(head, ["Class", ...scene.variants.map((entry) => entry.name)], "col");
  [...titles.children].slice(1).forEach((cell, place) => (cell.dataset.variant = place));
  for (const entry of scene.rows) {
    const line = row(body, [entry.name, ...entry.probabilities.map((value) => percent(value))]);
    line.classList.toggle("target", entry.index === scene.target.index);
    [...line.children].slice(1).forEach((cell, place) => {
      cell.dataset.variant = place;
      add(add(cell, "span", undefined, { class: "bar", "aria-hidden": "true" }), "i").style.width = percent(entry.probabilities[place]);
    });
  }
  $("answers-text").textContent = scene.answersText;
}

function buildChecks() {
  if (scene.order) {
    $("order").hidden = false;
    $("order-text").textContent = scene.order.text;
    row(add($("order-table"), "thead"), ["Frames", `“${scene.target.name}”`, "First class"], "col");
    const body = add($("order-table"), "tbody");
    for (const entry of scene.order.rows) row(body, [entry.name, percent(entry.probability), entry.prediction]);
  }
  if (scene.deletion) {
    $("deletion").hidden = false;
    $("deletion-text").textContent = scene.deletion.text;
    const names = scene.deletion.curves.map((curve) => curve.name);
    row(add($("deletion-table"), "thead"), ["Removed", ...names], "col");
    const body = add($("deletion-table"), "tbody");
    scene.deletion.shares.forEach((share, place) =>
      row(body, [percent(share, 0), ...scene.deletion.curves.map((curve) => percent(curve.values[place]))]));
  }
  $("checks").hidden = !scene.order && !scene.deletion;
}

// One unit is one pixel, so that the text has the size of the page's at every width.
function plotDeletion() {
  const width = $("deletion-plot").clientWidth, { shares, curves } = scene.deletion || {};
  if (!curves || !width) return;
  const left = 44, right = width - 20, top = 10, bottom = 150, classes = ["one", "two", "three"];
  const largest = Math.max(...curves.flatMap((curve) => curve.values));
  const limit = [0.02, 0.1, 0.2, 0.5, 1].find((value) => value >= largest) || 1;
  const x = (share) => left + share * (right - left), y = (value) => bottom - (value / limit) * (bottom - top);
  const svg = shape("svg", { viewBox: `0 0 ${width} 216`, role: "img", "aria-labelledby": "deletion-heading" });
  for (const part of [0, 0.5, 1]) {
    const high = y(part * limit);
    svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: high, y2: high }));
    svg.append(shape("text", { x: left - 8, y: high + 4, "text-anchor": "end" }, percent(part * limit, 0)));
    svg.append(shape("text", { x: x(part), y: bottom + 17, "text-anchor": "middle" }, percent(part, 0)));
  }
  svg.append(shape("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle" }, "patches removed"));
  curves.forEach((curve, place) => {
    const path = curve.values.map((value, index) => `${index ? "L" : "M"}${x(shares[index]).toFixed(1)} ${y(value).toFixed(1)}`);
    svg.append(shape("path", { class: classes[place], d: path.join("") }));
    const start = 4 + (place * width) / 3;
    svg.append(shape("path", { class: classes[place], d: `M${start} 204h22` }));
    svg.append(shape("text", { class: `${classes[place]}-text`, x: start + 28, y: 208 }, curve.name));
  });
  $("deletion-plot").replaceChildren(svg);
}

async function start() {
  dress(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old for this report (no DecompressionStream)");
  await unpack();
  for (const source of scene.frames) {
    const picture = new Image();
    picture.src = source;
    await picture.decode();
    pictures.push(picture);
  }
  $("subtitle").textContent = scene.subtitle;
  $("frame").max = scene.frames.length - 1;
  $("stage").style.maxWidth = `${Math.round((640 * scene.size[1]) / scene.size[0])}px`;
  for (const text of scene.notes) add($("notes"), "li", text);
  buildChoices();
  buildAnswers();
  buildChecks();
  state.block = variant().blocks.length - 1;
  const colors = $("legend").getContext("2d");
  COLORS.forEach((color, index) => {
    colors.fillStyle = `rgb(${color.map(Math.round).join(" ")})`;
    colors.fillRect(index, 0, 1, 1);
  });
  $("report").hidden = false;
  listen();
  refresh();
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches && scene.frames.length > 1);
}

start().catch((error) => {
  $("failure").textContent = `The report cannot be shown: ${error.message}.`;
  $("failure").hidden = false;
});

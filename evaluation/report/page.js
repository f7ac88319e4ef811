"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);

  // An element with text that is never markup.
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  // --- colours: as the system has them, or chosen; kept where the browser lets a file keep anything
  const themes = ["", "light", "dark"];
  const words = { "": ["auto", "as the system has them"], light: ["light", "light"], dark: ["dark", "dark"] };
  const remembered = () => { try { return localStorage.getItem("guidestack-theme") || ""; } catch { return ""; } };
  const paint = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
    $("theme").textContent = `Colours: ${words[theme][0]}`;
    $("theme").setAttribute("aria-label", `Colours: ${words[theme][1]}`);
    try { localStorage.setItem("guidestack-theme", theme); } catch { /* not kept */ }
  };
  let theme = themes.includes(remembered()) ? remembered() : "";
  paint(theme);
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    paint(theme);
  });

  // --- what is folded is opened where a link leads to it, and on paper
  const unfold = (within) => within.querySelectorAll("details.fold").forEach((one) => { one.open = true; });
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => unfold(document.querySelector(link.getAttribute("href"))));
  }
  addEventListener("beforeprint", () => unfold(document));

  // --- a table that is wider than the page says so
  const mark = () => document.querySelectorAll(".scroll").forEach((one) => one.toggleAttribute("data-wide", one.scrollWidth > one.clientWidth + 1));
  addEventListener("resize", mark);
  document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", mark));

  // --- plots of one metric at a time
  const metric = $("metric");
  if (metric) {
    const choose = () => document.querySelectorAll("figure").forEach((figure) => {
      figure.hidden = metric.value !== "" && figure.dataset.metric !== metric.value;
    });
    metric.addEventListener("change", choose);
    choose();
  }

  // --- the numbers of a point, where it is pointed at or touched
  const tip = $("tip");
  for (const point of document.querySelectorAll("figure .point")) {
    const title = point.querySelector("title");
    point.dataset.said = title.textContent;
    title.remove();
    const show = () => {
      tip.textContent = point.dataset.said;
      tip.hidden = false;
      const at = point.lastElementChild.getBoundingClientRect();
      const left = Math.min(at.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(8, left) + scrollX}px`;
      tip.style.top = `${at.top + scrollY - tip.offsetHeight - 6}px`;
    };
    point.addEventListener("pointerenter", show);
    point.addEventListener("click", show);
    point.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  // --- the grid
  const SAMPLE = "prompt and seed", CELL = "cell";
  const FIRST = 3, PAGE = 12;
  const sampleKey = (sample) => `${sample.p}/${sample.s}`;
  const samples = new Map();
  const byPlace = new Map();
  for (const sample of data.samples) {
    if (!samples.has(sampleKey(sample))) samples.set(sampleKey(sample), sample);
    byPlace.set(`${sample.c}|${sampleKey(sample)}`, sample);
  }
  const order = [...samples.entries()].sort(([, a], [, b]) => a.p - b.p || a.s - b.s).map(([key]) => key);
  const axes = new Map(data.axes.map((axis) => [axis.name, axis.values]));
  const seeds = new Set(data.samples.map((sample) => sample.s));

  const textOfSample = (key) => {
    const sample = samples.get(key);
    const prompt = data.prompts[sample.p];
    const text = prompt.text || `sample ${sample.p + 1}`;
    return seeds.size > 1 ? `${text} · seed ${sample.s}` : text;
  };
  const textOf = (dimension, value) => {
    if (dimension === SAMPLE) return textOfSample(value);
    if (dimension === CELL) return data.cells[value].called;
    return dimension === "stack" ? value : `${dimension} ${value}`;
  };
  const valuesOf = (dimension) => {
    if (dimension === SAMPLE) return order;
    if (dimension === CELL) return data.cells.map((_, place) => place);
    return axes.get(dimension);
  };

  const swept = [...axes.keys()].filter((name) => name !== "stack");
  const state = { rows: SAMPLE, columns: CELL, fixed: {}, shown: FIRST };
  if (data.cells.length > 10 && swept.length && axes.has("stack")) state.columns = swept[0];
  for (const [name, values] of axes) state.fixed[name] = values[0];
  // Not every template uses every axis: of those that are chosen, one that has them is shown first.
  const uses = (stack, name) => data.cells.some((cell) => cell.at.stack === stack && cell.at[name] !== "–");
  const suit = () => {
    if (!axes.has("stack") || state.rows === "stack" || state.columns === "stack") return;
    const wanted = [state.rows, state.columns].filter((name) => swept.includes(name));
    if (wanted.every((name) => uses(state.fixed.stack, name))) return;
    state.fixed.stack = axes.get("stack").find((stack) => wanted.every((name) => uses(stack, name))) || state.fixed.stack;
  };
  suit();
  state.fixed[SAMPLE] = order[0];

  const select = (name, label, options, value, changed) => {
    const box = make("select", { id: `choose-${name.replace(/\W+/g, "-")}` });
    for (const [text, own] of options) {
      const option = make("option", { value: String(own) }, text);
      option.selected = String(own) === String(value);
      box.append(option);
    }
    box.addEventListener("change", () => changed(box.value));
    return make("label", {}, `${label} `, box);
  };

  const free = () => {
    const used = new Set([state.rows, state.columns]);
    const left = [SAMPLE, ...(used.has(CELL) ? [] : axes.keys())].filter((name) => !used.has(name));
    return left;
  };

  const controls = () => {
    const dimensions = [SAMPLE, CELL, ...axes.keys()];
    const swap = (side, other) => (value) => {
      const before = state[side];
      state[side] = value;
      if (state[other] === value) state[other] = before;
      // "cell" is all axes at once: the other side can then be the samples only
      if (value === CELL && state[other] !== SAMPLE) state[other] = SAMPLE;
      if (state[other] === CELL && value !== SAMPLE) state[other] = SAMPLE;
      suit();
      render();
      $(`choose-${side}`).focus();
    };
    const options = dimensions.map((name) => [name, name]);
    const parts = [
      select("rows", "Rows", options, state.rows, swap("rows", "columns")),
      select("columns", "Columns", options, state.columns, swap("columns", "rows")),
    ];
    for (const name of free()) {
      parts.push(select(name, name === SAMPLE ? "of" : name, valuesOf(name).map((value) => [name === SAMPLE ? textOf(name, value) : value, value]),
        state.fixed[name], (value) => { state.fixed[name] = value; render(); $(`choose-${name.replace(/\W+/g, "-")}`).focus(); }));
    }
    $("controls").replaceChildren(...parts);
  };

  const cellAt = (at) => data.cells.findIndex((cell) => Object.entries(at).every(([name, value]) => cell.at[name] === value));
  // A cell that does not use an axis is the same for all its values.
  const cellNear = (at) => {
    const exact = cellAt(at);
    if (exact >= 0) return exact;
    return data.cells.findIndex((cell) => Object.entries(at).every(([name, value]) => cell.at[name] === value || cell.at[name] === "–"));
  };
  const sampleAt = (row, column) => {
    const chosen = { ...state.fixed, [state.rows]: row, [state.columns]: column };
    let place = chosen[CELL];
    if (state.rows !== CELL && state.columns !== CELL) {
      place = cellNear(Object.fromEntries([...axes.keys()].map((name) => [name, chosen[name]])));
    }
    return byPlace.get(`${place}|${chosen[SAMPLE]}`);
  };

  const source = (sample) => sample.d || sample.i;
  const described = (sample) => {
    const prompt = data.prompts[sample.p];
    return `${prompt.text || "sample"}, seed ${sample.s}, ${data.cells[sample.c].called}`;
  };
  const crisp = (image) => image.addEventListener("load", () => image.classList.toggle("crisp", image.naturalWidth <= 128));

  let shownRows = [];
  const picture = (sample, row, column) => {
    if (!sample) return make("div", { class: "gone" }, "–");
    if (!source(sample)) {
      const button = make("button", { type: "button", class: "gone", "aria-label": described(sample) }, "record");
      button.addEventListener("click", () => view(row, column));
      return button;
    }
    const image = make("img", { src: source(sample), alt: described(sample), loading: "lazy", decoding: "async" });
    crisp(image);
    const button = make("button", { type: "button", "data-row": row, "data-column": column }, image);
    button.addEventListener("click", () => view(row, column));
    return button;
  };

  // What an axis says of a stack that does not use it: nothing.
  const without = (dimension, value) => {
    const stack = dimension === "stack" ? value : null;
    const other = dimension === state.rows ? state.columns : state.rows;
    return stack !== null && swept.includes(other) && !uses(stack, other) ? ` (has no ${other}: the same images)` : "";
  };

  // As large as the columns leave room for.
  const fit = () => {
    const room = $("grid").parentElement.clientWidth, count = Math.max(1, shownRows.length ? shownRows[0].length : 1);
    $("grid").style.setProperty("--side", `${Math.max(88, Math.min(208, Math.floor(room / count) - 6))}px`);
    mark();
  };
  addEventListener("resize", fit);

  const render = () => {
    controls();
    const rows = valuesOf(state.rows).slice(0, state.shown), columns = valuesOf(state.columns).slice(0, 60);
    shownRows = rows.map((row) => columns.map((column) => sampleAt(row, column)));
    const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col" }, textOf(state.columns, column) + without(state.columns, column))));
    const body = make("tbody");
    rows.forEach((row, r) => {
      body.append(make("tr", { class: "caption" }, make("th", { colspan: columns.length + 1, scope: "rowgroup" }, make("span", {}, textOf(state.rows, row) + without(state.rows, row)))));
      body.append(make("tr", {}, ...columns.map((_, c) => make("td", {}, picture(shownRows[r][c], r, c)))));
    });
    $("grid").replaceChildren(make("thead", {}, head), body);
    fit();
    $("more").hidden = valuesOf(state.rows).length <= state.shown;
  };
  $("more").addEventListener("click", () => { state.shown += PAGE; render(); });

  // --- one image with its record
  const viewer = $("viewer");
  let at = [0, 0];
  // As the tables write numbers, with more digits.
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    const size = Math.abs(value), text = size >= 1e-3 && size < 1e4 ? String(size) : size.toExponential(2).replace(/e([+-])(?=\d$)/, "e$10");
    return (value < 0 ? "−" : "") + text;
  };
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);

  const trace = (values) => {
    const known = values.filter((value) => value !== null);
    if (known.length < 2) return [];
    const low = Math.min(0, ...known), high = Math.max(1, ...known);
    const x = (step) => 34 + (step * 340) / (values.length - 1), y = (value) => 70 - ((value - low) / (high - low)) * 60;
    const points = values.map((value, step) => (value === null ? "" : `${x(step).toFixed(1)},${y(value).toFixed(1)}`)).filter(Boolean).join(" ");
    const svg = (tag, attributes, text = "") => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      element.textContent = text;
      return element;
    };
    const whole = svg("svg", { viewBox: "0 0 380 94", role: "img", "aria-label": `Effective scale at each of ${values.length} steps: ${known.join(", ")}` });
    whole.append(
      svg("path", { d: `M34 ${y(1)}H374` }), svg("path", { d: "M34 74H374" }),
      svg("text", { x: 30, y: y(high) + 4, "text-anchor": "end" }, high.toPrecision(2)),
      svg("text", { x: 30, y: y(1) + 4, "text-anchor": "end" }, y(1) - y(high) > 12 ? "1" : ""),
      svg("polyline", { points }),
      svg("text", { x: 204, y: 90, "text-anchor": "middle" }, "effective scale by step"),
    );
    return [whole];
  };

  const fill = (sample) => {
    const cell = data.cells[sample.c], prompt = data.prompts[sample.p];
    const pairs = [["seed", sample.s], ["evaluations", sample.e], ["effective scale", sample.w], ["across", sample.x], ["guided steps", sample.g], ["seconds", sample.t],
      ...data.metrics.map((name, place) => [name, sample.m[place]])];
    const long = [["prompt", prompt.text], ["negative", prompt.negative], ["further positives", prompt.extra], ["stack", cell.stack],
      ["sampler", `${cell.sampler}, ${cell.steps} steps, ${cell.dtype}${cell.size ? `, ${cell.size.join("x")}` : ""}`],
      ["asked for", Object.entries(prompt.labels).map(([name, value]) => `${name}: ${value}`).join(", ")]].filter(([, value]) => value);
    const parts = long.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    const short = make("div", { class: "pairs" }, ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, shown(value)))));
    parts.push(short, make("dt", {}, "address"), make("dd", {}, make("code", {}, sample.a)));
    if (sample.i) {
      parts.push(make("dt", {}, "file"), make("dd", {}, make("a", { href: sample.i }, sample.i)));
      parts.push(make("dt", {}, "make it again"), make("dd", {}, make("code", {}, `guidestack generate --like ${quoted(`${data.run}/${sample.i}`)}`)));
    }
    $("record").replaceChildren(...parts);
    $("trace").replaceChildren(...(sample.n ? trace(sample.n) : []));
    $("viewer-title").textContent = cell.called;
    const large = $("large");
    large.hidden = !source(sample);
    large.alt = described(sample);
    large.onerror = () => { large.onerror = null; if (sample.d) large.src = sample.d; };
    // Smaller images in the page stand for those of the folder.
    large.src = source(sample) ? (sample.d && !sample.f ? sample.d : sample.i) : "";
  };
  crisp($("large"));

  const view = (row, column) => {
    const sample = shownRows[row] && shownRows[row][column];
    if (!sample) return;
    at = [row, column];
    fill(sample);
    if (!viewer.open) viewer.showModal();
  };
  const go = (down, right) => {
    let [row, column] = at;
    do { row += down; column += right; } while (shownRows[row] && column >= 0 && column < shownRows[row].length && !shownRows[row][column]);
    view(row, column);
  };
  for (const [id, down, right] of [["left", 0, -1], ["right", 0, 1], ["up", -1, 0], ["down", 1, 0]]) {
    $(id).addEventListener("click", () => go(down, right));
  }
  viewer.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (moves[event.key]) { event.preventDefault(); go(...moves[event.key]); }
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  if (data.samples.length) render();
  mark();
})();

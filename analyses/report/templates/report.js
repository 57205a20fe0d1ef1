// Draws every chart from the spec beside it, fits it to the page, and offers it for download.
"use strict";
(() => {
  const FRAME = 84; // width of a panel's axis, labels and padding, before it has been measured
  const MIN_PANEL = 230; // a panel, frame included, is not made narrower than this while it can wrap
  const views = new Map();
  const specs = new Map();
  for (const node of document.querySelectorAll("script[data-spec]")) {
    specs.set(node.dataset.spec, JSON.parse(node.textContent));
  }

  function columnsFor(spec, count, available) {
    return Math.max(1, Math.min(count, Math.floor(available / MIN_PANEL)));
  }

  // Breaks a panel's title into lines that fit: a long one would widen the whole drawing.
  function wrapTitle(part, available) {
    const text = part.title && (part.title.text || part.title);
    if (typeof text !== "string") return;
    const most = Math.max(16, Math.floor(available / 7.5)); // characters of 13 px semibold a line
    const lines = [""];
    for (const word of text.split(" ")) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    }
    if (lines.length > 1) part.title = { ...(part.title.text ? part.title : {}), text: lines };
  }

  // Sets the widths of a spec's panels so that it takes at most `available` pixels; none grows beyond its own.
  function fit(spec, available, frame) {
    wrapTitle(spec, available);
    if (spec.vconcat) {
      spec.vconcat.forEach((part) => fit(part, available, frame));
    } else if (spec.hconcat) {
      spec.hconcat.forEach((part) => fit(part, available / spec.hconcat.length, frame));
    } else if (spec.concat) {
      const columns = columnsFor(spec, Math.min(spec.columns || spec.concat.length, spec.concat.length), available);
      spec.columns = columns;
      spec.concat.forEach((part) => fit(part, available / columns, frame));
    } else if (spec.spec) {
      if (spec.columns) spec.columns = columnsFor(spec, spec.columns, available);
      fit(spec.spec, available / (spec.columns || 1), frame);
    } else if (typeof spec.width !== "object") {
      const own = typeof spec.width === "number" ? spec.width : 300;
      spec.width = Math.max(110, Math.min(own, Math.floor(available - frame)));
    }
    return spec;
  }

  // Legends in as many columns as fit, and names on an axis no longer than a third of the room.
  function squeeze(part, available) {
    if (Array.isArray(part)) part.forEach((one) => squeeze(one, available));
    if (!part || typeof part !== "object" || Array.isArray(part)) return;
    for (const [channel, given] of Object.entries(part.encoding || {})) {
      if (["color", "shape", "opacity"].includes(channel) && given.field && given.legend !== null) {
        const names = (given.scale && given.scale.domain) || [];
        const longest = Math.max(16, ...names.map((name) => String(name).length));
        const most = Math.max(1, Math.floor(available / (longest * 6.3 + 34)));
        given.legend = { ...given.legend, labelLimit: available - 40 };
        if (!names.length || names.length > most) given.legend.columns = most;
      }
      if (channel === "y" && given.type === "nominal" && given.axis !== null) {
        const limit = (given.axis && given.axis.labelLimit) || 180;
        given.axis = { ...given.axis, labelLimit: Math.min(limit, Math.floor(available / 3)) };
      }
    }
    for (const [key, inner] of Object.entries(part)) {
      if (key !== "data" && key !== "datasets" && key !== "encoding") squeeze(inner, available);
    }
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");

  async function draw(box) {
    const name = box.dataset.chart;
    const spec = specs.get(name);
    const options = {
      mode: "vega-lite", renderer: "svg", actions: false,
      tooltip: { theme: dark.matches ? "dark" : "light" },
    };
    const available = box.clientWidth;
    let frame = FRAME;
    try {
      for (let attempt = 0; attempt < 3; attempt++) {
        if (views.has(name)) views.get(name).finalize();
        const fitted = fit(structuredClone(spec), available, frame);
        squeeze(fitted, available);
        views.set(name, (await window.vegaEmbed(box, fitted, options)).view);
        const excess = box.querySelector("svg").getBoundingClientRect().width - available;
        if (excess <= 1) break;
        frame += Math.ceil(excess / (fitted.columns || (fitted.hconcat || [0]).length)) + 2;
      }
      box.dataset.state = "drawn";
      box.style.minHeight = "";
      for (const node of document.querySelectorAll(`.live:has([data-chart="${name}"])`)) node.hidden = false;
    } catch (error) {
      console.error(`figure ${name}: ${error}`);
      box.innerHTML = box.nextElementSibling.textContent; // the picture for pages without scripts
      box.dataset.state = "static";
    }
  }

  function save(url, file) {
    const link = document.createElement("a");
    link.href = url;
    link.download = file;
    link.click();
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-save]");
    if (!button) return;
    const { save: kind, chart: name } = button.dataset;
    if (kind === "json") {
      const text = JSON.stringify(specs.get(name), null, 1);
      save("data:application/json;charset=utf-8," + encodeURIComponent(text), `${name}.json`);
    } else {
      save(await views.get(name).toImageURL(kind, 2), `${name}.${kind}`);
    }
  });

  const boxes = [...document.querySelectorAll(".chart[data-chart]")];
  let width = 0;
  let turn = 0;
  // One after the other, so that a page of many figures can be read and scrolled meanwhile.
  async function drawAll() {
    const mine = ++turn;
    width = document.documentElement.clientWidth;
    for (const box of boxes) {
      await draw(box);
      await new Promise((resume) => { setTimeout(resume); });
      if (mine !== turn) return; // the room has changed: the newer call draws them all
    }
    document.documentElement.dataset.charts = "ready";
  }
  let timer;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (document.documentElement.clientWidth !== width && !matchMedia("print").matches) drawAll();
    }, 200);
  });
  dark.addEventListener("change", drawAll);

  // Contents: closed on a phone, marked with the section in view.
  const contents = document.querySelector(".toc details");
  const narrow = matchMedia("screen and (max-width: 60rem)");
  const settle = () => { contents.open = !narrow.matches; };
  narrow.addEventListener("change", settle);
  settle();
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  contents.addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("a")) contents.open = false;
  });
  const inView = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const first = [...links.keys()].find((id) => inView.has(id));
    for (const [id, link] of links) {
      if (id === first) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-10% 0px -60% 0px" });
  for (const section of document.querySelectorAll("main > section")) watch.observe(section);

  // On paper nothing can be opened, so everything is.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("main details:not([open])")];
    for (const node of closed) node.open = true;
  });
  addEventListener("afterprint", () => { for (const node of closed) node.open = false; });

  drawAll();
})();

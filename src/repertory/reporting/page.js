"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none)").matches;
  let printing = false;
  const theme = () => data.templates[dark.matches && !printing ? "dark" : "light"];
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    showSendToCloud: false, plotlyServerURL: "", // nothing leaves the page
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const drawn = [];

  // plotly reads a little HTML in its texts; what people typed is not HTML
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const number = (value) => value === null ? "–" : Number(value.toPrecision(4)).toLocaleString("en");

  for (const [key, figure] of Object.entries(data.figures)) {
    const place = document.getElementById(key);
    const curve = Boolean(place.closest(".curves"));
    const draw = () => {
      const aspect = figure.layout.meta?.aspect; // of a picture, whose height follows the width of the page
      const height = aspect ? Math.min(760, Math.round(0.9 * aspect * place.clientWidth + 48)) : figure.layout.height;
      if (height) place.style.height = `${height}px`;
      return Plotly.react(place, {
        data: figure.data, frames: figure.frames,
        layout: { ...figure.layout, height, template: theme(), autosize: true, ...(touch || curve ? { dragmode: false } : {}) },
        config: { ...config, displayModeBar: curve ? false : config.displayModeBar } });
    };
    drawn.push(draw);
  }
  if (data.map) drawn.push(map(data.map));

  function map({ views, ids, columns, items }) {
    const place = document.getElementById("map-plot");
    const legend = document.getElementById("map-legend");
    const panel = document.getElementById("item");
    const colourBy = document.getElementById("map-colour");
    const viewBy = document.getElementById("map-view");
    const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "x", "star"];
    const shapes = {
      circle: "M8 2a6 6 0 1 0 0 12a6 6 0 1 0 0-12z", diamond: "M8 0l7 8-7 8-7-8z", square: "M2.5 2.5h11v11h-11z",
      "triangle-up": "M8 1l7.5 13h-15z", "triangle-down": "M8 15l7.5-13h-15z", cross: "M5.5 1h5v4.500h4.500v5h-4.500v4.500h-5v-4.500h-4.500v-5h4.500z",
      x: "M3.500 0L8 4.500 12.500 0 16 3.500 11.500 8 16 12.500 12.500 16 8 11.500 3.500 16 0 12.500 4.500 8 0 3.500z",
      star: "M8 0l2.200 5.500 5.800.4-4.500 3.800 1.400 5.800L8 12.300l-4.900 3.200 1.400-5.800L0 5.900l5.800-.4z",
    };
    const canvas = document.createElement("canvas");
    const type = canvas.getContext("webgl") ? "scattergl" : "scatter";
    const size = ids.length > 2500 ? 5 : ids.length > 600 ? 6 : 8;
    const off = new Set();
    let kept = null, layers = [];

    // one layer a category, so that shape and colour say the same thing
    function layer() {
      const column = columns[colourBy.value];
      const [x, y] = views[viewBy.value];
      const { colorway } = theme().layout;
      const soft = theme().layout.xaxis.linecolor;
      const groups = new Map();
      const rows = ids.map((_, row) => row).filter((row) => x[row] !== null);
      for (const row of rows) {
        const key = !column ? 0 : column.numbers ? (column.numbers[row] === null ? -1 : 0) : column.codes[row];
        if (!groups.has(key)) groups.set(key, []);
        groups.get(key).push(row);
      }
      layers = [...groups.entries()].sort((a, b) => (a[0] < 0) - (b[0] < 0) || a[0] - b[0]).map(([key, members]) => {
        const other = key < 0 || (column?.other && key === column.names.length - 1);
        const marker = { size, opacity: 0.82, symbol: "circle", color: other ? soft : colorway[0], line: { width: 0 } };
        let name = "";
        if (key < 0) name = "missing";
        else if (column?.numbers) {
          Object.assign(marker, { color: members.map((row) => column.numbers[row]), colorscale: "Viridis", showscale: false });
        } else if (column) {
          name = column.names[key];
          if (!other) Object.assign(marker, { color: colorway[key % colorway.length], symbol: symbols[(key + Math.floor(key / colorway.length)) % 8] });
        }
        return { name, key, rows: members, marker, trace: {
          type, mode: "markers", name: plain(name), x: members.map((r) => x[r]), y: members.map((r) => y[r]),
          customdata: members, marker, hoverinfo: "none", showlegend: false, visible: !off.has(name),
        } };
      });
    }

    function draw() {
      layer();
      const [x, y] = views[viewBy.value];
      const ring = { type: "scatter", mode: "markers", x: [], y: [], hoverinfo: "skip", showlegend: false,
        marker: { size: size + 10, color: "rgba(0,0,0,0)", line: { width: 2, color: theme().layout.font.color } } };
      if (kept !== null && x[kept] !== null) { ring.x = [x[kept]]; ring.y = [y[kept]]; }
      const axis = { showgrid: false, zeroline: false, showticklabels: false, title: { text: "" } };
      const drawing = Plotly.react(place, [...layers.map((l) => l.trace), ring], {
        template: theme(), autosize: true, margin: { l: 12, r: 12, t: 12, b: 12 }, dragmode: touch ? false : "pan",
        hovermode: "closest", hoverdistance: 12, uirevision: viewBy.value,
        xaxis: { ...axis }, yaxis: { ...axis, scaleanchor: "x" },
      }, config);
      key();
      return drawing;
    }

    function key() {
      legend.replaceChildren();
      const column = columns[colourBy.value];
      if (column?.numbers) {
        const values = column.numbers.filter((v) => v !== null);
        const line = element("li", undefined, { class: "ramp" });
        const ramp = element("i");
        ramp.style.background = "linear-gradient(90deg,#440154,#414487,#2a788e,#22a884,#7ad151,#fde725)";
        const ends = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
        if (values.length) line.append(element("span", number(ends[0])), ramp, element("span", number(ends[1])));
        legend.append(line);
      }
      for (const { name, marker, rows } of layers) {
        if (!name) continue;
        const button = element("button", undefined, { type: "button", "aria-pressed": String(!off.has(name)) });
        button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${shapes[marker.symbol]}"/></svg>`;
        button.querySelector("path").style.fill = marker.color;
        button.append(`${name} (${rows.length.toLocaleString("en")})`);
        button.addEventListener("click", () => { off.has(name) ? off.delete(name) : off.add(name); draw(); });
        const line = element("li");
        line.append(button);
        legend.append(line);
      }
    }

    function show(row) {
      const item = items[row] || {};
      const parts = [];
      if (item.image) {
        const image = element("img", undefined, { src: item.image, alt: `Item ${ids[row]}` });
        image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth < 40));
        parts.push(image);
      }
      if (item.audio) parts.push(element("audio", undefined, { src: item.audio, controls: "" }));
      parts.push(element("h3", ids[row]));
      if (item.text) parts.push(element("p", item.text));
      const list = element("dl");
      for (const [name, column] of Object.entries(columns)) {
        const value = column.numbers ? number(column.numbers[row])
          : column.codes[row] < 0 ? "–" : column.all ? column.all[row] : column.names[column.codes[row]];
        const line = element("div");
        line.append(element("dt", name), element("dd", value));
        list.append(line);
      }
      parts.push(list);
      panel.replaceChildren(...parts);
    }

    const rowOf = (event) => event.points[0]?.customdata;
    colourBy.addEventListener("change", () => { off.clear(); draw(); });
    viewBy.addEventListener("change", draw);
    return () => draw().then(() => {
      if (place.dataset.listening) return;
      place.dataset.listening = "yes";
      place.on("plotly_hover", (event) => { if (kept === null && rowOf(event) !== undefined) show(rowOf(event)); });
      place.on("plotly_click", (event) => {
        const row = rowOf(event);
        if (row === undefined) return;
        kept = kept === row ? null : row;
        show(row);
        draw();
      });
    });
  }

  // one plot at a time, so that the page can be read while it is drawn
  const redraw = () => drawn.reduce((before, draw) => before.then(draw), Promise.resolve());
  redraw().then(() => { document.documentElement.dataset.drawn = drawn.length; });
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    redraw();
  });
  addEventListener("afterprint", () => { printing = false; redraw(); });
})();

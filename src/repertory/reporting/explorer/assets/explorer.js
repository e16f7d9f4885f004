"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none)").matches;
  const types = { f4: Float32Array, i4: Int32Array, i1: Int8Array };
  const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "x", "star"];
  const shapes = {
    circle: "M8 2a6 6 0 1 0 0 12a6 6 0 1 0 0-12z", diamond: "M8 0l7 8-7 8-7-8z", square: "M2.5 2.5h11v11h-11z",
    "triangle-up": "M8 1l7.5 13h-15z", "triangle-down": "M8 15l7.5-13h-15z", cross: "M5.5 1h5v4.500h4.500v5h-4.500v4.500h-5v-4.500h-4.500v-5h4.500z",
    x: "M3.500 0L8 4.500 12.500 0 16 3.500 11.500 8 16 12.500 12.500 16 8 11.500 3.500 16 0 12.500 4.500 8 0 3.500z",
    star: "M8 0l2.200 5.500 5.800.4-4.500 3.800 1.400 5.800L8 12.300l-4.900 3.200 1.400-5.800L0 5.900l5.800-.4z",
  };
  const ramp = [[0, "#440154"], [0.2, "#414487"], [0.4, "#2a788e"], [0.6, "#22a884"], [0.8, "#7ad151"], [1, "#fde725"]];
  const gl = (() => {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl"));
  })();
  let plane = null, colours = null, templates = null, layers = [], rings = {};
  const off = new Set();

  const unpack = ({ dtype, bdata }) => {
    const text = atob(bdata.replace(/-/g, "+").replace(/_/g, "/")), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new types[dtype](bytes.buffer);
  };
  const theme = () => templates[dark.matches ? "dark" : "light"];
  const graph = () => document.querySelector("#map .js-plotly-plot");
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const number = (value) => Number(value.toPrecision(4)).toLocaleString("en");
  const say = (chosen) => dash_clientside.set_props("chosen", { data: chosen });

  function range(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    const room = 0.04 * (high - low) || 1;
    return low <= high ? [low - room, high + room] : [-1, 1];
  }

  // one layer a category, so that shape and colour say the same thing; missing values are code -1
  function layer() {
    const { x, y } = plane, total = x.length;
    const codes = colours.codes || Int8Array.from(colours.numbers || { length: total }, (v) => Number.isNaN(v) ? -1 : 0);
    const counts = new Map();
    for (let i = 0; i < total; i++) if (x[i] === x[i]) counts.set(codes[i], (counts.get(codes[i]) || 0) + 1);
    const placed = [...counts.values()].reduce((a, b) => a + b, 0);
    const size = placed > 50000 ? 3 : placed > 10000 ? 4 : placed > 2500 ? 5 : placed > 600 ? 6 : 8;
    const { colorway } = theme().layout, soft = theme().layout.xaxis.linecolor;
    const made = new Map([...counts].sort((a, b) => (a[0] < 0) - (b[0] < 0) || a[0] - b[0]).map(([code, n]) => {
      const other = code < 0 || (colours.other && code === colours.names.length - 1);
      const name = code < 0 ? "missing" : colours.names ? colours.names[code] : "";
      const marker = { size, opacity: placed > 10000 ? 0.65 : 0.82, symbol: "circle", color: other ? soft : colorway[0], line: { width: 0 } };
      if (code >= 0 && colours.numbers) Object.assign(marker, { color: new Float32Array(n), colorscale: ramp, showscale: false });
      else if (colours.names && !other) Object.assign(marker, { color: colorway[code % colorway.length], symbol: symbols[(code + Math.floor(code / colorway.length)) % 8] });
      const trace = {
        type: gl ? "scattergl" : "scatter", mode: "markers", name: plain(name), marker, hoverinfo: "none", showlegend: false,
        x: new Float32Array(n), y: new Float32Array(n), customdata: new Int32Array(n), visible: !off.has(name),
      };
      return [code, { name, n, marker, trace, filled: 0 }];
    }));
    for (let i = 0; i < total; i++) {
      if (x[i] !== x[i]) continue;
      const one = made.get(codes[i]), at = one.filled++;
      one.trace.x[at] = x[i];
      one.trace.y[at] = y[i];
      one.trace.customdata[at] = plane.rows ? plane.rows[i] : i;
      if (one.marker.color instanceof Float32Array) one.marker.color[at] = colours.numbers[i];
    }
    layers = [...made.values()];
  }

  function figure() {
    layer();
    legend();
    const axis = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", title: { text: "" } };
    return {
      data: layers.map((one) => one.trace),
      layout: {
        template: theme(), autosize: true, margin: { l: 0, r: 0, t: 0, b: 0 }, dragmode: touch ? false : "pan",
        hovermode: "closest", hoverdistance: 12, uirevision: plane.view, shapes: circles(),
        xaxis: { ...axis, range: range(plane.x) }, yaxis: { ...axis, range: range(plane.y), scaleanchor: "x" },
      },
    };
  }

  // rings of a fixed size in pixels around the kept item and its neighbours: moving them redraws no point
  function circles() {
    const around = (row, radius, width) => {
      const i = plane.rows ? plane.rows.indexOf(row) : row;
      if (i < 0 || !(plane.x[i] === plane.x[i])) return [];
      return [{
        type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: plane.x[i], yanchor: plane.y[i],
        x0: -radius, x1: radius, y0: -radius, y1: radius, line: { width, color: theme().layout.font.color },
      }];
    };
    const kept = rings.row === null || rings.row === undefined ? [] : around(rings.row, 9, 2.5);
    return [...(rings.near || []).flatMap((row) => around(row, 6, 1.2)), ...kept];
  }

  function legend() {
    const place = document.getElementById("legend");
    place.replaceChildren();
    const line = (...parts) => {
      const made = document.createElement("li");
      made.append(...parts);
      place.append(made);
      return made;
    };
    if (colours.numbers) {
      const values = colours.numbers.filter((v) => v === v);
      const text = (value) => Object.assign(document.createElement("span"), { textContent: number(value) });
      const bar = document.createElement("i");
      bar.style.background = `linear-gradient(90deg,${ramp.map(([, colour]) => colour)})`;
      if (values.length) line(text(values.reduce((a, b) => Math.min(a, b))), bar, text(values.reduce((a, b) => Math.max(a, b)))).className = "ramp";
    }
    layers.forEach(({ name, n, marker }, index) => {
      if (!name) return;
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!off.has(name)));
      button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${shapes[marker.symbol]}"/></svg>`;
      button.querySelector("path").style.fill = marker.color;
      button.append(`${name} (${n.toLocaleString("en")})`);
      button.addEventListener("click", () => {
        off.has(name) ? off.delete(name) : off.add(name);
        button.setAttribute("aria-pressed", String(!off.has(name)));
        Plotly.restyle(graph(), { visible: !off.has(name) }, [index]);
      });
      line(button);
    });
  }

  let last = 0;
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const same = () => window.dash_clientside.no_update;

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.explorer = {
    draw(packedPlane, packedColours, given) {
      if (!packedPlane || !packedColours) return same();
      templates = given;
      if (plane?.packed !== packedPlane) {
        plane = { packed: packedPlane, view: packedPlane.view, x: unpack(packedPlane.x), y: unpack(packedPlane.y) };
        if (packedPlane.rows) plane.rows = unpack(packedPlane.rows);
      }
      if (colours?.packed !== packedColours) {
        const { names, other, codes, numbers } = packedColours;
        off.clear();
        colours = { packed: packedColours, names, other, codes: codes && unpack(codes), numbers: numbers && unpack(numbers) };
      }
      return figure();
    },
    async hover(event, chosen) { // a moving mouse asks for the item that it rests on
      const row = event?.points[0]?.customdata;
      const mine = ++last;
      await pause(40);
      return chosen || row === undefined || mine !== last ? same() : row;
    },
    ask(submitted, clicked, text) {
      return { query: text || "" };
    },
    mark(given) {
      rings = given || {};
      if (graph()) Plotly.relayout(graph(), { shapes: circles() });
    },
  };

  let playing = null;
  document.addEventListener("click", (event) => {
    const row = event.target.closest("[data-row]"), sound = event.target.closest("[data-audio]");
    if (row) say({ row: Number(row.dataset.row) });
    if (sound) {
      playing?.pause();
      playing = new Audio(sound.dataset.audio);
      playing.play();
    }
    if (event.target.closest("[data-clear]")) say(null);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && (rings.row ?? rings.near) !== undefined) say(null);
  });
  dark.addEventListener("change", () => { if (plane && colours) dash_clientside.set_props("map", { figure: figure() }); });

  // the same point clicked twice is two clicks, which a property of the same value would hide
  const listen = () => {
    const place = graph();
    if (!place?.on) { setTimeout(listen, 50); return; }
    place.on("plotly_click", (event) => {
      const row = event.points[0]?.customdata;
      if (row !== undefined) say(rings.row === row ? null : { row });
    });
    place.on("plotly_afterplot", () => {
      if (layers.length && !document.documentElement.dataset.drawn) document.documentElement.dataset.drawn = Math.round(performance.now());
    });
  };
  listen();
})();

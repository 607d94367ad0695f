"use strict";
// Draws the points of #data with plotly. Colours of text, grid and outlines are the style sheet's, which knows dark and print.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  // Plotly reads texts as a little HTML.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text) => plain(text.length > 36 ? `${text.slice(0, 35)}\u2026` : text);
  const folded = (text) => plain(text).replace(/(?![^&]*;)(.{48,60}?[ ,_/.-]|.{60})/g, "$1<br>");
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#aa4499"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon"];
  const style = (place) => ({ color: COLORS[place % 8], symbol: SYMBOLS[(place + Math.floor(place / 8)) % 8] });
  const said = (point, axes) => [point.label, ...axes.map((axis) => `${data.axes[axis].title}: ${point.texts[axis]}`)];

  const si = (value) => {
    const [size, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size) ?? [1, ""];
    return `${Number((value / size).toPrecision(4))}${prefix && ` ${prefix}`}`;
  };
  // 1, 2, 5, 10 and so on; the powers of ten alone where those are many, equal steps where they are few.
  const steps = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++) found.push(...[1, 2, 5].map((lead) => Number(`${lead}e${power}`)));
    const within = found.filter((step) => step >= low / 1.3 && step <= high * 1.3);
    if (within.length > 9) return within.filter((step) => Number.isInteger(Math.log10(step)));
    if (within.length > 3 || high <= low) return within;
    const equal = found.reverse().find((step) => step <= (high - low) / 3) ?? 10 ** Math.floor(Math.log10((high - low) / 3));
    const first = Math.ceil(low / equal);
    return Array.from({ length: Math.floor(high / equal) - first + 1 }, (_, place) => (first + place) * equal);
  };

  const axis = (name, values, scaling) => {
    const low = Math.min(...values), high = Math.max(...values), log = low > 0 && (scaling || high > 20 * low);
    const own = [...new Set(values)];
    const tickvals = !log ? undefined : scaling && own.length < 9 && name in { side_px: 0, batch_size: 0 } ? own : steps(low, high);
    return { title: { text: data.axes[name].title }, type: log ? "log" : "linear", exponentformat: "SI", automargin: true, zeroline: false,
      tickvals, ticktext: tickvals?.map(si), fixedrange: matchMedia("(pointer: coarse)").matches };
  };

  for (const section of document.querySelectorAll(".plotted")) {
    const plot = section.querySelector(".plot"), live = section.querySelector(".said");
    const selects = [...section.querySelectorAll("select")];
    const scaling = section.id === "scaling";
    let order = [], at = -1;

    const draw = () => {
      const [x, y] = selects.map((select) => select.value);
      const there = (place) => data.points[place].values[x] != null && data.points[place].values[y] != null;
      const value = (place, name) => data.points[place].values[name] * data.axes[name].scale;
      const hollow = (place) => [x, y].includes("top1") && data.points[place].more_data;
      const groups = (scaling ? data.lines[x] : data.families)
        .map(({ name, points }) => ({ name, points: points.filter(there) }))
        .filter(({ points }) => points.length > (scaling ? 1 : 0));
      const traces = groups.map(({ name, points }, place) => ({
        name: short(name), x: points.map((one) => value(one, x)), y: points.map((one) => value(one, y)), customdata: points,
        text: points.map((one) => said(data.points[one], [x, y]).map(folded).join("<br>")), hoverinfo: "text",
        marker: { ...style(place), symbol: points.map((one) => style(place).symbol + (hollow(one) ? "-open" : "")), size: 9, line: { width: 0.7 } },
        mode: scaling ? "lines+markers" : "markers", line: { color: style(place).color },
      }));
      const front = scaling ? [] : data.fronts[`${x} ${y}`] ?? [];
      if (front.length > 1) traces.push({ name: "Pareto front", x: front.map((one) => value(one, x)), y: front.map((one) => value(one, y)),
        mode: "lines", line: { dash: "dot", width: 1.5, color: "#888888" }, hoverinfo: "skip" });
      const all = traces.flatMap((trace) => (trace.customdata ?? []));
      order = traces.flatMap((trace, curveNumber) => (trace.customdata ?? []).map((one, pointNumber) => ({ curveNumber, pointNumber, one })));
      if (!scaling) order.sort((a, b) => value(a.one, x) - value(b.one, x));
      at = -1;
      const wide = plot.clientWidth > 640;
      Plotly.react(plot, traces, {
        xaxis: axis(x, all.map((one) => value(one, x)), scaling), yaxis: axis(y, all.map((one) => value(one, y)), scaling),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 13 },
        margin: { l: 20, r: 10, t: 10, b: 20 }, hovermode: "closest", showlegend: wide, legend: { font: { size: 11 } },
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
        hoverlabel: { bgcolor: "#222222", bordercolor: "#222222", align: "left", font: { color: "#ffffff" } },
      }, { displayModeBar: false, responsive: true, showTips: false });
      const names = [...new Set(front.map((one) => data.points[one].label))];
      live.textContent = names.length ? `On the Pareto front: ${names.join("; ")}.` : `${all.length} points.`;
    };

    for (const select of selects) select.addEventListener("change", draw);
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? order.length - 1 : at - 1, Home: 0, End: order.length - 1 }[event.key];
      if (to === undefined || !order.length) return;
      event.preventDefault();
      at = (to + order.length) % order.length;
      Plotly.Fx.hover(plot, [order[at]]);
      live.textContent = said(data.points[order[at].one], selects.map((select) => select.value)).join(", ");
    });
    draw();
    // A sheet is as wide as it is, whatever the window.
    addEventListener("beforeprint", () => Plotly.relayout(plot, { width: 1000, height: 520, showlegend: true }));
    addEventListener("afterprint", () => Plotly.relayout(plot, { width: null, height: null, autosize: true, showlegend: plot.clientWidth > 640 }));
  }
}

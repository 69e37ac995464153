// The page of `kvfold inspect --html`: draws what is in one cache, or in two and their difference. Everything that it
// needs is in the page: the data as JSON in the element "data", arrays in it as base64 of little-endian f32.
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const caches = data.caches;
const pair = caches.length === 2;
const [first] = caches;
const state = { layer: 0, query: 0, row: null, scale: 'relative', difference: 'distance' };
const PARTS = [['k', 'K'], ['v', 'V']];

// ---- data ----

function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
for (const cache of caches) {
  for (const [part] of PARTS) {
    cache[part].norms = floats(cache[part].norms);      // [layers][kv_heads][rows], negative: the lane lacks the row
    cache[part].spectra = floats(cache[part].spectra);  // [layers][kv_heads][head_dim], padded with zeros
  }
  if (cache.attention) cache.attention.weights = floats(cache.attention.weights);  // [layers][heads][queries][rows]
}
if (data.distances) for (const [part] of PARTS) data.distances[part] = floats(data.distances[part]);

const range = (n) => Array.from({ length: n }, (_, i) => i);
const held = (x) => x !== null && x >= 0;
const mean = (values) => (values.length ? values.reduce((sum, x) => sum + x, 0) / values.length : null);
function quantile(sorted, q) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(q * (sorted.length - 1))))] : 0;
}
const sortedValues = (matrix) => matrix.flat().filter((x) => x !== null && Number.isFinite(x)).sort((a, b) => a - b);

// One lane's values by row, null where the lane lacks the row.
function laneRows(cache, values, layer, head) {
  const begin = (layer * cache.kv_heads + head) * cache.rows;
  return Array.from(values.subarray(begin, begin + cache.rows), (x) => (x < 0 ? null : x));
}
// Norms as they are, or as log2 of their ratio to the lane's median.
function scaled(rows) {
  if (state.scale === 'norm') return rows;
  const median = quantile(rows.filter((x) => x !== null && x > 0).sort((a, b) => a - b), 0.5);
  return rows.map((x) => (x !== null && x > 0 && median > 0 ? Math.log2(x / median) : null));
}
const meanOverHeads = (heads) => heads[0].map((_, row) => mean(heads.map((h) => h[row]).filter((x) => x !== null)));

// ---- words ----

const escapeHtml = (text) => text.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c]);
const visible = (text) => text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/^ /, '·').replace(/ /g, '\u00a0');
function tokenText(cache, row) {
  return cache.texts ? visible(cache.texts[row]) : `#${cache.tokens[row]}`;
}
function shortToken(cache, row) {
  const text = [...tokenText(cache, row)];
  return text.length > 11 ? text.slice(0, 10).join('') + '…' : text.join('');
}
function originText(cache, row) {
  const origin = cache.origins[row];
  if (!origin) return 'the query';
  const [source, from, operations] = origin;
  return `${cache.sources[source]}, row ${from}${operations ? ` (${operations})` : ''}`;
}
function rowText(cache, row) {
  return `<b>${escapeHtml(tokenText(cache, row))}</b>  token ${cache.tokens[row]}<br>row ${row}, position ${cache.positions[row]}` +
    `<br>from ${escapeHtml(originText(cache, row))}`;
}
const letter = (index) => (pair ? `${'AB'[index]}: ` : '');
const fileName = (cache) => cache.file.split('/').pop();
function runs(positions) {
  const out = [];
  for (const p of positions) {
    const last = out[out.length - 1];
    if (last && last[1] + 1 === p) last[1] = p;
    else out.push([p, p]);
  }
  const text = out.slice(0, 4).map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(', ');
  return out.length > 4 ? `${text}, …` : text || 'none';
}

// ---- elements ----

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== 'list') element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const drawers = [];  // {uses: names of the parts of `state` that the drawing depends on, draw}
function redraw(...changed) {
  for (const { uses, draw } of drawers) if (changed.length === 0 || uses.some((u) => changed.includes(u))) draw();
}
function set(changes) {
  Object.assign(state, changes);
  redraw(...Object.keys(changes));
}

// A panel with one plot for each of `plots`: {label, draw(div)}.
function panel(name, title, note, { wide = false, uses = [], plots = [], content = [] } = {}) {
  const section = make('section', { className: wide ? 'panel wide' : 'panel' }, make('h2', { textContent: title }));
  section.dataset.panel = name;
  if (note) section.append(make('p', { className: 'note', textContent: note }));
  section.append(...content);
  const grid = make('div', { className: plots.length > 1 ? 'side-by-side' : '' });
  for (const { label, draw } of plots) {
    const plot = make('div', { className: 'plot' });
    const cell = make('div', {}, plot);
    if (label) cell.prepend(make('h3', { textContent: label }));
    grid.append(cell);
    drawers.push({ uses, draw: () => draw(plot) });
  }
  if (plots.length) section.append(grid);
  return section;
}

// ---- colours ----

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = () => matchMedia('(prefers-color-scheme: dark)').matches;
// Blue, neutral, orange: told apart with any kind of colour vision; its middle is the paper's.
const diverging = () => (dark()
  ? [[0, '#7cc4ff'], [0.25, '#2c75ad'], [0.5, '#23282f'], [0.75, '#b3622a'], [1, '#ffb27a']]
  : [[0, '#0a4a82'], [0.25, '#5f9fd3'], [0.5, '#f3f1ec'], [0.75, '#e39a5f'], [1, '#8f3d00']]);
const CIVIDIS = 'Cividis';
// A colour of the cividis scale (Nunez et al. 2018) for lines; on dark paper its dark end is left out, on light the light.
function lineColour(share) {
  const stops = [[0, 32, 77], [60, 77, 110], [124, 123, 120], [187, 175, 113], [255, 234, 70]];
  const at = (dark() ? 0.25 + 0.75 * share : 0.85 * share) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(at));
  return `rgb(${stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i))).join(',')})`;
}

// ---- plots ----

// Dragging zooms and a double click returns; not on a phone, where dragging scrolls the page.
const CONFIG = { displayModeBar: false, responsive: true };

function draw(div, traces, layout) {
  const axis = { gridcolor: style('--line'), zeroline: false, linecolor: style('--line'), ticks: '', fixedrange: false };
  const full = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: style('--soft') },
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', margin: { l: 44, r: 8, t: 8, b: 36 },
    hoverlabel: { align: 'left', bgcolor: style('--card'), bordercolor: style('--line'), font: { color: style('--ink'), size: 12 } },
    showlegend: false, dragmode: innerWidth < 600 ? false : 'zoom', ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  Plotly.react(div, traces, full, CONFIG);
}

function colourBar(extra) {
  return { thickness: 10, outlinewidth: 0, len: 1, lenmode: 'fraction', y: 0.5, xpad: 6, tickfont: { size: 11 }, ...extra };
}

// A matrix over rows of a cache: z[y][row]. `texts`: what a row is, for the hover; `values`: what the hover tells.
function heatMap(div, cache, { z, values, names, yTitle, colours, tell, rowCount = cache.rows }) {
  const width = div.clientWidth - 110;
  const perRow = width / rowCount;
  const many = names.length;
  const height = Math.max(96, Math.min(380, many * (many > 12 ? 11 : 26)));
  const step = Math.ceil(many / (height / 15));
  const texts = range(rowCount).map((row) => rowText(cache, row));
  const words = perRow >= 13;
  const ticks = words ? { tickmode: 'array', tickvals: range(rowCount), tickangle: -90, automargin: true, showgrid: false,
                          ticktext: range(rowCount).map((row) => escapeHtml(shortToken(cache, row))) }
                      : { title: { text: 'row', standoff: 4 }, nticks: Math.max(3, Math.floor(width / 60)), showgrid: false };
  const trace = {
    type: 'heatmap', z, y: names, text: names.map(() => texts), customdata: values, hoverongaps: false,
    hovertemplate: `%{text}<br>${tell}<extra></extra>`, zmin: colours.min, zmax: colours.max, colorscale: colours.scale,
    colorbar: colourBar(colours.bar), xgap: perRow > 12 ? 1 : 0, ygap: perRow > 12 && height / many > 8 ? 1 : 0,
  };
  const shapes = state.row !== null && state.row < rowCount
    ? [{ type: 'rect', x0: state.row - 0.5, x1: state.row + 0.5, y0: 0, y1: 1, yref: 'paper', line: { color: style('--ink'), width: 1.5 } }] : [];
  draw(div, [trace], {
    height: height + (words ? 90 : 60), shapes, plot_bgcolor: style('--wash'),
    xaxis: { range: [-0.5, rowCount - 0.5], ...ticks },
    yaxis: { autorange: 'reversed', title: { text: yTitle, standoff: 6 }, showgrid: false, tickmode: 'array',
             tickvals: names.filter((_, i) => i % step === 0) },
  });
  if (!div.clickable) {
    div.clickable = true;
    div.on('plotly_click', ({ points: [p] }) => set({ row: state.row === p.x ? null : p.x, ...(yTitle === 'layer' ? { layer: p.y } : {}) }));
  }
}

// Colours for norms in the chosen scale; the ends are the 1st and 99th percentile.
function normColours(matrices) {
  const sorted = sortedValues(matrices.flat());
  const low = quantile(sorted, 0.01);
  const high = quantile(sorted, 0.99);
  if (state.scale === 'norm') return { scale: CIVIDIS, min: low, max: high, bar: {} };
  const reach = Math.max(0.05, Math.abs(low), Math.abs(high));
  const marks = [-0.9, -0.45, 0, 0.45, 0.9].map((share) => share * reach);
  return { scale: diverging(), min: -reach, max: reach,
           bar: { tickmode: 'array', tickvals: marks, ticktext: marks.map((x) => (x === 0 ? '1×' : `${(2 ** x).toFixed(2)}×`)) } };
}

// ---- the norms' panels ----

const layerMatrix = (cache, values, transform) => range(cache.layers).map((layer) =>
  meanOverHeads(range(cache.kv_heads).map((head) => transform(laneRows(cache, values, layer, head)))));
const headMatrix = (cache, values, transform) => range(cache.kv_heads).map((head) =>
  transform(laneRows(cache, values, Math.min(state.layer, cache.layers - 1), head)));
const asIs = (rows) => rows;

// What is shown of the difference: distances of vectors, |b - a| / |a|, or B's norm over A's, as log2.
function differenceMatrix(part, matrix) {
  const [a, b] = caches;
  const common = { ...a, rows: Math.max(a.rows, b.rows) };
  if (state.difference === 'distance') {
    const relative = data.distances[part].map((d, i) => {
      const norm = a[part].norms[Math.floor(i / common.rows) * a.rows + (i % common.rows)];
      return d < 0 || !(norm > 0) ? -1 : d / norm;
    });
    return matrix(common, relative, asIs);
  }
  const of = [matrix(a, a[part].norms, asIs), matrix(b, b[part].norms, asIs)];
  return of[0].map((rows, y) => range(common.rows).map((row) => {
    const x = rows[row];
    const other = of[1][y][row];
    return x > 0 && other > 0 ? Math.log2(other / x) : null;
  }));
}

function drawDifference(div, part, matrix, names, yTitle) {
  const longer = caches[0].rows >= caches[1].rows ? caches[0] : caches[1];
  const z = differenceMatrix(part, matrix);
  const sorted = sortedValues(z);
  const distance = state.difference === 'distance';
  const reach = Math.max(1e-6, Math.abs(quantile(sorted, 0.01)), Math.abs(quantile(sorted, 0.99)));
  heatMap(div, longer, {
    z, values: z, names: names(longer), yTitle, colours: distance ? { scale: CIVIDIS, min: 0, max: reach, bar: {} }
                                                                   : { scale: diverging(), min: -reach, max: reach, bar: {} },
    tell: `${yTitle} %{y}: ${distance ? 'distance %{z:.4g} of A’s norm' : 'log2(B / A) %{z:.3f}'}`,
  });
}

function normPanel(part, word, kind) {
  const byLayer = kind === 'layer';
  const matrix = byLayer ? layerMatrix : headMatrix;
  const names = (cache) => range(byLayer ? cache.layers : cache.kv_heads);
  const all = () => caches.map((cache) => matrix(cache, cache[part].norms, scaled));
  const plots = caches.map((cache, index) => ({
    label: pair ? `${letter(index)}${fileName(cache)}` : '',
    draw: (div) => heatMap(div, cache, {
      z: matrix(cache, cache[part].norms, scaled), values: matrix(cache, cache[part].norms, asIs), names: names(cache), yTitle: kind,
      colours: normColours(all()), tell: `${kind} %{y}: ${word} norm %{customdata:.4g}`,
    }),
  }));
  if (data.distances)
    plots.push({ label: 'difference', draw: (div) => drawDifference(div, part, matrix, names, kind) });
  return panel(`${part}-${kind}-row`, `${word}: ${kind} × row`,
               byLayer ? `Norms of ${word} vectors, mean over heads.` : `Norms of ${word} vectors in the chosen layer.`,
               { wide: pair || first.rows > 48, uses: ['scale', 'difference', 'row', ...(byLayer ? [] : ['layer'])], plots });
}

// ---- attention ----

function attentionRows(cache) {  // the cache with the query's tokens behind it
  const q = cache.attention;
  return { ...cache, rows: q.rows, tokens: [...cache.tokens, ...q.tokens], positions: [...cache.positions, ...q.positions],
           texts: cache.texts && [...cache.texts, ...q.texts] };
}
function weightsOf(cache, layer, head) {
  const q = cache.attention;
  const begin = ((layer * q.heads + head) * q.queries.length + state.query) * q.rows;
  return Array.from(q.weights.subarray(begin, begin + q.rows));
}
const LEAST_WEIGHT = 1e-4;
const logWeight = (w) => (w > 0 ? Math.log10(Math.max(w, LEAST_WEIGHT)) : null);
const attentionColours = { scale: CIVIDIS, min: -4, max: 0,
                           bar: { tickmode: 'array', tickvals: [-4, -3, -2, -1, 0], ticktext: ['≤0.0001', '0.001', '0.01', '0.1', '1'] } };

function attentionMatrix(cache, byLayer) {
  const q = cache.attention;
  if (!byLayer) return range(q.heads).map((head) => weightsOf(cache, Math.min(state.layer, cache.layers - 1), head));
  return range(cache.layers).map((layer) => {
    const heads = range(q.heads).map((head) => weightsOf(cache, layer, head));
    return heads[0].map((_, row) => mean(heads.map((h) => h[row])));
  });
}

function attentionPanel(kind) {
  const byLayer = kind === 'layer';
  const plots = caches.map((cache, index) => ({
    label: pair ? `${letter(index)}${fileName(cache)}` : '',
    draw: (div) => {
      const w = attentionMatrix(cache, byLayer);
      heatMap(div, attentionRows(cache), { z: w.map((row) => row.map(logWeight)), values: w, names: range(w.length), yTitle: kind,
                                           colours: attentionColours, tell: `${kind} %{y}: weight %{customdata:.4f}` });
    },
  }));
  if (pair && first.attention.rows === caches[1].attention.rows && data.distances)
    plots.push({ label: 'difference, B − A', draw: (div) => {
      const [a, b] = caches.map((cache) => attentionMatrix(cache, byLayer));
      const z = a.map((row, y) => row.map((w, x) => b[y][x] - w));
      const reach = Math.max(1e-3, ...sortedValues(z).map(Math.abs));
      heatMap(div, attentionRows(first), { z, values: z, names: range(z.length), yTitle: kind,
                                           colours: { scale: diverging(), min: -reach, max: reach, bar: {} },
                                           tell: `${kind} %{y}: B − A %{z:.4f}` });
    } });
  const note = byLayer ? 'Weights of the chosen query token, mean over query heads; logarithmic colours.'
                       : 'Weights of the chosen query token over rows, in the chosen layer; logarithmic colours.';
  return panel(`attention-${kind}-row`, `Attention: ${kind} × row`, note,
               { wide: pair || first.attention.rows > 48, uses: ['query', 'row', ...(byLayer ? [] : ['layer'])], plots });
}

// ---- spectra and ranks ----

function spectrum(cache, part, layer, head) {  // singular values over the largest
  const begin = (layer * cache.kv_heads + head) * cache.head_dim;
  const values = Array.from(cache[part].spectra.subarray(begin, begin + cache.head_dim));
  return values[0] > 0 ? values.filter((x) => x > 1e-6 * values[0]).map((x) => x / values[0]) : [];
}
function meanSpectrum(cache, part, layer) {
  const heads = range(cache.kv_heads).map((head) => spectrum(cache, part, layer, head));
  return range(Math.min(...heads.map((h) => h.length))).map((i) => mean(heads.map((h) => h[i])));
}

function drawSpectra(div, cache, part) {
  const chosen = Math.min(state.layer, cache.layers - 1);
  const trace = (layer) => {
    const y = meanSpectrum(cache, part, layer);
    const isChosen = layer === chosen;
    return { type: 'scatter', mode: 'lines', x: range(y.length).map((i) => i + 1), y, name: `layer ${layer}`,
             line: { color: isChosen ? style('--b') : lineColour(cache.layers > 1 ? layer / (cache.layers - 1) : 0), width: isChosen ? 3 : 1 },
             hovertemplate: `layer ${layer}, value %{x}: %{y:.3g} of the largest<extra></extra>` };
  };
  const order = range(cache.layers).filter((layer) => layer !== chosen).concat(chosen);
  const traces = order.map(trace).filter((t) => t.y.length > 0);
  draw(div, traces, { height: 300, hovermode: 'closest', xaxis: { title: { text: 'singular value, by size', standoff: 4 } },
                      yaxis: { type: 'log', title: { text: 'share of the largest', standoff: 6 }, tickformat: '~g', dtick: 'D2' },
                      margin: { l: 60, r: 8, t: 8, b: 40 } });
}

function spectraPanel(part, word) {
  const plots = caches.map((cache, index) => ({
    label: pair ? `${letter(index)}${fileName(cache)}` : '', draw: (div) => drawSpectra(div, cache, part),
  }));
  if (data.distances)
    plots.push({ label: 'both, in the chosen layer', draw: (div) => {
      const traces = caches.map((cache, index) => {
        const y = meanSpectrum(cache, part, state.layer);
        return { type: 'scatter', mode: 'lines', x: range(y.length).map((i) => i + 1), y, name: 'AB'[index],
                 line: { color: style(index ? '--b' : '--a'), width: 2, dash: index ? 'dash' : 'solid' },
                 hovertemplate: `${'AB'[index]}, value %{x}: %{y:.3g} of the largest<extra></extra>` };
      });
      draw(div, traces, { height: 300, showlegend: true, legend: { orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0 },
                          xaxis: { title: { text: 'singular value, by size', standoff: 4 } },
                          yaxis: { type: 'log', tickformat: '~g', dtick: 'D2' }, margin: { l: 60, r: 8, t: 30, b: 40 } });
    } });
  return panel(`${part}-spectra`, `${word}: spectra by layer`,
               'Singular values of the rows, mean over heads; from dark (first layer) to bright (last), the chosen layer in orange.',
               { wide: pair, uses: ['layer'], plots });
}

function rankPanel() {
  const of = (part, word, key, name, dash) => caches.map((cache, index) => {
    const y = range(cache.layers).map((layer) => mean(range(cache.kv_heads).map((h) => cache[part][key][layer * cache.kv_heads + h])));
    return { type: 'scatter', mode: 'lines+markers', x: range(cache.layers), y, name: `${letter(index)}${word} ${name}`,
             line: { color: style(part === 'k' ? '--a' : '--b'), width: index ? 1.2 : 2, dash },
             marker: { size: 5, symbol: index ? 'diamond-open' : part === 'k' ? 'circle' : 'square' },
             hovertemplate: `layer %{x}: ${letter(index)}${word} ${name} %{y:.2f}<extra></extra>` };
  });
  const lines = () => [...of('k', 'K', 'effective_rank', 'exp(entropy)', 'solid'), ...of('v', 'V', 'effective_rank', 'exp(entropy)', 'solid'),
                       ...of('k', 'K', 'rank_90', '90% of squares', 'dot'), ...of('v', 'V', 'rank_90', '90% of squares', 'dot')];
  const plot = { label: '', draw: (div) => {
    const narrow = div.clientWidth < 560;
    const entries = 4 * caches.length;
    draw(div, lines(), { height: 320 + (narrow ? 22 * entries / (pair ? 1 : 2) : 24), showlegend: true,
                         legend: narrow ? { orientation: 'h', y: -0.18, yanchor: 'top', x: 0 } : { orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0 },
                         xaxis: { title: { text: 'layer', standoff: 4 } }, yaxis: { rangemode: 'tozero', title: { text: 'rank', standoff: 6 } },
                         margin: { l: 48, r: 8, t: narrow ? 8 : 34, b: 40 } });
  } };
  return panel('rank', 'Effective rank by layer',
               'Mean over heads. exp(entropy) of the normalised singular values, and the fewest whose squares hold 90% of all.',
               { wide: true, plots: [plot] });
}

// ---- rows, lanes, head of the page ----

// All rows in reading order, shaded by how far their norm is from the median.
function rowsPanel() {
  const content = caches.map((cache, index) => {
    const strip = make('div', { className: 'strip scrolls', tabIndex: 0 });
    const averages = Object.fromEntries(PARTS.map(([part]) => [part, meanOverHeads(layerMatrix(cache, cache[part].norms, scaled))]));
    const reach = quantile(averages.k.filter((x) => x !== null).map(Math.abs).sort((a, b) => a - b), 0.9) || 1;
    strip.append(...range(cache.rows).flatMap((row) => {
      const share = Math.min(1, Math.abs(averages.k[row] ?? 0) / reach);
      const chip = make('span', { className: averages.k[row] < 0 ? 'chip low' : 'chip', textContent: tokenText(cache, row),
        title: `row ${row}, position ${cache.positions[row]}, token ${cache.tokens[row]}, from ${originText(cache, row)}; ` +
          PARTS.map(([part, word]) => `${word} ${averages[part][row] === null ? 'none' : `${(2 ** averages[part][row]).toFixed(2)}× the median norm`}`).join(', '),
        onclick: () => set({ row: state.row === row ? null : row }) });
      chip.style.setProperty('--share', `${Math.round(70 * share)}%`);
      chip.dataset.row = row;
      if (cache.origins[row][0] > 0) chip.classList.add('foreign');
      return cache.texts?.[row].endsWith('\n') ? [chip, make('br')] : [chip];
    }));
    drawers.push({ uses: ['row'], draw: () => {
      for (const chip of strip.querySelectorAll('.chosen')) chip.classList.remove('chosen');
      strip.querySelector(`[data-row="${state.row}"]`)?.classList.add('chosen');
    } });
    return make('div', {}, ...(pair ? [make('h3', { textContent: `${letter(index)}${fileName(cache)}` })] : []), strip);
  });
  return panel('rows', 'Rows', 'The tokens in slot order. Orange: K norm above the median of its lane; blue: below. Underlined: rows not fed here. ' +
               'A click marks a row in every panel.', { wide: true, content });
}

function lanesPanel() {
  const columns = [['rows', (c, i) => c.k.held[i], 0]];
  for (const [part, word] of PARTS)
    columns.push([`${word} norm`, (c, i) => c[part].mean_norm[i], 2], [`${word} least`, (c, i) => c[part].least_norm[i], 2],
                 [`${word} largest`, (c, i) => c[part].largest_norm[i], 2], [`${word} exp(H)`, (c, i) => c[part].effective_rank[i], 2],
                 [`${word} 90%`, (c, i) => c[part].rank_90[i], 0]);
  const tables = caches.map((cache, index) => {
    const head = make('tr', {}, ...['layer', 'head', ...columns.map(([name]) => name)].map((t) => make('th', { textContent: t })));
    const body = range(cache.layers * cache.kv_heads).map((lane) => make('tr', {},
      ...[Math.floor(lane / cache.kv_heads), lane % cache.kv_heads, ...columns.map(([, get, digits]) => get(cache, lane).toFixed(digits))]
        .map((t) => make('td', { textContent: t }))));
    const table = make('table', {}, make('thead', {}, head), make('tbody', {}, ...body));
    return make('div', {}, ...(pair ? [make('h3', { textContent: `${letter(index)}${fileName(cache)}` })] : []),
                make('div', { className: 'scrolls tall', tabIndex: 0 }, table));
  });
  return panel('lanes', 'Lanes', 'One line for each layer and KV head: norms over its rows, and effective ranks by both definitions.',
               { wide: true, content: [make('div', { className: pair ? 'side-by-side' : '' }, ...tables)] });
}

function cards(cache) {
  const facts = [['rows', cache.rows], ['shape', `${cache.layers} × ${cache.kv_heads} × ${cache.head_dim}`],
                 ['pages of', cache.dtype], ['positions', runs(cache.positions)], ['next position', cache.next_position],
                 ['from', [...new Set(cache.origins.map(([s]) => cache.sources[s]))].join(', ') || 'nothing']];
  return make('dl', { className: 'cards' }, ...facts.map(([name, value]) =>
    make('div', name === 'shape' ? { title: 'layers × KV heads × head_dim' } : {}, make('dt', { textContent: name }), make('dd', { textContent: value }))));
}

function header() {
  const out = [make('h1', { textContent: pair ? 'Two KV caches' : `KV cache ${fileName(first)}` })];
  caches.forEach((cache, index) => {
    const model = `${cache.model.name || 'a model without a name'} (${cache.model.architecture}, ${cache.model.fingerprint})`;
    out.push(make('p', { className: 'note', textContent: `${letter(index)}${pair ? `${fileName(cache)}, rows of ` : 'Rows of '}${model}` }), cards(cache));
  });
  for (const text of data.notes) out.push(make('p', { className: 'note', textContent: text }));
  return out;
}

function choice(key, label, options) {
  const select = make('select', { onchange: () => set({ [key]: Number.isInteger(state[key]) ? Number(select.value) : select.value }) },
    ...options.map(([value, text]) => make('option', { value, textContent: text, selected: value === state[key] })));
  return make('label', {}, label, select);
}

function controls() {
  const most = Math.max(...caches.map((c) => c.layers)) - 1;
  const number = make('output');
  const slider = make('input', { type: 'range', min: 0, max: most, oninput: () => set({ layer: Number(slider.value) }) });
  drawers.push({ uses: ['layer'], draw: () => { slider.value = number.value = state.layer; } });
  const out = [make('label', {}, 'layer', slider, number),
               choice('scale', 'norms', [['relative', 'over the lane’s median'], ['norm', 'as they are']])];
  if (data.distances) out.push(choice('difference', 'difference', [['distance', '|b − a| / |a|'], ['norms', 'of norms, log2(B / A)']]));
  if (first.attention)
    out.push(choice('query', 'query token', first.attention.queries.map((q, i) =>
      [i, `${q}: ${first.texts ? visible(first.attention.texts[q]) : first.attention.tokens[q]}`])));
  return make('div', { className: 'controls bar' }, ...out);
}

// ---- the page ----

function build() {
  const main = document.querySelector('main');
  state.layer = Math.floor(Math.min(...caches.map((c) => c.layers)) / 2);
  if (first.attention) state.query = first.attention.queries.length - 1;
  main.append(...header());
  if (caches.some((cache) => cache.rows === 0)) {
    main.append(make('p', { textContent: 'There are no rows to show.' }));
    return;
  }
  const panels = [rowsPanel(), ...PARTS.map(([p, w]) => normPanel(p, w, 'layer')), ...PARTS.map(([p, w]) => normPanel(p, w, 'head'))];
  if (first.attention) panels.push(attentionPanel('layer'), attentionPanel('head'));
  panels.push(...PARTS.map(([p, w]) => spectraPanel(p, w)), rankPanel(), lanesPanel());
  main.append(controls(), make('div', { className: 'panels' }, ...panels));
  redraw();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => redraw());
  let width = innerWidth;
  addEventListener('resize', () => {
    if (innerWidth !== width) redraw();
    width = innerWidth;
  });
}
build();

// The report's page: plots by plotly, tables that sort, the choice of model and framing, blinded rating.
'use strict';
const DATA = JSON.parse(document.getElementById('data').textContent);
const $ = (selector, under = document) => under.querySelector(selector);
const $$ = (selector, under = document) => [...under.querySelectorAll(selector)];

// ---- plots ----

// Strings that name a CSS variable, wherever they stand, become its value: colours are the page's, light or dark.
function coloured(value) {
  if (typeof value === 'string' && /^--[a-z0-9-]+$/.test(value))
    return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
  return value;
}

function layout(figure, width) {
  const axis = {color: '--soft', gridcolor: '--line', linecolor: '--line', tickfont: {color: '--ink', size: 12}, automargin: true,
                nticks: width < 500 ? 5 : 8};
  const own = figure.layout;
  return coloured({
    height: figure.height, showlegend: false, hovermode: 'closest', dragmode: false,
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', margin: {l: 10, r: 14, t: 10, b: 44},
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: '--ink'},
    hoverlabel: {bgcolor: '--card', bordercolor: '--line', font: {color: '--ink'}},
    ...own,
    xaxis: {...axis, ...own.xaxis, title: {font: {color: '--soft', size: 12}, standoff: 8, ...own.xaxis.title}},
    yaxis: {...axis, ...own.yaxis, title: {font: {color: '--soft', size: 12}, standoff: 8, ...own.yaxis.title}},
  });
}

function draw(figure) {
  const element = document.getElementById(figure.id);
  const traces = coloured(figure.traces);
  for (const trace of traces)
    if (trace.colorbar) trace.colorbar.tickfont = {color: coloured('--ink'), size: 12};
  Plotly.react(element, traces, layout(figure, element.clientWidth), {displayModeBar: false, responsive: true});
}

const drawAll = () => { DATA.figures.forEach(draw); drawNorms(); };

// ---- norms: the two maps are drawn again for each choice ----

function drawNorms() {
  const chooser = $('#norms-case');
  if (!chooser) return;
  const entry = DATA.norms[Number(chooser.value)];
  for (const part of ['key', 'value']) {
    const maps = [entry[`natural_${part}`], entry[`injected_${part}`]];
    // A few norms stand far out; the scale ends where 98% of them lie, so that the others differ too.
    const all = maps.flat(2).sort((a, b) => a - b);
    const ends = [all[0], all[Math.floor(0.98 * (all.length - 1))]];
    ['natural', 'injected'].forEach((kind, i) => draw({
      id: `norms-${kind}-${part}`, height: 330,
      traces: [{type: 'heatmap', z: maps[i], zmin: ends[0], zmax: ends[1], colorscale: 'Cividis',
                colorbar: {thickness: 10, len: 0.9, outlinewidth: 0},
                hovertemplate: 'row %{x}, layer %{y}: %{z:.4g}<extra></extra>'}],
      layout: {xaxis: {title: {text: 'row'}, zeroline: false, showgrid: false},
               yaxis: {title: {text: 'layer'}, zeroline: false, showgrid: false}},
    }));
  }
}

// ---- tables ----

function sortTable(header) {
  const table = header.closest('table');
  const column = [...header.parentElement.children].indexOf(header);
  const down = header.getAttribute('aria-sort') === 'ascending';
  for (const other of header.parentElement.children) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = (row) => row.children[column].dataset.sort ?? row.children[column].textContent;
  const number = (text) => (text === '' ? NaN : Number(text));
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    const [m, n] = [number(x), number(y)];
    if (Number.isNaN(m) !== Number.isNaN(n) && (x === '' || y === '')) return x === '' ? 1 : -1;  // what is not there is last
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

// ---- what is chosen is shown ----

function choose(group, value) {
  for (const button of $$(`.segments[data-group="${group}"] button`)) button.setAttribute('aria-pressed', button.value === value);
  const chosen = Object.fromEntries($$('.segments').map((s) => [s.dataset.group, $('[aria-pressed="true"]', s)?.value]));
  for (const element of $$('[data-model][data-framing]'))
    element.hidden = element.dataset.model !== chosen.model || element.dataset.framing !== chosen.framing;
}

// ---- rating: blinded, shuffled for each rater, kept in the browser, exported as a file ----

const rating = {rater: '', queue: [], at: 0, marks: {}};
const store = (rater) => `kvfold-ratings-${DATA.rating.run}-${rater}`;

function shuffled(ids, seed) {  // Fisher and Yates, with a small generator seeded by the rater's name
  let state = [...seed].reduce((h, c) => Math.imul(h ^ c.codePointAt(0), 16777619) >>> 0, 2166136261);
  const next = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32);
  const out = [...ids];
  for (let i = out.length - 1; i > 0; --i) {
    const j = Math.floor(next() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

function startRating() {
  const name = $('#rater').value.trim();
  if (!/^[A-Za-z0-9_-]{1,40}$/.test(name)) { $('#rate-state').textContent = 'A name of 1 to 40 letters, digits, - or _, please.'; return; }
  rating.rater = name;
  try { rating.marks = JSON.parse(localStorage.getItem(store(name)) ?? '{}'); } catch { rating.marks = {}; }
  rating.queue = shuffled(Object.keys(DATA.rating.items).sort(), name).filter((id) => !(id in rating.marks));
  rating.at = 0;
  $('#rate-box').hidden = false;
  showItem();
}

function showItem() {
  const total = Object.keys(DATA.rating.items).length;
  $('#rate-state').textContent = `${Object.keys(rating.marks).length} of ${total} rated by ${rating.rater}.`;
  const item = DATA.rating.items[rating.queue[rating.at]];
  $('#rate-prompt').textContent = item ? item.target : 'Nothing is left to rate.';
  $('#rate-said').textContent = item ? item.answer : 'Export the marks and put the file into the ratings folder of the run.';
}

function mark(value) {
  const id = rating.queue[rating.at];
  if (id === undefined) return;
  rating.marks[id] = value;
  try { localStorage.setItem(store(rating.rater), JSON.stringify(rating.marks)); } catch { /* the export still has them */ }
  rating.at += 1;
  showItem();
}

const exported = () => JSON.stringify({rater: rating.rater, ratings: rating.marks}, null, 1) + '\n';

function exportMarks() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([exported()], {type: 'application/json'}));
  link.download = `${rating.rater}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function rateKey(key) {
  if (key >= '1' && key <= '5') mark(Number(key));
  else if (key === 's') { rating.at = Math.min(rating.at + 1, rating.queue.length); showItem(); }
  else if (key === 'b') { rating.at = Math.max(rating.at - 1, 0); showItem(); }
}

// ---- all of it ----

for (const segments of $$('.segments'))
  for (const button of $$('button', segments)) button.addEventListener('click', () => choose(segments.dataset.group, button.value));
for (const header of $$('th'))
  $('button', header)?.addEventListener('click', () => sortTable(header));
$('#norms-case')?.addEventListener('change', drawNorms);
if ($('#rater')) {
  $('#rate-start').addEventListener('click', startRating);
  $('#rate-export').addEventListener('click', exportMarks);
  for (const button of $$('#rate-box button[value]')) button.addEventListener('click', () => rateKey(button.value));
  document.addEventListener('keydown', (event) => {
    if ($('#rate-box').hidden || event.target.closest('input, select') || event.ctrlKey || event.metaKey || event.altKey) return;
    rateKey(event.key);
  });
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
drawAll();

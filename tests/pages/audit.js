// What is wrong with a page as it is drawn now: a list of complaints. Called by check_page.py as
// (function)(names), with the names of the panels that must be there.
(function (names) {
  const complaints = [];
  const box = (element) => element.getBoundingClientRect();
  const shown = (element) => {
    const b = box(element);
    return b.width > 0 && b.height > 0 && getComputedStyle(element).visibility !== 'hidden';
  };
  const says = (element) => JSON.stringify(element.textContent.trim().slice(0, 40));
  const name = (panel) => 'panel ' + panel.dataset.panel;

  // ---- panels: each one there once, with a heading, and what is to be drawn in it drawn ----
  const panels = [...document.querySelectorAll('[data-panel]')];
  for (const wanted of names) {
    const found = panels.filter((p) => p.dataset.panel === wanted);
    if (found.length !== 1) complaints.push(`panel ${wanted}: found ${found.length}, expected 1`);
  }
  for (const panel of panels) {
    if (!names.includes(panel.dataset.panel)) complaints.push(`${name(panel)}: not expected`);
    if (!shown(panel)) complaints.push(`${name(panel)}: not visible`);
    const heading = panel.querySelector('h1, h2, h3');
    if (!heading || !heading.textContent.trim()) complaints.push(`${name(panel)}: no heading`);
  }

  // ---- plots: drawn, with data in every trace ----
  const hasData = (values) => Array.from(values ?? []).some((v) => v?.length !== undefined && typeof v !== 'string'
                                                                    ? hasData(v) : v !== null && v !== '' && v === v);
  const plots = [...document.querySelectorAll('.plot, .js-plotly-plot')];
  for (const plot of plots) {
    const where = plot.closest('[data-panel]') ? name(plot.closest('[data-panel]')) : 'a plot outside of panels';
    const drawn = plot.querySelectorAll('.trace, .hm, .points path, .box').length;
    if (!shown(plot) || !plot.querySelector('.main-svg') || drawn === 0) complaints.push(`${where}: a plot is not drawn`);
    for (const trace of plot._fullData ?? [])
      if (trace.visible === true && !hasData(trace.z ?? trace.y ?? trace.x ?? trace.values))
        complaints.push(`${where}: trace '${trace.name}' has no data`);
  }

  // ---- nothing lies over anything else, is cut off, or makes the page scroll sideways ----
  const overlap = (a, b, slack) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack &&
                                   Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > slack;
  const sections = panels.filter((p) => shown(p) && !p.querySelector('[data-panel]'));
  sections.forEach((a, i) => sections.slice(i + 1).forEach((b) => {
    if (overlap(box(a), box(b), 1)) complaints.push(`${name(a)} lies over ${name(b)}`);
  }));
  for (const plot of plots) {
    const texts = [...plot.querySelectorAll('svg text')].filter((t) => t.textContent.trim() && shown(t) &&
      !t.closest('.hoverlayer') && t.getAttribute('data-notex') !== 'hidden');
    texts.forEach((a, i) => {
      const at = box(a);
      const frame = box(plot);
      if (at.left < frame.left - 1 || at.right > frame.right + 1 || at.top < frame.top - 1 || at.bottom > frame.bottom + 1)
        complaints.push(`text ${says(a)} is cut off by its plot`);
      for (const b of texts.slice(i + 1))
        if (overlap(at, box(b), 2)) complaints.push(`text ${says(a)} lies over ${says(b)}`);
    });
  }
  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth + 1) complaints.push(`the page is ${page.scrollWidth} px wide in ${innerWidth}`);

  // ---- text can be read: at least 10 px, and a contrast of 4.5 (WCAG 2.1, 1.4.3) to what lies behind it ----
  const rgba = (colour) => {
    const n = (colour.match(/[\d.]+%?/g) ?? []).map(parseFloat);
    return colour.startsWith('rgb') ? [n[0], n[1], n[2], n[3] ?? 1] : [0, 0, 0, 0];
  };
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const backdrop = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const svg = element.closest('svg') !== null;
    if (!node.data.trim() || seen.has(element) || !shown(element) || element.closest('script, style, option, .hoverlayer')) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    if (parseFloat(style.fontSize) < 10) complaints.push(`text ${says(element)} is ${style.fontSize} high`);
    const plot = element.closest('.js-plotly-plot');
    const below = backdrop(!svg ? element : plot ? plot.querySelector('.main-svg') : element.closest('svg'));
    const ink = over(rgba(svg ? style.fill : style.color), below);
    const [dark, light] = [luminance(ink), luminance(below)].sort((x, y) => x - y);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) complaints.push(`text ${says(element)} has a contrast of ${contrast.toFixed(1)}`);
  }
  return [...new Set(complaints)];
})

// What charts share: axes, a tip that follows the pointer or the arrow keys, a new drawing when the width changes.

function color(group, groups) {
  const known = { quantized: 'quantized', shared: 'shared', absorbed: 'absorbed', float: 'float', io: 'io' };
  return known[group] ? `var(--${known[group]})` : `var(--s${Math.max(0, groups.indexOf(group)) % 6})`;
}

function ticks(low, high, count, log) {
  if (log) {
    const [a, b] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const step = Math.max(1, Math.ceil((b - a) / count));
    return Array.from({ length: Math.floor((b - a) / step) + 1 }, (_, i) => 10 ** (a + i * step)).filter((v) => v >= low * 0.999 && v <= high * 1.001);
  }
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((s) => s * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function scale(low, high, from, to, log) {
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const f = log ? Math.log10 : (v) => v;
  const map = (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
  map.ticks = (count) => ticks(low, high, count, log);
  return map;
}

function padded(values, log) { // a little more than the range, so that nothing lies on an axis
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (log) return [low / 1.2, high * 1.2];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

function tickText(v) {
  return Math.abs(v) >= 1e4 ? v.toLocaleString('en', { notation: 'compact' }) : format(v, 3);
}

function axisBelow(svg, map, y, from, to, label, count) {
  draw(svg, 'line', { class: 'axis', x1: from, x2: to, y1: y, y2: y });
  for (const v of map.ticks(count)) draw(svg, 'text', { x: map(v), y: y + 16, 'text-anchor': 'middle' }, tickText(v));
  if (label) draw(svg, 'text', { x: (from + to) / 2, y: y + 34, 'text-anchor': 'middle' }, label);
}

function axisLeft(svg, map, x, to, label, count) {
  for (const v of map.ticks(count)) {
    draw(svg, 'line', { class: 'grid', x1: x, x2: to, y1: map(v), y2: map(v) });
    draw(svg, 'text', { x: x - 6, y: map(v) + 4, 'text-anchor': 'end' }, tickText(v));
  }
  if (label) draw(svg, 'text', { x: 2, y: 11 }, label);
}

function legend(holder, groups) {
  const named = groups.filter(Boolean);
  if (!named.length) return;
  const list = element('ul', { class: 'key' });
  for (const group of named) {
    const dot = element('span', { class: 'dot' });
    dot.style.background = color(group, groups);
    list.append(element('li', {}, dot, group === 'io' ? 'input or output' : group));
  }
  holder.append(list);
}

// `paint(svg, width)` draws and gives the marks: [{x, y, text}], which the pointer and the arrow keys go to.
function chart(canvas, title, height, paint) {
  const svg = draw(canvas, 'svg', { role: 'img', tabindex: 0, 'aria-label': title });
  const tip = element('div', { class: 'tip', role: 'status' });
  const ring = document.createElementNS(SVG, 'circle');
  canvas.append(tip);
  let marks = [];
  let at = -1;
  let drawn = 0;

  function show(i) {
    at = i;
    const mark = marks[i];
    tip.textContent = mark.text;
    tip.classList.add('on');
    const width = tip.offsetWidth;
    const left = mark.x + 12 + width > canvas.clientWidth ? mark.x - 12 - width : mark.x + 12;
    tip.style.transform = `translate(${Math.max(0, left)}px, ${Math.max(0, mark.y - tip.offsetHeight - 8)}px)`;
    for (const [key, value] of Object.entries({ cx: mark.x, cy: mark.y, r: 5, fill: 'none', stroke: 'var(--fg)', 'stroke-width': 1.5 })) ring.setAttribute(key, value);
    svg.append(ring);
  }

  function hide() {
    at = -1;
    tip.classList.remove('on');
    ring.remove();
  }

  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [-1, Infinity];
    marks.forEach((mark, i) => {
      const distance = mark.wide ? Math.abs(mark.x - x) : mark.high ? Math.abs(mark.y - y) : Math.hypot(mark.x - x, mark.y - y);
      if (distance < least) [best, least] = [i, distance];
    });
    if (best >= 0) show(best);
  }

  function redraw() {
    const width = Math.floor(canvas.clientWidth);
    if (!width) return;
    drawn = width;
    svg.replaceChildren();
    hide();
    svg.setAttribute('width', width);
    svg.setAttribute('height', height);
    marks = paint(svg, width);
  }

  svg.addEventListener('pointermove', nearest);
  svg.addEventListener('pointerdown', nearest);
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === 'Escape') hide();
    if (!step || !marks.length) return;
    event.preventDefault();
    show((at + step + marks.length) % marks.length);
  });
  new ResizeObserver(() => { if (Math.floor(canvas.clientWidth) !== drawn) redraw(); }).observe(canvas);
  redraw();
  return { redraw, resize(h) { height = h; redraw(); } };
}

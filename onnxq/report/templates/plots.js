// The plots: bars, points, histograms, ranges of channels.

const NAMED = 40; // up to so many bars have their names beside them
const ROW = 20;

function bars(canvas, data) {
  const groups = [...new Set(data.bars.map((bar) => bar[2]))];
  legend(canvas, groups.length > 1 || groups[0] ? groups : []);
  if (!data.bars.length) return canvas.append('nothing to show');
  const named = data.bars.length <= NAMED;
  chart(canvas, data.title, named ? data.bars.length * ROW + (data.unit ? 48 : 30) : 300, (svg, width) =>
    named ? barsWithNames(svg, width, data, groups) : barsOnly(svg, width, data, groups));
  if (data.hidden) canvas.append(element('p', { class: 'facts' }, `${data.hidden} values without a place on the axis are not shown`));
}

function span(data) {
  const values = data.bars.map((bar) => bar[1]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (data.log) return [10 ** Math.floor(Math.log10(low) - 0.01), high];
  return [Math.min(0, low), Math.max(0, high) || 1];
}

function told([label, value, group, detail], unit) {
  return [label, `${format(value)} ${unit}`.trim() + (group ? `, ${group}` : ''), detail].filter(Boolean).join('\n');
}

function barsWithNames(svg, width, data, groups) {
  const left = Math.min(width * 0.42, 6.6 * Math.max(...data.bars.map((bar) => bar[0].length)) + 14);
  const [low, high] = span(data);
  const right = width - 12 - 6.6 * Math.max(...data.bars.map((bar) => format(bar[1], 3).length));
  const x = scale(low, high, left, right, data.log);
  const bottom = data.bars.length * ROW + 4;
  for (const v of x.ticks(width < 600 ? 3 : 6)) draw(svg, 'line', { class: 'grid', x1: x(v), x2: x(v), y1: 0, y2: bottom });
  axisBelow(svg, x, bottom, left, right, data.unit, width < 600 ? 3 : 6);
  const zero = x(data.log ? low : 0);
  return data.bars.map((bar, i) => {
    const [from, to] = [Math.min(zero, x(bar[1])), Math.max(zero, x(bar[1]))];
    draw(svg, 'text', { class: 'strong', x: left - 6, y: i * ROW + 15, 'text-anchor': 'end' }, shortened(bar[0], Math.floor(left / 6.9)));
    draw(svg, 'rect', { x: from, y: i * ROW + 4, width: Math.max(1, to - from), height: ROW - 6, rx: 2, fill: color(bar[2], groups) });
    draw(svg, 'text', { x: to + 5, y: i * ROW + 15 }, format(bar[1], 3));
    return { x: x(bar[1]), y: i * ROW + ROW / 2 + 1, text: told(bar, data.unit), high: true };
  });
}

function barsOnly(svg, width, data, groups) {
  const [left, bottom] = [52, 276];
  const [low, high] = span(data);
  const y = scale(low, high, bottom, 20, data.log);
  axisLeft(svg, y, left, width, data.unit, 5);
  const step = (width - left) / data.bars.length;
  const zero = y(data.log ? low : 0);
  const paths = new Map();
  const marks = data.bars.map((bar, i) => {
    const [x, top] = [left + i * step, y(bar[1])];
    const wide = Math.max(step * 0.86, 0.5);
    paths.set(bar[2], (paths.get(bar[2]) ?? '') + `M${x.toFixed(2)} ${zero.toFixed(1)}V${top.toFixed(1)}h${wide.toFixed(2)}V${zero.toFixed(1)}z`);
    return { x: x + step / 2, y: top, text: told(bar, data.unit), wide: true };
  });
  for (const [group, path] of paths) draw(svg, 'path', { d: path, fill: color(group, groups) });
  draw(svg, 'line', { class: 'axis', x1: left, x2: width, y1: zero, y2: zero });
  draw(svg, 'text', { x: (left + width) / 2, y: bottom + 18, 'text-anchor': 'middle' }, `${data.bars.length} in the order of the model`);
  return marks;
}

function points(canvas, data) {
  const groups = [...new Set(data.points.map((point) => point[3]))];
  legend(canvas, groups);
  if (!data.points.length) return canvas.append('nothing to show');
  const xs = padded(data.points.map((p) => p[0]), data.log[0]);
  const ys = padded(data.points.map((p) => p[1]), data.log[1]);
  chart(canvas, data.title, 380, (svg, width) => {
    const [left, bottom] = [58, 332];
    const x = scale(...xs, left, width - 12, data.log[0]);
    const y = scale(...ys, bottom, 24, data.log[1]);
    axisLeft(svg, y, left, width, data.y, 6);
    axisBelow(svg, x, bottom, left, width, data.x, width < 600 ? 4 : 8);
    for (const series of data.line) {
      const line = data.points.filter((p) => p[3] === series).sort((a, b) => a[0] - b[0]);
      const path = line.map((p, i) => `${i ? 'L' : 'M'}${x(p[0])} ${y(p[1])}`).join('');
      if (path) draw(svg, 'path', { d: path, fill: 'none', stroke: color(series, groups), 'stroke-width': 1.5 });
    }
    return data.points.map(([px, py, label, series]) => {
      draw(svg, 'circle', { cx: x(px), cy: y(py), r: 4.5, fill: color(series, groups), stroke: 'var(--bg)' });
      return { x: x(px), y: y(py), text: [label, series, `${data.x}: ${format(px)}`, `${data.y}: ${format(py)}`].filter(Boolean).join('\n') };
    });
  });
  if (data.hidden) canvas.append(element('p', { class: 'facts' }, `${data.hidden} points without a place on the axes are not shown`));
}

// A list of tensors with buttons beside it; `show` is called with the chosen one.
function picker(canvas, tensors, show) {
  const tools = element('div', { class: 'tools' });
  const words = element('input', { type: 'search', placeholder: 'find a tensor', 'aria-label': 'find a tensor by a part of its name' });
  const list = element('select', { 'aria-label': 'tensor' });
  const [back, next] = [element('button', { type: 'button', 'aria-label': 'previous tensor' }, '←'), element('button', { type: 'button', 'aria-label': 'next tensor' }, '→')];
  function fill() {
    const wanted = words.value.toLowerCase();
    const kept = tensors.flatMap((tensor, i) => (tensor.name.toLowerCase().includes(wanted) ? [i] : []));
    list.replaceChildren(...kept.map((i) => element('option', { value: i }, tensors[i].name)));
    if (kept.length) choose(kept[0]);
  }
  function choose(i) {
    list.value = i;
    show(tensors[i]);
  }
  function step(by) {
    const count = list.options.length;
    if (count) choose(Number(list.options[(list.selectedIndex + by + count) % count].value));
  }
  words.addEventListener('input', fill);
  list.addEventListener('change', () => choose(Number(list.value)));
  back.addEventListener('click', () => step(-1));
  next.addEventListener('click', () => step(1));
  if (tensors.length > 12) tools.append(words);
  tools.append(list, back, next);
  canvas.append(tools);
  tensors.forEach((tensor, i) => {
    const others = pickers.get(tensor.name) ?? [];
    pickers.set(tensor.name, [...others, () => { words.value = ''; fill(); choose(i); return canvas; }]);
  });
  return { tools, fill };
}

function histogram(canvas, data) {
  if (!data.tensors.length) return canvas.append('nothing to show');
  const log = element('input', { type: 'checkbox', id: `log${document.querySelectorAll('.canvas svg').length}` });
  const facts = element('p', { class: 'facts' });
  let chosen = data.tensors[0];
  let plot = null;
  const { tools, fill } = picker(canvas, data.tensors, (tensor) => {
    chosen = tensor;
    facts.textContent = tensor.detail;
    plot?.redraw();
  });
  tools.append(element('label', {}, log, ' logarithmic'));
  log.checked = true;
  plot = chart(canvas, data.title, 300, (svg, width) => paintHistogram(svg, width, chosen, log.checked));
  log.addEventListener('change', () => plot.redraw());
  canvas.append(facts);
  fill();
}

function paintHistogram(svg, width, tensor, log) {
  const [left, bottom, top] = [52, 262, 16];
  const [low, high] = tensor.range;
  const [clipLow, clipHigh] = tensor.clip.length ? tensor.clip : [low, high];
  const room = (Math.max(high, clipHigh) - Math.min(low, clipLow)) * 0.02 || 1e-9;
  const x = scale(Math.min(low, clipLow) - room, Math.max(high, clipHigh) + room, left, width - 8, false);
  const y = scale(log ? 0.5 : 0, Math.max(1, ...tensor.counts), bottom, top, log);
  axisLeft(svg, y, left, width, 'count', 4);
  axisBelow(svg, x, bottom, left, width, 'value', width < 600 ? 4 : 9);
  const step = (high - low) / tensor.counts.length;
  let path = '';
  const marks = tensor.counts.map((count, i) => {
    const [a, b] = [x(low + i * step), x(low + (i + 1) * step)];
    const to = count ? y(count) : bottom;
    if (count) path += `M${a.toFixed(2)} ${bottom}V${to.toFixed(1)}H${Math.max(b - 0.4, a + 0.6).toFixed(2)}V${bottom}z`;
    return { x: (a + b) / 2, y: to, wide: true, text: `${format(low + i * step, 3)} to ${format(low + (i + 1) * step, 3)}\n${format(count)} values` };
  });
  draw(svg, 'path', { class: 'counts', d: path, fill: 'var(--s0)' });
  if (tensor.clip.length) {
    for (const [from, to, edge] of [[left, x(clipLow), x(clipLow)], [x(clipHigh), width, x(clipHigh)]]) {
      if (to > from) draw(svg, 'rect', { class: 'outside', x: from, y: top, width: to - from, height: bottom - top });
      draw(svg, 'line', { class: 'clip', x1: edge, x2: edge, y1: top - 6, y2: bottom });
    }
  }
  return marks;
}

function channels(canvas, data) {
  if (!data.tensors.length) return canvas.append('nothing to show');
  const facts = element('p', { class: 'facts' });
  let chosen = data.tensors[0];
  let plot = null;
  const { fill } = picker(canvas, data.tensors, (tensor) => {
    chosen = tensor;
    facts.textContent = tensor.detail;
    plot?.redraw();
  });
  plot = chart(canvas, data.title, 280, (svg, width) => paintChannels(svg, width, chosen));
  canvas.append(facts);
  fill();
}

function paintChannels(svg, width, tensor) {
  const [left, bottom] = [58, 242];
  const count = tensor.low.length;
  const y = scale(...padded([...tensor.low, ...tensor.high, ...tensor.clip.flat(), 0], false), bottom, 12, false);
  axisLeft(svg, y, left, width, '', 6);
  const step = (width - left - 4) / count;
  const wide = Math.max(0.8, Math.min(step * 0.8, 26));
  let [path, edges] = ['', ''];
  const marks = tensor.low.map((low, i) => {
    const high = tensor.high[i];
    const [middle, from, to] = [left + (i + 0.5) * step, y(high), y(low)];
    path += `M${(middle - wide / 2).toFixed(2)} ${from.toFixed(1)}h${wide.toFixed(2)}V${Math.max(to, from + 1).toFixed(1)}h${(-wide).toFixed(2)}z`;
    const clip = tensor.clip[i];
    for (const edge of clip ?? []) edges += `M${(middle - step / 2).toFixed(2)} ${Math.max(0, Math.min(bottom, y(edge))).toFixed(1)}h${step.toFixed(2)}`;
    const name = tensor.step > 1 ? `channels ${i * tensor.step} to ${(i + 1) * tensor.step - 1}` : `channel ${i}`;
    return { x: middle, y: from, wide: true, text: `${name}\n${format(low)} to ${format(high)}${clip ? `\ncodes reach ${format(clip[0])} to ${format(clip[1])}` : ''}` };
  });
  draw(svg, 'path', { d: path, fill: 'var(--s0)' });
  if (edges) draw(svg, 'path', { d: edges, class: 'clip', fill: 'none' }).style.strokeDasharray = 'none';
  const x = scale(0, count * tensor.step, left, width - 4, false);
  axisBelow(svg, x, bottom, left, width, 'channel', width < 600 ? 4 : 10);
  return marks;
}

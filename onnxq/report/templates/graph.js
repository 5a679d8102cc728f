// The graph: all of it as a few paths when it is far away, the nodes in sight with their names when it is near.

const NEAR = 0.45;

function graph(canvas, data) {
  const [boxWidth, boxHeight, pitch] = data.box;
  const [width, height] = data.size;
  const tools = element('div', { class: 'tools' });
  const stage = element('div', { class: 'stage' });
  const about = element('div', { class: 'about', role: 'status' });
  const find = element('input', { type: 'search', placeholder: 'find a node', 'aria-label': 'find a node by a part of its name or operator' });
  const svg = draw(stage, 'svg', { tabindex: 0, role: 'application', 'aria-label': `${data.title}: arrow keys move, plus and minus zoom, 0 shows all` });
  const world = draw(svg, 'g');
  const view = { x: 0, y: 0, zoom: 1 };
  let chosen = -1;
  let pending = false;
  let fitted = true;

  const isFloat = data.kinds.map((kind) => kind === 'float' || kind === 'io' || kind === '');
  const wires = { wire: '', codes: '', far: '' };
  for (const [start, end, bend] of data.edges) {
    const [a, b] = [data.nodes[start], data.nodes[end]];
    const kind = bend !== undefined && !Array.isArray(bend) ? 'far' : isFloat[a[2]] || isFloat[b[2]] ? 'wire' : 'codes';
    wires[kind] += wire(a, b, bend);
  }
  draw(world, 'path', { class: 'wire far', d: wires.far });
  draw(world, 'path', { class: 'wire', d: wires.wire });
  draw(world, 'path', { class: 'wire codes', d: wires.codes });
  const far = draw(world, 'g', { class: 'overview' });
  data.kinds.forEach((kind, k) => {
    const path = data.nodes.map((n) => (n[2] === k ? `M${n[3] - boxWidth / 2} ${n[4]}h${boxWidth}v${boxHeight}h${-boxWidth}z` : '')).join('');
    draw(far, 'path', { d: path, fill: hue(kind) });
  });
  const marker = draw(far, 'rect', { class: 'on', width: boxWidth, height: boxHeight, fill: 'none', visibility: 'hidden' });
  const near = draw(world, 'g', { class: 'detail' });

  function hue(kind) {
    return color(kind, data.kinds);
  }

  function wire(a, b, bend) {
    const [x, y, toX, toY] = [a[3], a[4] + boxHeight, b[3], b[4]];
    const gap = pitch - boxHeight;
    if (bend !== undefined && !Array.isArray(bend)) return `M${x} ${y}v${gap / 2}H${bend}V${toY - gap / 3}H${toX}V${toY}`;
    let path = `M${x} ${y}`;
    let [atX, atY] = [x, y];
    (bend ?? []).forEach((via, i) => {
      const top = a[4] + (i + 1) * pitch;
      path += curve(atX, atY, via, top) + `V${top + boxHeight}`;
      [atX, atY] = [via, top + boxHeight];
    });
    return path + curve(atX, atY, toX, toY);
  }

  function curve(x, y, toX, toY) {
    const middle = (y + toY) / 2;
    return `C${x} ${middle} ${toX} ${middle} ${toX} ${toY}`;
  }

  function refresh() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; paint(); });
  }

  function paint() {
    world.setAttribute('transform', `translate(${view.x} ${view.y}) scale(${view.zoom})`);
    const close = view.zoom >= NEAR;
    far.setAttribute('visibility', close ? 'hidden' : 'visible');
    near.replaceChildren();
    const at = data.nodes[chosen];
    marker.setAttribute('visibility', at && !close ? 'visible' : 'hidden');
    if (at) { marker.setAttribute('x', at[3] - boxWidth / 2); marker.setAttribute('y', at[4]); }
    marker.style.strokeWidth = 3 / view.zoom;
    if (!close) return;
    const [left, top] = [-view.x / view.zoom - boxWidth, -view.y / view.zoom - boxHeight];
    const [right, bottom] = [left + stage.clientWidth / view.zoom + 2 * boxWidth, top + stage.clientHeight / view.zoom + 2 * boxHeight];
    data.nodes.forEach((node, i) => {
      if (node[3] < left || node[3] > right || node[4] < top || node[4] > bottom) return;
      const group = draw(near, 'g', { class: i === chosen ? 'node on' : 'node', 'data-node': node[0] });
      const box = draw(group, 'rect', { x: node[3] - boxWidth / 2, y: node[4], width: boxWidth, height: boxHeight, rx: 6 });
      box.style.stroke = hue(data.kinds[node[2]]);
      const tint = draw(group, 'rect', { x: node[3] - boxWidth / 2, y: node[4], width: boxWidth, height: boxHeight, rx: 6, 'fill-opacity': 0.16 });
      tint.style.fill = hue(data.kinds[node[2]]);
      draw(group, 'text', { x: node[3], y: node[4] + 17 }, node[1]);
      draw(group, 'text', { class: 'name', x: node[3], y: node[4] + 31 }, shortened(node[0], 26));
    });
  }

  function tell(i) {
    if (i === chosen) return;
    chosen = i;
    about.replaceChildren();
    if (i >= 0) {
      const [name, op, kind, , , details] = data.nodes[i];
      const list = element('dl');
      for (const [key, value] of [['name', name], ['is', data.kinds[kind]], ...details]) {
        if (value) list.append(element('dt', {}, key), element('dd', {}, linked(value)));
      }
      about.append(element('h3', {}, op || name), list);
    }
    refresh();
  }

  function under(event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left - view.x) / view.zoom, (event.clientY - box.top - view.y) / view.zoom];
    const slack = Math.max(0, 6 / view.zoom - 6);
    return data.nodes.findIndex((n) => Math.abs(n[3] - x) <= boxWidth / 2 + slack && y >= n[4] - slack && y <= n[4] + boxHeight + slack);
  }

  function zoomAt(x, y, factor) {
    const zoom = Math.min(2.5, Math.max(view.zoom * factor, Math.min(0.02, fit().zoom)));
    view.x = x - ((x - view.x) * zoom) / view.zoom;
    view.y = y - ((y - view.y) * zoom) / view.zoom;
    view.zoom = zoom;
    fitted = false;
    refresh();
  }

  function zoomBy(factor) {
    zoomAt(stage.clientWidth / 2, stage.clientHeight / 2, factor);
  }

  function fit() {
    const [w, h] = [stage.clientWidth, stage.clientHeight];
    const zoom = Math.min(1, (w - 24) / Math.max(1, width), (h - 24) / Math.max(1, height));
    return { zoom, x: (w - width * zoom) / 2, y: (h - height * zoom) / 2 };
  }

  function showAll() {
    Object.assign(view, fit());
    fitted = true;
    refresh();
  }

  function goTo(i) {
    const node = data.nodes[i];
    view.zoom = Math.max(view.zoom, 0.9);
    view.x = stage.clientWidth / 2 - node[3] * view.zoom;
    view.y = stage.clientHeight / 2 - node[4] * view.zoom;
    fitted = false;
    chosen = -1;
    tell(i);
  }

  function search() {
    const wanted = find.value.toLowerCase();
    if (!wanted) return;
    for (let k = 1; k <= data.nodes.length; k++) {
      const i = (chosen + k) % data.nodes.length;
      if (`${data.nodes[i][0]} ${data.nodes[i][1]}`.toLowerCase().includes(wanted)) return goTo(i);
    }
  }

  const held = new Map();
  let moved = 0;
  svg.addEventListener('pointerdown', (event) => {
    held.set(event.pointerId, event);
    if (held.size === 1) moved = 0;
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener('pointermove', (event) => {
    const before = held.get(event.pointerId);
    if (!before) {
      if (event.pointerType === 'mouse') { const i = under(event); if (i >= 0) tell(i); }
      return;
    }
    const other = [...held.values()].find((e) => e.pointerId !== event.pointerId);
    if (other) {
      const box = svg.getBoundingClientRect();
      const [was, now] = [before, event].map((e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY));
      zoomAt((event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top, now / Math.max(1, was));
    } else {
      view.x += event.clientX - before.clientX;
      view.y += event.clientY - before.clientY;
      fitted = false;
      svg.classList.add('dragged');
      refresh();
    }
    moved += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
    held.set(event.pointerId, event);
  });
  for (const name of ['pointerup', 'pointercancel']) {
    svg.addEventListener(name, (event) => {
      if (name === 'pointerup' && held.size === 1 && moved < 6) tell(under(event));
      held.delete(event.pointerId);
      svg.classList.remove('dragged');
    });
  }
  svg.addEventListener('wheel', (event) => {
    if (!event.ctrlKey && document.activeElement !== svg) return; // the page scrolls until the graph is clicked
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoomAt(event.clientX - box.left, event.clientY - box.top, Math.exp(-event.deltaY * 0.0015));
  }, { passive: false });
  svg.addEventListener('keydown', (event) => {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (moves[event.key]) { view.x += moves[event.key][0]; view.y += moves[event.key][1]; fitted = false; refresh(); }
    else if (event.key === '+' || event.key === '=') zoomBy(1.4);
    else if (event.key === '-') zoomBy(1 / 1.4);
    else if (event.key === '0') showAll();
    else if (event.key === 'Escape') tell(-1);
    else return;
    event.preventDefault();
  });
  for (const [text, label, act] of [['+', 'zoom in', () => zoomBy(1.5)], ['−', 'zoom out', () => zoomBy(1 / 1.5)], ['all', 'show all of the graph', showAll]]) {
    const button = element('button', { type: 'button', 'aria-label': label, title: label }, text);
    button.addEventListener('click', act);
    tools.append(button);
  }
  find.addEventListener('keydown', (event) => { if (event.key === 'Enter') search(); });
  tools.prepend(find);
  stage.append(about);
  canvas.append(tools);
  legend(canvas, data.kinds);
  canvas.append(stage);
  new ResizeObserver(() => { if (fitted) showAll(); else refresh(); }).observe(stage);
  showAll();
}

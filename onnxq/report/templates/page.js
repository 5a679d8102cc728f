// Helpers: elements, numbers, what several blocks share.

const SVG = 'http://www.w3.org/2000/svg';
const blocks = JSON.parse(document.getElementById('data').textContent);
const pickers = new Map(); // name of a tensor -> shows its plot

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function draw(parent, tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function numberOf(cell) {
  if (typeof cell === 'number') return cell;
  return cell === '∞' ? Infinity : cell === '-∞' ? -Infinity : NaN;
}

function format(value, digits = 4) {
  if (typeof value !== 'number') return value ?? '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString('en');
  if (size >= 1e9 || size < 1e-4) return value.toExponential(Math.min(digits, 4) - 1).replace(/\.?0*e\+?/, 'e');
  return String(Number(value.toPrecision(digits)));
}

function shortened(text, length) {
  return text.length <= length ? text : '…' + text.slice(text.length - length + 1);
}

function pick(name) {
  const shown = pickers.get(name);
  if (!shown) return;
  const places = shown.map((show) => show());
  places[0].scrollIntoView({ block: 'center', behavior: 'auto' });
}

function linked(text) { // a tensor's name, which shows its plots where there are any
  if (!pickers.has(text)) return document.createTextNode(text);
  const button = element('button', { type: 'button', class: 'go', title: 'show its values' }, text);
  button.addEventListener('click', () => pick(text));
  return button;
}

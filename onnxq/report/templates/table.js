// Tables: sorted by any column, filtered by words and choices; rows are made as they come into sight.

const CHUNK = 100;

function table(holder, data) {
  const body = holder.querySelector('tbody');
  const heads = [...holder.querySelectorAll('th')];
  const frame = holder.querySelector('.wide');
  const tools = holder.querySelector('.tools');
  const words = element('input', { type: 'search', placeholder: 'filter', 'aria-label': 'filter rows by words' });
  const count = element('span', { class: 'count', role: 'status' });
  const choices = data.columns.map((column, i) => (column.kind === 'choice' ? chooser(i) : null));
  const texts = data.rows.map((row) => row.join('\u0000').toLowerCase());
  let sorted = data.sort;
  let descending = data.descending;
  let shown = [];
  let made = 0;

  function chooser(i) {
    const values = [...new Set(data.rows.map((row) => row[i]))].filter((value) => value !== null && value !== '').sort();
    if (values.length < 2) return null;
    const title = heads[i].textContent;
    const select = element('select', { 'aria-label': `only one ${title}` }, element('option', { value: '' }, `${title}: all`));
    for (const value of values) select.append(element('option', { value }, value));
    select.addEventListener('change', update);
    return select;
  }

  function compare(a, b) {
    const [x, y] = [data.rows[a][sorted], data.rows[b][sorted]];
    if (data.columns[sorted].kind !== 'number') {
      return String(x ?? '').localeCompare(String(y ?? ''), 'en', { numeric: true }) * (descending ? -1 : 1) || a - b;
    }
    const [p, q] = [numberOf(x), numberOf(y)];
    if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q) || a - b;
    return (p < q ? -1 : p > q ? 1 : 0) * (descending ? -1 : 1) || a - b;
  }

  function update() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = [];
    for (let i = 0; i < data.rows.length; i++) {
      if (choices.some((select, c) => select && select.value && data.rows[i][c] !== select.value)) continue;
      if (wanted.every((word) => texts[i].includes(word))) shown.push(i);
    }
    if (sorted !== null) shown.sort(compare);
    heads.forEach((head, i) => head.setAttribute('aria-sort', i !== sorted ? 'none' : descending ? 'descending' : 'ascending'));
    const all = data.rows.length;
    count.textContent = shown.length === all ? `${format(all)} rows` : `${format(shown.length)} of ${format(all)} rows`;
    body.replaceChildren();
    made = 0;
    frame.scrollTop = 0;
    more();
  }

  function cell(value, column) {
    const made = element('td', { class: column.kind });
    if (column.kind === 'number') made.textContent = format(value, column.digits);
    else if (column.kind === 'code' && value) made.append(linked(String(value)));
    else made.textContent = value ?? '';
    if (column.kind === 'text' && String(value ?? '').length > 24) {
      made.classList.add('long');
      made.replaceChildren(element('div', { title: value }, value));
    }
    return made;
  }

  function more() {
    const rows = shown.slice(made, made + CHUNK).map((i) =>
      element('tr', {}, ...data.rows[i].map((value, c) => cell(value, data.columns[c]))));
    body.append(...rows);
    made += rows.length;
  }

  heads.forEach((head, i) => head.firstElementChild.addEventListener('click', () => {
    descending = sorted === i ? !descending : data.columns[i].kind === 'number' && data.descending;
    sorted = i;
    update();
  }));
  frame.addEventListener('scroll', () => {
    if (frame.scrollTop + 2 * frame.clientHeight > frame.scrollHeight) more();
  });
  words.addEventListener('input', update);
  if (data.rows.length > 6) tools.append(words, ...choices.filter(Boolean), count);
  else tools.remove();
  update();
}

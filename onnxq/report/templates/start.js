// The theme, the sections, and every block; plots first, as tables link to them.

const root = document.documentElement;
const remembered = { get() { try { return localStorage.getItem('onnxq-theme'); } catch { return null; } }, set(theme) { try { localStorage.setItem('onnxq-theme', theme); } catch { /* not allowed here */ } } };
if (['light', 'dark'].includes(remembered.get())) root.dataset.theme = remembered.get();
document.getElementById('theme').addEventListener('click', () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  remembered.set(root.dataset.theme);
});

const makers = { bars, points, histogram, channels, graph };
const holders = [...document.querySelectorAll('[data-block]')].map((holder) => [holder, blocks[Number(holder.dataset.block)]]);
for (const [holder, data] of holders) {
  if (data.kind !== 'table') makers[data.kind](holder.querySelector('.canvas'), data);
}
for (const [holder, data] of holders) {
  if (data.kind === 'table') table(holder, data);
}

const links = new Map([...document.querySelectorAll('nav a')].map((link) => [link.getAttribute('href').slice(1), link]));
const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) seen[entry.isIntersecting ? 'add' : 'delete'](entry.target.id);
  const first = [...links.keys()].find((id) => seen.has(id));
  for (const [id, link] of links) link.classList.toggle('here', id === first);
  const here = links.get(first);
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 60;
}, { rootMargin: '-64px 0px -40% 0px' });
for (const id of links.keys()) watcher.observe(document.getElementById(id));
root.dataset.ready = 'yes';

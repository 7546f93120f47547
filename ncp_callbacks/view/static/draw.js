/** Drawing: elements, colours and canvases. Text of others is text, never markup. */
import {nice, short} from './math.js';

/** Colours that people with any colour vision can tell apart (Okabe and Ito 2008). */
export const PALETTE = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c6d31', '#7f7f7f'];

/** An element with properties, listeners (`onclick`) and children. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(node.style, value);
    else if (name.includes('-') || name === 'role') node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter(child => child != null));
  return node;
}

const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t));
const UP = [[247, 247, 247], [253, 184, 99], [179, 88, 6], [90, 40, 0]];
const DOWN = [[247, 247, 247], [178, 171, 210], [84, 39, 136], [40, 0, 75]];
// On a dark ground strong is bright: the light ramps would make the strongest cells the dimmest.
const UP_DARK = [[66, 66, 66], [179, 88, 6], [253, 184, 99], [255, 236, 204]];
const DOWN_DARK = [[66, 66, 66], [106, 61, 154], [178, 171, 210], [236, 232, 250]];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [230, 216, 40]];

/** Orange above 0, purple below, the ground's colour at 0; grey for what is no number. */
export function diverging(value, limit, dark) {
  if (!Number.isFinite(value)) return [160, 160, 160];
  const ramp = value >= 0 ? (dark ? UP_DARK : UP) : (dark ? DOWN_DARK : DOWN);
  const place = Math.min(1, Math.abs(value) / (limit || 1)) * 2.999, i = Math.floor(place);
  return mix(ramp[i], ramp[i + 1], place - i);
}

/** Violet to yellow for 0 to 1. */
export function viridis(value) {
  const place = Math.max(0, Math.min(0.9999, value)) * 4, i = Math.floor(place);
  return mix(VIRIDIS[i], VIRIDIS[i + 1], place - i);
}

export const rgb = colour => `rgb(${colour.join(',')})`;

/** A canvas that is sharp on any screen; `draw(context, width, height)` draws it. */
export function canvas(width, height, label, draw) {
  const ratio = window.devicePixelRatio || 1;
  const node = h('canvas', {role: 'img', 'aria-label': label, width: Math.round(width * ratio), height: Math.round(height * ratio)});
  node.style.width = `${width}px`;
  node.style.height = `${height}px`;
  const g = node.getContext('2d');
  g.scale(ratio, ratio);
  g.font = '12px Roboto, system-ui, sans-serif';
  g.textBaseline = 'middle';
  draw(g, width, height);
  return node;
}

/** Cells of rows and columns, drawn as one small picture that is scaled up: far cheaper than rectangles. */
export function cells(g, box, rows, columns, colour) {
  const small = document.createElement('canvas');
  small.width = columns;
  small.height = rows;
  const context = small.getContext('2d'), image = context.createImageData(columns, rows);
  for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < columns; c++, i += 4) {
    const [red, green, blue] = colour(r, c);
    image.data.set([red, green, blue, 255], i);
  }
  context.putImageData(image, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(small, box.x, box.y, box.width, box.height);
}

/** A text cut in its middle to a width: names differ at their ends. */
export function cut(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let kept = text.length - 1;
  const shown = () => `${text.slice(0, Math.ceil(kept / 2))}…${text.slice(text.length - Math.floor(kept / 2))}`;
  while (kept > 1 && g.measureText(shown()).width > width) kept--;
  return shown();
}

/** Numbers below an axis of time steps, at round distances. */
export function stepTicks(g, count, x, y, {every = 6, names = null} = {}) {
  const distance = Math.max(1, Math.round(nice(count / every)));
  g.textAlign = 'center';
  for (let t = 0; t < count; t += distance) g.fillText(String(names?.[t] ?? t), x(t), y);
}

/** A frame of lines and numbers for values from `low` to `high`; returns the vertical place of a value. */
export function valueAxis(g, {left, top, width, height, low, high, grid, dim, digits = short}) {
  const y = value => top + height * (1 - (value - low) / ((high - low) || 1));
  g.strokeStyle = grid;
  g.fillStyle = dim;
  g.lineWidth = 1;
  g.textAlign = 'right';
  for (let i = 0; i <= 4; i++) {
    const value = low + (high - low) * i / 4;
    g.beginPath();
    g.moveTo(left, y(value));
    g.lineTo(left + width, y(value));
    g.stroke();
    if (i % 2 === 0) g.fillText(digits(value), left - 6, y(value));
  }
  return y;
}

/** A line through points, and a band between two lines if ends are given; both have gaps where there is no number. */
export function line(g, xs, ys, {low, high, colour, width = 2, alpha = 1, dash = []}) {
  g.save();
  g.strokeStyle = g.fillStyle = colour;
  if (low && high) {
    g.globalAlpha = 0.18 * alpha;
    const known = i => Number.isFinite(low[i]) && Number.isFinite(high[i]);
    for (let first = 0, end; first < xs.length; first = end + 1) {
      for (end = first; end < xs.length && known(end); end++);
      g.beginPath();
      for (let i = first; i < end; i++) g.lineTo(xs[i], low[i]);
      for (let i = end - 1; i >= first; i--) g.lineTo(xs[i], high[i]);
      g.fill();
    }
  }
  g.globalAlpha = alpha;
  g.lineWidth = width;
  g.setLineDash(dash);
  g.beginPath();
  let begun = false;
  xs.forEach((x, i) => {
    if (!Number.isFinite(ys[i])) { begun = false; return; }
    if (begun) g.lineTo(x, ys[i]); else g.moveTo(x, ys[i]);
    begun = true;
  });
  g.stroke();
  g.restore();
}

/** Offer a file to the reader. */
export function save(name, blob) {
  const url = URL.createObjectURL(blob), link = h('a', {href: url, download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The canvases of a view with their captions, as one picture. */
export function asPicture(element, title, {background, colour}) {
  const ratio = window.devicePixelRatio || 1, gap = 16, caption = 20;
  const figures = [...element.querySelectorAll('figure')].map(figure => ({figure, parts: [...figure.querySelectorAll('canvas')]})).filter(({parts}) => parts.length);
  for (const each of figures) {
    each.width = Math.max(...each.parts.map(part => part.width / ratio));
    each.height = each.parts.reduce((sum, part) => sum + part.height / ratio, 0);
  }
  const width = figures.reduce((sum, each) => sum + each.width + gap, gap);
  const height = Math.max(0, ...figures.map(each => each.height)) + caption + 3 * gap;
  const whole = document.createElement('canvas');
  whole.width = width * ratio;
  whole.height = height * ratio;
  const g = whole.getContext('2d');
  g.scale(ratio, ratio);
  g.fillStyle = background;
  g.fillRect(0, 0, width, height);
  g.fillStyle = colour;
  g.font = '14px Roboto, system-ui, sans-serif';
  g.fillText(title, gap, gap + 4);
  g.font = '12px Roboto, system-ui, sans-serif';
  let x = gap;
  for (const {figure, parts, width: wide} of figures) {
    const text = [...figure.querySelector('figcaption')?.children ?? []].map(part => part.textContent.trim()).filter(Boolean).join('  ');
    g.fillText(cut(g, text, wide), x, 2 * gap + 10);
    let y = 2 * gap + caption;
    for (const part of parts) {
      g.drawImage(part, x, y, part.width / ratio, part.height / ratio);
      y += part.height / ratio;
    }
    x += wide + gap;
  }
  return whole;
}

/** Rows as CSV (RFC 4180). */
export function asCsv(rows) {
  const field = value => {
    // As other programs write them.
    const text = value === Infinity ? 'inf' : value === -Infinity ? '-inf' : String(value ?? '');
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map(row => row.map(field).join(',')).join('\r\n') + '\r\n';
}

/** What single units do: activity over time, values by unit, and the graph of a wired network. */
import {canvas, cells, cut, diverging, h, stepTicks} from '../draw.js';
import {logged, nice, short} from '../math.js';
import {View} from './common.js';

const LEFT = 42;

export class Units extends View {
  constructor(app) {
    super(app, 'units', 'Units', 'Mean state of every unit over the sequence: rows are units, columns are time steps; orange is above 0, purple below. Units are sorted by when they are strongest at the last snapshot, so rows stay in place while the slider moves.');
    this.label = this.menu('which cell', 'label');
  }

  draw() {
    const label = this.label(this.labels('units'));
    if (label === undefined) return null;
    const columns = this.columns(), width = this.width(columns.length, 430);
    this.table = [['run', 'step', 'unit', 'time step', 'mean state']];
    return columns.map(column => {
      const now = this.array(column, 'units', label);
      const last = now && !now.why && column.runs.length === 1 ? this.array(column, 'units', label, this.stepsOf(column, 'units', label).at(-1)) : now;
      if (!now || now.why || !last || last.why) return this.instead(column, now && last);
      return this.figure(column, `${this.which(now, label)} · up to ±${short(limitOf(last))}`, this.map(column, now, last, width));
    });
  }

  map(column, now, last, width) {
    const [steps, units] = now.shape, limit = limitOf(last), order = byPeak(last);
    // Of a large cell or a long sequence the log has some units and time steps: these are their numbers.
    const unit = u => now.about.units?.[u] ?? u, time = t => now.about.time_steps?.[t] ?? t;
    const cell = Math.max(4, Math.min(12, 300 / units)), top = Math.max(0, 7 - cell / 2);  // Room for the first number.
    const box = {x: LEFT, y: top, width: width - LEFT - 8, height: units * cell};
    this.table.push(() => Array.from({length: units * steps}, (_, i) => [Math.floor(i / steps), i % steps]).map(([u, t]) => [column.name, now.step, unit(u), time(t), now.values[t * units + u]]));
    const values = unitValues(this, column, now.about.cell);
    const node = canvas(width, top + units * cell + 22, `${column.name}: mean state of ${units} units at ${steps} time steps`, g => {
      cells(g, box, units, steps, (r, t) => diverging(now.values[t * units + order[r]], limit, this.dark));
      g.fillStyle = this.css('--dim');
      g.textAlign = 'right';
      order.forEach((u, r) => { if (r % Math.ceil(13 / cell) === 0) g.fillText(String(unit(u)), LEFT - 6, top + (r + 0.5) * cell); });
      stepTicks(g, steps, t => LEFT + (t + 0.5) * box.width / steps, top + box.height + 10, {names: now.about.time_steps});
    });
    return this.hover(node, (x, y) => {
      const t = Math.floor((x - LEFT) / (box.width / steps)), r = Math.floor((y - top) / cell);
      if (t < 0 || t >= steps || r < 0 || r >= units) return '';
      return `unit ${unit(order[r])}, time step ${time(t)}: ${logged(now.values[t * units + order[r]])}${values(unit(order[r]))}`;
    });
  }
}

/** What else is known of a unit of a cell: what it codes for, its time constant, its effect when silenced. */
function unitValues(view, column, cell) {
  const of = kind => view.store.ofKind(column.runs[0], kind).filter(track => track.about.cell === cell)
    .map(track => ({track, array: view.store.get(column.runs[0], track.tag, view.nearest(track.steps))})).filter(({array}) => array && !array.missing);
  const known = of('unit values'), words = Object.assign({}, ...of('unit words').map(({array}) => asObject(array.values)));
  const place = (track, unit) => track.about.units ? track.about.units.indexOf(unit) : unit;
  return unit => (words[unit] ? `\n${String(words[unit]).replace('; ', ';\n')}` : '') + known.filter(({track, array}) => array.values[place(track, unit)] !== undefined).map(({track, array}) => {
    return `\n${track.about.label ?? track.tag}: ${logged(array.values[place(track, unit)])}`;
  }).join('');
}

/** The object that bytes of JSON hold. */
function asObject(bytes) {
  try { return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes))); } catch { return {}; }
}

/** Units in the order of the time step at which they are strongest. */
function byPeak({shape: [steps, units], values}) {
  const peak = Array.from({length: units}, (_, u) => {
    let best = 0;
    for (let t = 1; t < steps; t++) if (Math.abs(values[t * units + u]) > Math.abs(values[best * units + u])) best = t;
    return best;
  });
  return peak.map((_, u) => u).sort((a, b) => peak[a] - peak[b] || a - b);
}

function limitOf(array) { return nice(Math.max(...Array.from(array.values, Math.abs).filter(Number.isFinite))); }

const KINDS = ['sensory', 'inter', 'command', 'motor'];

export class WiredGraph extends View {
  constructor(app) {
    super(app, 'wiring', 'The wired network', 'Synapses from sensors over inter and command to motor neurons: as wide as their share of the target neuron’s conductance, orange where their current raises it, purple where it lowers it. Neurons are as large as their share of the attribution.');
    this.label = this.menu('which cell', 'label');
  }

  draw() {
    const label = this.label(this.labels('wiring share'));
    if (label === undefined) return null;
    // Most runs of a comparison may have no wiring: they are left out.
    const wired = run => this.store.ofKind(run, 'wiring share').length;
    const columns = this.columns().filter(column => column.runs.some(wired)), width = Math.max(360, this.width(columns.length, 620));
    this.table = [['run', 'step', 'from', 'to', 'share of conductance', 'current']];
    return columns.map(column => {
      const share = this.array(column, 'wiring share', label), current = this.array(column, 'wiring current', label);
      if (!share || share.why) return this.instead(column, share);
      return this.figure(column, this.which(share, label), this.graph(column, share, current && !current.why ? current : null, width));
    });
  }

  graph(column, share, current, width) {
    const neurons = share.shape[1], sources = share.shape[0], inputs = sources - neurons;
    const given = share.about.feature_names ?? [], kinds = share.about.neuron_kinds ?? [], own = share.about.neuron_names ?? [];
    const kindOf = i => i < inputs ? 'sensory' : kinds[i - inputs] ?? 'inter';
    const name = i => i < inputs ? given[i] ?? `feature ${i}` : own[i - inputs] ?? `${kindOf(i)} ${i - inputs}`;
    const size = this.attribution(column, share, neurons), known = unitValues(this, column, share.about.cell);
    const ranks = KINDS.map(kind => Array.from({length: sources}, (_, i) => i).filter(i => kindOf(i) === kind)).filter(of => of.length);
    const height = Math.max(240, Math.min(560, 22 * Math.max(...ranks.map(of => of.length))));
    const place = new Map();
    ranks.forEach((of, r) => of.forEach((i, k) => place.set(i, [96 + (width - 192) * r / Math.max(1, ranks.length - 1), 22 + (height - 44) * (k + 0.5) / of.length])));
    const edges = [];
    for (let i = 0; i < sources; i++) for (let j = 0; j < neurons; j++) {
      const value = share.values[i * neurons + j];
      if (value > 0) edges.push([i, inputs + j, value, current?.values[i * neurons + j]]);
    }
    this.table.push(() => edges.map(([i, j, value, amount]) => [column.name, share.step, name(i), name(j), value, amount]));
    edges.sort((a, b) => a[2] - b[2]);
    const {near} = this, touches = ([i, j]) => near == null || i === near || j === near;
    const node = canvas(width, height, `${column.name}: graph of ${neurons} neurons`, g => {
      for (const [i, j, value, amount] of edges) {
        const [x0, y0] = place.get(i), [x1, y1] = place.get(j);
        g.globalAlpha = touches([i, j]) ? Math.min(0.9, 0.15 + value) : 0.05;
        g.strokeStyle = (amount ?? 0) >= 0 ? '#b35806' : (this.dark ? '#b2abd2' : '#542788');
        g.lineWidth = 0.5 + 5 * value;
        g.beginPath();
        g.moveTo(x0, y0);
        const bend = x0 === x1 ? 34 : 0;
        g.bezierCurveTo(x0 + (x1 - x0) / 2 + bend, y0, x0 + (x1 - x0) / 2 + bend, y1, x1, y1);
        g.stroke();
      }
      g.globalAlpha = 1;
      for (const [i, [x, y]] of place) {
        g.fillStyle = i === near ? this.css('--accent') : i < inputs ? this.css('--dim') : column.colour;
        g.beginPath();
        g.arc(x, y, i < inputs ? 4 : 3 + 9 * Math.sqrt(size ? size.values[i - inputs] / size.most : 0.2), 0, 7);
        g.fill();
        g.fillStyle = this.css('--fg');
        if (i < inputs) { g.textAlign = 'right'; g.fillText(cut(g, name(i), 82), x - 10, y); }
        else if (kindOf(i) === 'motor') { g.textAlign = 'left'; g.fillText(cut(g, name(i), 76), x + 14, y); }
      }
      g.fillStyle = this.css('--dim');
      g.textAlign = 'center';
      ranks.forEach(of => g.fillText(kindOf(of[0]), place.get(of[0])[0], 10));
    });
    return this.hover(node, (x, y) => {
      let best = null, distance = 16;
      for (const [i, [px, py]] of place) { const d = Math.hypot(px - x, py - y); if (d < distance) { distance = d; best = i; } }
      if (best !== this.near) { this.near = best; this.app.soon(); }
      if (best == null) return '';
      const strongest = (k, title) => { const of = edges.filter(e => e[k] === best).slice(-3).reverse(); return of.length ? `\n${title} ${of.map(e => `${name(e[1 - k])} ${Math.round(100 * e[2])} %`).join(', ')}` : ''; };
      const role = size && best >= inputs ? `\n${Math.round(100 * size.values[best - inputs])} % of the attribution` : '';
      return `${name(best)}${role}${known(best - inputs)}${strongest(1, 'driven by')}${strongest(0, 'drives')}`;
    });
  }

  attribution(column, share, neurons) {
    const run = column.runs[0];
    const track = this.store.ofKind(run, 'wiring attribution').find(a => a.shape[0] === neurons && a.about.cell === share.about.cell);
    const array = track && this.store.get(run, track.tag, this.nearest(track.steps));
    if (!array || array.missing) return null;
    return {values: Array.from(array.values, v => Math.max(0, v) || 0), most: Math.max(...Array.from(array.values).filter(Number.isFinite)) || 1};
  }
}

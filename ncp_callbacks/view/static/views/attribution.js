/** The map of time steps and features, side by side, and its differences. */
import {canvas, cells, cut, diverging, stepTicks} from '../draw.js';
import {columnShares, logged, nice, quantile, short} from '../math.js';
import {inOrder, labelOf, whyNot} from '../state.js';
import {View} from './common.js';

const LEFT = 104, RIGHT = 84;
const WHOLE = 34;  // Length of a bar of 100 %.
const SCALED = 60;  // Snapshots that the one scale of the whole training is made of.

export class AttributionMaps extends View {
  constructor(app) {
    super(app, 'attribution', 'What the prediction rests on', 'Mean attribution over the held-out sequences: rows are features, columns are time steps. Bars show the share of each feature, on one scale from 0 to 100 %.');
    this.label = this.menu('which attribution', 'label');
    this.toggle('signed', 'signed', false, 'orange raises the target, purple lowers it');
    this.toggle('one scale for the whole training', 'whole', true);
    this.limits = new Map();
  }

  draw() {
    const kind = this.option('signed', false) ? 'attribution signed' : 'attribution';
    const columns = this.columns(), label = this.label(this.labels(kind));
    if (label === undefined) return null;
    const maps = columns.map(column => ({column, array: this.array(column, kind, label)}));
    const known = maps.filter(({array}) => array && !array.why);
    const limit = nice(Math.max(0, ...known.map(({column, array}) => this.limit(column, kind, array))));
    const pairs = this.differences(maps, kind, label), differences = pairs.filter(({array}) => array);
    const reasons = [...new Set(pairs.filter(({array}) => !array).map(({why}) => why))];
    const width = this.width(maps.length + differences.length + reasons.length);
    this.table = [['run', 'step', 'time step', 'feature', 'value']];
    this.pictures = [];
    const figures = maps.map(({column, array}) => {
      if (!array || array.why) return this.instead(column, array);
      const of = names(array);
      this.table.push(() => Array.from(array.values, (value, i) => [column.name, array.step, Math.floor(i / of.length), of[i % of.length], value]));
      return this.figure(column, `${this.which(array, label)} · up to ${short(limit)}`, this.map(column.name, array, limit, width, column.colour));
    });
    const column = {name: 'difference', colour: 'transparent'};
    return [...figures, ...differences.map(({name, array}) => {
      const most = nice(quantile(Array.from(array.values, Math.abs), 1));
      const none = array.values.every(value => !value);
      return this.figure(column, `${name} · ${none ? 'no difference' : `up to ±${short(most)}`}`, this.map('difference', array, most, width, null));
    }), ...reasons.map(why => {
      const names = pairs.filter(pair => pair.why === why).map(({name}) => name).join(', ');
      return this.figure(column, names, this.sentence(why ? `Not subtracted: ${why}.` : 'loading …'));
    })];
  }

  /** Largest value of the colour scale: of this step, or of all steps that are here. */
  limit(column, kind, array) {
    if (!this.option('whole', true)) return quantile(array.values.map?.(Math.abs) ?? [], 1);
    const all = column.runs.flatMap(run => this.store.spread(run, array.tag, SCALED)), key = `${column.name}\n${array.tag}\n${all.length}`;
    // Of a whole training a few cells are extreme: they saturate, so that the others can be seen.
    if (!this.limits.has(key)) this.limits.set(key, quantile(all.flatMap(a => Array.from(a.values, Math.abs)), 0.99));
    return this.limits.get(key);
  }

  differences(maps, kind, label) {
    const {pinned} = this.choice;
    const pairs = pinned != null
      ? maps.map(m => [m, {column: m.column, array: this.array(m.column, kind, label, pinned)}])
      : maps.slice(1).map(m => [m, maps[0]]);
    return pairs.map(([a, b]) => {
      const steps = [a, b].map(({array}) => array?.step).map(step => step == null ? '' : step.toLocaleString('en'));
      const name = pinned != null ? `${a.column.name}: ${this.choice.step === a.array?.step ? 'now' : `step ${steps[0]}`} − step ${b.array?.step == null ? pinned.toLocaleString('en') : steps[1]}`
        : `${a.column.name} − ${b.column.name}${steps[0] === steps[1] ? '' : ` · step ${steps[0]} − step ${steps[1]}`}`;
      if (!a.array || !b.array) return {name, why: ''};
      const why = a.array.why ?? b.array.why ?? whyNot(a.array, b.array);
      if (why) return {name, why};
      const other = inOrder(b.array.values, b.array.shape, b.array.about.feature_names, a.array.about.feature_names);
      return {name, array: {...a.array, values: Float64Array.from(a.array.values, (v, i) => v - other[i])}};
    });
  }

  /** Shares of the features: those that the log has, else of the map. */
  shares(array, steps, features) {
    const track = this.store.ofKind(array.run, 'shares').find(a => a.label === labelOf(array.about));
    const found = track && array.runs === 1 ? this.store.get(array.run, track.tag, array.step) : null;
    return found?.shape[0] === features ? Array.from({length: features}, (_, f) => found.values[f * found.shape[1]]) : columnShares(array.values, steps, features);
  }

  map(name, array, limit, width, colour) {
    const [steps, features] = array.shape, of = names(array);
    const cell = Math.max(4, Math.min(26, 260 / features)), height = features * cell + 34;
    const right = colour ? RIGHT : 12, box = {x: LEFT, y: 0, width: width - LEFT - right, height: features * cell};
    const shares = this.shares(array, steps, features);
    const {dark} = this;
    const node = canvas(width, height, `${name}: attribution of ${features} features at ${steps} time steps`, g => {
      cells(g, box, features, steps, (f, t) => diverging(array.values[t * features + f], limit, dark));
      g.fillStyle = this.css('--fg');
      g.textAlign = 'right';
      const every = Math.ceil(13 / cell);
      of.forEach((feature, f) => { if (f % every === 0) g.fillText(cut(g, feature, LEFT - 10), LEFT - 6, (f + 0.5) * cell); });
      if (colour) shares.forEach((share, f) => {
        const bar = (of, fill) => { g.fillStyle = fill; g.fillRect(width - right + 6, f * cell + cell * 0.2, WHOLE * of, cell * 0.6); };
        bar(1, this.css('--grid'));
        bar(share, colour);
        g.fillStyle = this.css('--dim');
        g.textAlign = 'right';
        if (cell > 12) g.fillText(`${Math.round(100 * share)} %`, width - 4, (f + 0.5) * cell);
      });
      g.fillStyle = this.css('--dim');
      stepTicks(g, steps, t => LEFT + (t + 0.5) * box.width / steps, box.height + 9);
      g.textAlign = 'right';
      g.fillText('time step', width - right, box.height + 25);
    });
    this.pictures.push({name, array});
    return this.hover(node, (x, y) => {
      const t = Math.floor((x - LEFT) / (box.width / steps)), f = Math.floor(y / cell);
      if (t < 0 || t >= steps || f < 0 || f >= features) return '';
      // By its name: runs may have their features in another order.
      const lines = this.pictures.map(p => ({...p, at: names(p.array).indexOf(of[f])})).filter(p => p.at >= 0 && t < p.array.shape[0]).map(p => {
        const place = t * p.array.shape[1] + p.at, value = p.array.values[place], sd = p.array.sd?.[place];
        return `${p.name === name ? '▸' : '  '} ${p.name}: ${logged(value)}${sd == null ? '' : ` (SD ${short(sd)})`}`;
      });
      return `${of[f]}, time step ${t}\n${lines.join('\n')}`;
    });
  }
}

/** Names of the features of a map, or of another array with some features. */
export function names(array, features = array.shape.at(-1)) {
  const given = array.about.feature_names ?? [];
  return Array.from({length: features}, (_, f) => given[f] ?? `feature ${f}`);
}

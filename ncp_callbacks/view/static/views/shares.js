/** Shares of the features over training, with the validation below; a click goes to a step. */
import {canvas, cut, h, line, PALETTE, valueAxis} from '../draw.js';
import {envelope, extent, logged, spacedOut} from '../math.js';
import {columnTracks, leftOut, VALIDATION, whyNoMean, whyNotDrawn} from '../state.js';
import {View} from './common.js';
import {names} from './attribution.js';

const LEFT = 52, RIGHT = 118;

/** A snapshot of shares (feature; share, low, high): {step, shares, low, high}, the ends null where no CI is known. */
function point(array) {
  if (!points.has(array)) points.set(array, madePoint(array));
  return points.get(array);
}

const points = new WeakMap();

function madePoint({step, shape: [features, columns], values}) {
  const column = k => Array.from({length: features}, (_, f) => Number.isFinite(values[f * columns + k]) ? values[f * columns + k] : null);
  return {step, shares: column(0), low: column(1), high: column(2)};
}

export class SharesOverTraining extends View {
  constructor(app) {
    super(app, 'shares', 'Shares over training', 'Share of each feature in the whole, with its 95 % CI, and a number of the validation below. Click to go to a step.');
    this.label = this.menu('which shares', 'label');
    this.below = this.menu('number below', 'below');
  }

  draw() {
    const label = this.label(this.labels('shares'));
    if (label === undefined) return null;
    const columns = this.columns(), scalars = new Set();
    for (const column of columns) for (const run of column.runs) for (const tag of Object.keys(this.store.runs.get(run).scalars)) if (VALIDATION.test(tag) || tag === 'train/loss') scalars.add(tag);
    const below = this.below([...scalars].sort((a, b) => Number(VALIDATION.test(b)) - Number(VALIDATION.test(a)) || a.localeCompare(b)));
    const width = this.width(columns.length, 640);
    const last = Math.max(1, ...columns.flatMap(column => this.stepsOf(column, 'shares', label)));
    this.table = [['run', 'step', 'feature', 'share', 'low', 'high']];
    // One scale for all: they are compared by eye.
    const all = columns.map(column => [column, this.series(column, label)]);
    const points = all.flatMap(([, series]) => series?.points ?? []), largest = extent(points.flatMap(p => p.shares))[1];
    // A wide CI of a small share must not press all lines down.
    const most = Math.min(1, 1.08 * Math.min(1.5 * largest, Math.max(largest, extent(points.flatMap(p => p.high))[1])));
    const ends = extent(columns.flatMap(column => this.curvesOf(column, below)).flatMap(([, curve]) => curve.values));
    return all.map(([column, series]) => {
      if (!series || series.why) return this.instead(column, series);
      this.table.push(() => series.points.flatMap(point => series.names.map((name, f) => [column.name, point.step, name, point.shares[f], point.low[f], point.high[f]])));
      const parts = [this.chart(column, series, width, last, most)];
      if (below) parts.push(this.numberBelow(column, below, width, last, ends));
      return this.figure(column, this.which({step: this.nearest(series.points.map(p => p.step)), about: series.about, but: series.but}, label), ...parts);
    });
  }

  /** Shares at snapshots spread over the training, of one run, or the mean over the runs of a side; null, or {why}, if they can't be shown. */
  series(column, label) {
    const tracks = columnTracks(this.store, column, 'shares', label);
    if (tracks.why) return tracks;
    const why = tracks.map(({shape}) => whyNotDrawn('shares', shape)).find(Boolean) || whyNoMean(tracks), [{about}] = tracks, but = leftOut(column, 'shares', tracks);
    if (why) return {why};
    const ofRuns = tracks.map(track => ({of: names(track, track.shape[0]), points: this.store.spread(track.run, track.tag).map(point)}));
    if (ofRuns.some(({points}) => !points.length)) return null;
    if (ofRuns.length === 1) return {about, but, points: ofRuns[0].points, names: ofRuns[0].of};
    const mean = this.mean(ofRuns);
    return mean.points.length ? {about, but, ...mean} : {why: 'its runs have no step in common'};
  }

  /** The mean over runs with the range of the runs as its band, at steps that all have. */
  mean(ofRuns) {
    const of = ofRuns[0].of, others = ofRuns.map(({of: own, points}) => new Map(points.map(p => [p.step, of.map(name => p.shares[own.indexOf(name)])])));
    const points = [];
    for (const {step} of ofRuns[0].points) {
      const all = others.map(other => other.get(step)).filter(Boolean);
      if (all.length < others.length) continue;
      const per = f => all.map(shares => shares[f]);
      points.push({
        step, shares: of.map((_, f) => per(f).reduce((a, b) => a + b, 0) / all.length),
        low: of.map((_, f) => Math.min(...per(f))), high: of.map((_, f) => Math.max(...per(f))),
      });
    }
    return {points, names: of};
  }

  chart(column, {points, names: of}, width, last, most) {
    const height = 190, x = step => LEFT + (width - LEFT - RIGHT) * step / last;
    const final = points.at(-1).shares, order = of.map((_, f) => f).sort((a, b) => final[b] - final[a]);
    const shown = order.slice(0, PALETTE.length);
    const node = canvas(width, height, `${column.name}: shares of ${of.length} features over training`, g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - RIGHT, height: height - 34, low: 0, high: most, grid: this.css('--grid'), dim: this.css('--dim'), digits: v => `${Math.round(100 * v)} %`});
      const xs = points.map(p => x(p.step)), end = x(points.at(-1).step) + 6;
      for (const f of shown) {
        const colour = PALETTE[f % PALETTE.length], ends = side => points.map(p => p[side][f] == null ? NaN : y(p[side][f]));
        line(g, xs, points.map(p => y(p.shares[f])), {low: ends('low'), high: ends('high'), colour});
      }
      // Names beside the ends of the lines, moved apart where they would meet.
      g.textAlign = 'left';
      spacedOut(shown.map(f => y(final[f] ?? 0)), 14, 8, height - 30).forEach((place, i) => {
        g.fillStyle = PALETTE[shown[i] % PALETTE.length];
        g.fillRect(end, place - 4, 8, 8);
        g.fillStyle = this.css('--fg');
        g.fillText(cut(g, of[shown[i]], RIGHT - 24), end + 12, place);
      });
      this.axisOfSteps(g, x, last, height);
      g.textAlign = 'left';
      g.fillText('training step', width - RIGHT + 38, height - 9);
    });
    return this.clickable(node, x, last, () => points.map(p => p.step), width, step => {
      const point = points.find(p => p.step === step);
      return `step ${step.toLocaleString('en')}\n${shown.map(f => `${of[f]}: ${(100 * point.shares[f]).toFixed(1)} %${point.low[f] == null ? '' : ` [${(100 * point.low[f]).toFixed(1)}, ${(100 * point.high[f]).toFixed(1)}]`}`).join('\n')}`;
    });
  }

  curvesOf(column, tag) { return column.runs.map(run => [run, this.store.runs.get(run).scalars[tag]]).filter(([, curve]) => curve); }

  numberBelow(column, tag, width, last, [low, high]) {
    const height = 92, x = step => LEFT + (width - LEFT - RIGHT) * step / last;
    const known = this.curvesOf(column, tag), curves = known.map(([, curve]) => curve);
    if (!curves.length) return this.sentence(`This run has no ${tag}.`);
    const node = canvas(width, height, `${column.name}: ${tag} over training`, g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - RIGHT, height: height - 34, low, high, grid: this.css('--grid'), dim: this.css('--dim')});
      for (const {steps, values} of curves) {
        const drawn = envelope(values, 2 * width);
        line(g, drawn.map(i => x(steps[i])), drawn.map(i => values[i] == null ? NaN : y(values[i])), {colour: this.css('--fg'), width: 1.5, alpha: curves.length > 1 ? 0.6 : 1});
      }
      g.fillStyle = this.css('--dim');
      g.textAlign = 'left';
      g.fillText(cut(g, tag, RIGHT - 12), width - RIGHT + 6, 16);
      this.axisOfSteps(g, x, last, height);
    });
    return this.clickable(node, x, last, () => [...new Set(curves.flatMap(c => c.steps))].sort((a, b) => a - b), width,
      step => known.map(([run, c]) => `${run}, step ${step.toLocaleString('en')}: ${logged(c.values[c.steps.indexOf(step)])}`).join('\n'));
  }

  axisOfSteps(g, x, last, height) {
    g.fillStyle = this.css('--dim');
    g.textAlign = 'center';
    for (const part of [0, 0.5, 1]) g.fillText(Math.round(last * part).toLocaleString('en'), x(last * part), height - 9);
    const mark = (step, dash) => {
      g.save();
      g.strokeStyle = this.css('--fg');
      g.setLineDash(dash);
      g.beginPath();
      g.moveTo(x(step), 2);
      g.lineTo(x(step), height - 24);
      g.stroke();
      g.restore();
    };
    if (this.choice.step != null) mark(Math.min(last, this.choice.step), []);
    if (this.choice.pinned != null) mark(this.choice.pinned, [3, 3]);
  }

  clickable(node, x, last, steps, width, text) {
    let known = null;
    const nearest = place => (known ??= steps()).reduce((a, b) => Math.abs(x(b) - place) < Math.abs(x(a) - place) ? b : a, known[0]);
    node.style.cursor = 'pointer';
    node.addEventListener('click', event => this.app.goTo(nearest(event.clientX - node.getBoundingClientRect().left)));
    return this.hover(node, place => (known ??= steps()).length ? text(nearest(place)) : '');
  }
}

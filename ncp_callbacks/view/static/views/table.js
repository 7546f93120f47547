/** All runs with their headline numbers: sort by a number, choose what is shown. */
import {h} from '../draw.js';
import {logged, short} from '../math.js';
import {VALIDATION} from '../state.js';
import {View} from './common.js';

export class RunsTable extends View {
  constructor(app) {
    super(app, 'runs', 'Runs', 'The last value of the headline numbers of every run. Click a heading to sort, a run to show or hide it.');
    this.load = h('button', {textContent: 'show all runs', onclick: () => this.readAll()});
    this.bar.append(this.load);
  }

  async readAll() {
    for (const name of this.store.names) {
      if (!this.store.runs.has(name)) await this.store.readSummary(name).catch(() => {});
      this.app.soon();
    }
  }

  draw() {
    const rows = this.store.names.map(name => [name, this.store.runs.get(name)?.scalars ?? this.store.summaries.get(name)]).filter(([, scalars]) => scalars);
    this.load.hidden = rows.length === this.store.names.length;
    if (!rows.length) return null;
    const tags = [...new Set(rows.flatMap(([, scalars]) => Object.keys(scalars).filter(tag => VALIDATION.test(tag) || tag === 'train/loss' || scalars[tag].headline)))]
      .sort((a, b) => Number(VALIDATION.test(b)) - Number(VALIDATION.test(a)) || a.localeCompare(b)).slice(0, 12);
    const last = (scalars, tag) => { const values = scalars[tag]?.values ?? []; return values.length ? values.at(-1) : null; };
    const by = this.option('sort', ''), up = this.option('up', true);
    if (tags.includes(by)) rows.sort((a, b) => (up ? 1 : -1) * ((last(a[1], by) ?? Infinity) - (last(b[1], by) ?? Infinity)));
    this.table = [['run', ...tags], ...rows.map(([name, scalars]) => [name, ...tags.map(tag => scalars[tag] ? last(scalars, tag) ?? 'NaN' : null)])];
    const heading = tag => h('th', {scope: 'col', 'aria-sort': by === tag ? (up ? 'ascending' : 'descending') : 'none'},
      h('button', {textContent: `${tag}${by === tag ? (up ? ' ▲' : ' ▼') : ''}`, onclick: () => { const same = by === tag; this.set('sort', tag); this.set('up', same ? !up : true); }}));
    const row = ([name, scalars]) => h('tr', {}, h('td', {}, h('button', {textContent: name, 'aria-pressed': String(this.choice.runs.includes(name)), onclick: () => this.app.toggleRun(name)})),
      ...tags.map(tag => h('td', {textContent: cell(scalars[tag])})));
    return [h('div', {className: 'scroll'}, h('table', {}, h('thead', {}, h('tr', {}, h('th', {scope: 'col', textContent: 'run'}), ...tags.map(heading))), h('tbody', {}, ...rows.map(row))))];
  }
}

function cell(curve) {
  if (!curve?.values?.length) return '–';
  const ends = curve.low?.at(-1) == null ? '' : ` [${short(curve.low.at(-1))}, ${short(curve.high.at(-1))}]`;
  return logged(curve.values.at(-1)) + ends;
}

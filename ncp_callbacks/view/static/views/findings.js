/** What the rules found, in words. */
import {h} from '../draw.js';
import {stepAt} from '../math.js';
import {View} from './common.js';

const WORDS = {problem: 'problem', warning: 'warning', info: 'found', good: 'good'};
const ORDER = ['problem', 'warning', 'info', 'good'];
const TAG = '_ncp/findings';

/** The findings of a run as of a step: {step, findings: [{severity, sentence, action, …}]}, or null without any. */
function findingsAt(store, run, step) {
  const at = stepAt(store.runs.get(run)?.documents[TAG] ?? [], step);
  if (at == null) return null;
  try {
    const found = JSON.parse(store.document(run, TAG, at));
    return Array.isArray(found) ? {step: at, findings: found} : null;
  } catch { return null; }
}

export class Findings extends View {
  constructor(app) {
    super(app, 'findings', 'Findings', 'What the rules found at this step, the most serious first, and what to do.');
    this.shown = new Map();
  }

  /** The findings as of the shown step; while they are on their way, those that were shown last. */
  findings(run) {
    const found = findingsAt(this.store, run, this.choice.step) ?? this.shown.get(run);
    this.shown.set(run, found);
    return found;
  }

  draw() {
    const runs = this.columns().flatMap(column => column.runs).slice(0, 4);
    const found = runs.map(run => [run, this.findings(run)]).filter(([, f]) => f);
    if (!found.length) return null;
    this.table = [['run', 'step', 'severity', 'finding', 'what to do']];
    return found.map(([run, {step, findings}]) => {
      findings.sort((a, b) => ORDER.indexOf(a.severity) - ORDER.indexOf(b.severity));
      for (const f of findings) this.table.push([run, step, f.severity, f.sentence, f.action]);
      const items = findings.map(f => h('li', {}, h('b', {className: WORDS[f.severity] ? f.severity : '', textContent: WORDS[f.severity] ?? String(f.severity)}),
        h('span', {}, String(f.sentence), ['problem', 'warning'].includes(f.severity) ? h('small', {textContent: String(f.action)}) : null)));
      return this.figure({name: run, colour: this.store.colour(run)}, this.at(step), h('ul', {className: 'findings'}, ...items));
    });
  }
}

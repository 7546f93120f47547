/** What all views share: a title, options that keep their place, figures, and exports. */
import {asCsv, asPicture, h, save} from '../draw.js';
import {columnArray, labelOf} from '../state.js';
import {stepAt} from '../math.js';

export const HEIGHT = 230;

/**
 * A part of the page. Subclasses have `draw()`, which returns figures and sets `this.table`: rows, and functions
 * that return rows, as nobody needs many thousands of them with each move of the slider.
 */
export class View {
  constructor(app, name, title, explanation) {
    this.app = app;
    this.name = name;
    this.title = title;
    this.table = [];
    this.stale = true;
    this.bar = h('div', {className: 'bar'});
    this.row = h('div', {className: 'row'});
    this.end = h('span', {className: 'end'},
      this.png = h('button', {textContent: 'PNG', title: 'save these pictures', onclick: () => this.savePicture()}), ' ',
      h('button', {textContent: 'CSV', title: 'save these numbers', onclick: () => save(`${name}.csv`, new Blob([asCsv(this.rows())], {type: 'text/csv'}))}));
    const head = h('div', {className: 'bar'}, h('h2', {textContent: title}), this.end);
    this.el = h('section', {'aria-label': title}, head, h('p', {textContent: explanation}), this.bar, this.row);
  }

  get store() { return this.app.store; }
  get choice() { return this.app.choice; }
  get dark() { return this.app.dark; }
  css(name) { return this.app.css(name); }

  /** An option of this view, kept in the address. */
  option(name, fallback) { return this.choice.options[`${this.name}.${name}`] ?? fallback; }
  set(name, value) { this.choice.options[`${this.name}.${name}`] = value; this.app.soon(); }

  toggle(text, name, fallback, title = '') {
    const button = h('button', {textContent: text, title, onclick: () => this.set(name, !this.option(name, fallback))});
    this.app.onDraw(() => button.setAttribute('aria-pressed', String(this.option(name, fallback))));
    this.bar.append(button);
  }

  /** A menu whose entries are known once the arrays are; hidden with a single entry. */
  menu(label, name) {
    const select = h('select', {'aria-label': label, onchange: () => this.set(name, select.value)});
    this.bar.append(select);
    return entries => {
      const chosen = entries.includes(this.option(name)) ? this.option(name) : entries[0];
      if (String([...select.options].map(o => o.value)) !== String(entries)) {
        select.replaceChildren(...entries.map(entry => h('option', {value: entry, textContent: entry})));
      }
      select.value = chosen ?? '';
      select.hidden = entries.length < 2;
      return chosen;
    };
  }

  /** Whether a reader sees a part of this view now, or would after a short scroll. */
  inSight() {
    const {top, bottom, height} = this.el.getBoundingClientRect();
    return height > 0 && bottom > -100 && top < innerHeight + 100;
  }

  update() {
    this.stale = false;
    this.table = [];
    let figures;
    try { figures = this.draw(); } catch (error) {
      // The other views go on.
      console.warn(error);
      figures = [this.sentence(`This can't be drawn: ${error.message}.`)];
      this.table = [];
    }
    this.el.hidden = figures === null;
    if (figures === null) return;
    this.end.hidden = !this.table.length;
    this.row.replaceChildren(...figures);
    this.png.hidden = !this.row.querySelector('canvas');
  }

  /** Rows of the table of what is shown at the chosen step. */
  rows() {
    if (this.stale) this.update();
    return this.table.flatMap(part => typeof part === 'function' ? part() : [part]);
  }

  savePicture() {
    if (this.stale) this.update();
    const picture = asPicture(this.row, this.title, {background: this.css('--bg'), colour: this.css('--fg')});
    picture.toBlob(blob => save(`${this.name}.png`, blob));
  }

  columns() { return this.choice.columns(this.store); }

  /** The labels of the arrays of a kind that any shown run has. */
  labels(kind) {
    const found = this.columns().flatMap(column => column.runs.flatMap(run => this.store.ofKind(run, kind).map(a => a.label)));
    return [...new Set(found)];
  }

  array(column, kind, label, step = this.choice.step) { return columnArray(this.store, column, kind, label, step); }

  /** Every step at which a column has an array, of its first run. */
  stepsOf(column, kind, label) {
    return this.store.track(column.runs[0], kind, label)?.steps ?? [];
  }

  caption(column, text) {
    return h('figcaption', {}, h('i', {className: 'dot', style: {background: column.colour}}), h('b', {textContent: column.name}), h('span', {textContent: text}));
  }

  figure(column, text, ...content) { return h('figure', {}, this.caption(column, text), ...content); }
  sentence(text) { return h('p', {textContent: text}); }

  /** What a column shows instead of a picture. */
  instead(column, array) {
    return this.figure(column, '', this.sentence(array === null ? 'loading …' : `Not shown: ${array.why}.`));
  }

  width(columns, largest = 520) {
    return Math.max(320, Math.min(largest, this.app.width() / Math.max(1, Math.min(columns, 3)) - 18));
  }

  /** The step of what is shown, in words that tell an older one from the chosen one. */
  at(step) { return step == null ? '' : `${step === this.choice.step ? '' : 'of '}step ${step.toLocaleString('en')}`; }

  /** The step of an array, and what it is if it is not what was chosen. */
  which({step, about, but}, label) { return [this.at(step), labelOf(about) === label ? '' : labelOf(about), but].filter(Boolean).join(' · '); }
  nearest(steps) { return stepAt(steps, this.choice.step); }

  /** Tell what is below the pointer; `text(x, y)` gets its place in the picture. */
  hover(node, text) {
    node.addEventListener('pointermove', event => {
      const box = node.getBoundingClientRect();
      this.app.tell(text(event.clientX - box.left, event.clientY - box.top), event);
    });
    node.addEventListener('pointerleave', () => this.app.tell(''));
    return node;
  }
}

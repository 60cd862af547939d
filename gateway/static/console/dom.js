// Helpers that update the page. They leave unchanged elements alone, so nothing flickers or loses the focus.

export const $ = (id) => document.getElementById(id);

/** A new element: `h("td", {className: "n"}, "12")`. */
export function h(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Set the text, if it differs. */
export function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

export function hide(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

/** Show a state: a word, and a level for its colour. */
export function state(element, word, level) {
  write(element, word);
  element.dataset.level = level;
}

/** Keep one child of `parent` for each item, in order: `make(item)` builds it, `update(child, item)` fills it. */
export function each(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = make(item);
      child.dataset.key = key;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

/** Rows of a table whose cells are text: `columns` is [label, class, of(item)]; a cell may also be filled by `fill`. */
export function table(body, items, keyOf, columns) {
  const make = () => h("tr", {}, ...columns.map(([label, className]) => {
    const cell = h("td", { className });
    cell.dataset.label = label;
    return cell;
  }));
  each(body, items, keyOf, make, (row, item) => {
    columns.forEach(([, , of], at) => {
      const value = of(item, row.children[at], row);
      if (value !== undefined) write(row.children[at], value);
    });
  });
}

/** A list of terms and values: [[term, value], …]. */
export function facts(list, pairs) {
  each(list, pairs, ([term]) => term, ([term]) => h("div", {}, h("dt", { textContent: term }), h("dd")), (child, [, figure]) => {
    write(child.lastElementChild, figure);
  });
}

/** Large figures: [[term, figure, unit, about], …]. */
export function tiles(list, items) {
  const make = ([term]) => h("div", {}, h("dt", { textContent: term }), h("dd", {}, h("b"), " ", h("small")), h("p", { className: "soft" }));
  each(list, items, ([term]) => term, make, (child, [, figure, unit, about]) => {
    const [, value, note] = child.children;
    write(value.children[0], figure);
    write(value.children[1], unit);
    write(note, about);
  });
}

/** Handle a form's submit event without leaving the page. */
export function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(event);
  });
}

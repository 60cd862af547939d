// Elements of SVG; what has no place in a style sheet stands in their attributes.

/** `svg("line", {x1: 0})`, with text or children in it. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Parts of the page. What is shown is always text: nothing that came from outside is read as HTML.

export const at = (id) => document.getElementById(id);

/** An element with its properties, attributes (of names with a dash, and role), and children. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (property.includes("-") || ["role", "scope", "for"].includes(property)) element.setAttribute(property, value);
    else element[property] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A table. A heading may be a text, or `{ text, number: true }`; the first cell of a row is its heading. */
export function table(caption, headings, rows, { seen = false } = {}) {
  const columns = headings.map((heading) => (typeof heading === "string" ? { text: heading } : heading));
  const kind = (at) => (columns[at]?.number ? "number" : "");
  const head = columns.map(({ text }, at) => make("th", { scope: "col", className: kind(at) }, text));
  const cell = (content, at) =>
    at === 0 ? make("th", { scope: "row", className: kind(at) }, content) : make("td", { className: kind(at) }, content);
  const body = rows.map((row) => make("tr", {}, ...row.map(cell)));
  const made = make(
    "table",
    {},
    make("caption", { className: seen ? "" : "unseen" }, caption),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
  // What is wider than the page is moved sideways, by keys as well.
  return make("div", { className: "scrolled", tabIndex: 0, role: "group", "aria-label": caption }, made);
}

/** Makes an element's content these parts, and changes no more of it than differs: what is focused, selected, moved or open stays. */
export function show(element, ...parts) {
  patch(element, make("div", {}, ...parts));
}

function patch(old, fresh) {
  const wished = [...fresh.childNodes];
  [...old.childNodes].slice(wished.length).forEach((child) => child.remove());
  wished.forEach((child, at) => {
    const there = old.childNodes[at];
    if (!there) old.append(child);
    else if (there.nodeName !== child.nodeName) there.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) {
      if (there.data !== child.data) there.data = child.data;
    } else {
      attributes(there, child);
      patch(there, child);
    }
  });
}

function attributes(old, fresh) {
  const names = new Set([...old.getAttributeNames(), ...fresh.getAttributeNames()]);
  // Whether something is open is its reader's to say.
  if (old.nodeName === "DETAILS") names.delete("open");
  for (const name of names) {
    const value = fresh.getAttribute(name);
    if (value === null) old.removeAttribute(name);
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

/** Says something to who does not see the page, once. */
export function say(sentence) {
  at("said").textContent = sentence;
}

/** A sentence below a form; an error is one that is to be seen. */
export function note(element, sentence, isBad = false) {
  // What is said already is not said again.
  if (element.textContent !== sentence) element.textContent = sentence;
  element.classList.toggle("bad", isBad);
}

/** Asks before something is done that cannot be undone. */
export function isSure(title, text, yes) {
  const dialog = at("sure");
  at("sure-title").textContent = title;
  at("sure-text").textContent = text;
  at("sure-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((decide) => dialog.addEventListener("close", () => decide(dialog.returnValue === "yes"), { once: true }));
}

/** Runs what a button begins; meanwhile the button cannot begin it again. */
export async function whileDisabled(button, work) {
  button.setAttribute("aria-disabled", "true");
  try {
    return await work();
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

export const isDisabled = (button) => button.getAttribute("aria-disabled") === "true";

// Begins: the views, the colours, the key, and the live stream that feeds the overview.

import { follow, hasKey, useKey, whenRefused } from "./api.js";
import * as aggregates from "./aggregates.js";
import * as configuration from "./configuration.js";
import * as letters from "./letters.js";
import * as overview from "./overview.js";
import { at, say } from "./page.js";

const VIEWS = { overview, aggregates, letters, configuration };
const THEME = "ingestd-theme";
const RETRY = 2000;

let view = "overview";
let needsKey = false;

/** Shows a view, or the question for the key while one is needed. */
function go(name, { moves = false } = {}) {
  view = name in VIEWS ? name : "overview";
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const each of Object.keys(VIEWS)) at(each).hidden = needsKey || each !== view;
  at("key").hidden = !needsKey;
  for (const button of document.querySelectorAll("[data-view]")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  document.title = `${at(`${view}-title`).textContent} – ingestd`;
  if (needsKey) return at("key-text").focus();
  VIEWS[view].enter?.();
  if (moves) at("main").focus({ preventScroll: true });
}

for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    location.hash = `/${button.dataset.view}`;
  });
}
// With a slash before it, so that it is no element's id, which the browser would go to.
const named = () => location.hash.slice(2);
addEventListener("hashchange", () => {
  scrollTo(0, 0);
  go(named());
  say(at(`${view}-title`).textContent);
});
at("skip").addEventListener("click", () => at("main").focus());

/** Light or dark, whatever the system says; a chart is drawn anew by the colours of then. */
function colour(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  dispatchEvent(new Event("colours"));
}
at("theme").value = localStorage.getItem(THEME) ?? "";
at("theme").addEventListener("change", ({ target }) => {
  localStorage.setItem(THEME, target.value);
  colour(target.value);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("colours")));
colour(at("theme").value);

whenRefused((problem) => {
  at("key-why").textContent = hasKey() ? problem.message : "This daemon asks for a key (admin.auth.keys).";
  if (needsKey) return;
  needsKey = true;
  at("state").textContent = "needs a key";
  at("state").className = "badge";
  go(view);
});
let wake = () => {};
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key-text").value.trim());
  at("key-text").value = "";
  wake();
});

function took(status) {
  if (needsKey) {
    needsKey = false;
    go(view, { moves: true });
  }
  overview.take(status);
  aggregates.take(status);
  configuration.take(status);
}

/** The stream ends now and then, and with the daemon: it is asked for anew. */
async function live() {
  for (;;) {
    let pause = RETRY;
    try {
      await follow(took);
    } catch (error) {
      if (error.status === 401) pause = null;
      else overview.lose(error.name === "AbortError" ? "The daemon says nothing any more." : error.message);
    }
    // With a key it is entered anew.
    if (pause !== null) aggregates.lose();
    // Without a key there is nothing to ask until somebody gives one.
    await new Promise((resolve) => {
      wake = resolve;
      if (pause !== null) setTimeout(resolve, pause);
    });
  }
}

go(named());
live();

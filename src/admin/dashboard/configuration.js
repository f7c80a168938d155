// What this process is, and the reload of its configuration.

import { askJson } from "./api.js";
import { at, isDisabled, isSure, make, note, show, table, whileDisabled } from "./page.js";

/** The next status of the stream. */
export function take(status) {
  const tls = Object.entries(status.tls ?? {})
    .filter(([, of]) => of)
    .map(([listener, { not_after: end }]) => [`Certificate of ${listener}`, `until ${end}`]);
  show(
    at("process"),
    table(
      "This process",
      ["What", "Is"],
      [
        ["Version", `${status.version} (${status.commit})`],
        ["Process", String(status.pid)],
        ["Roles", status.roles.join(", ")],
        ["Configuration file", status.config_file ?? "none: defaults, the environment and --set"],
        ["data.dir", status.data_dir],
        ["Log", `${status.queue.kind}, topic ${status.queue.topic}`],
        ["Archive", status.archive],
        ["Store", status.store],
        ...tls,
      ],
    ),
  );
}

const list = (title, keys) => [
  make("h4", {}, title),
  make("ul", {}, ...keys.map((key) => make("li", {}, make("code", {}, key)))),
];

async function reload() {
  const place = at("reloaded");
  if (
    !(await isSure(
      "Reload the configuration?",
      "What changed in it takes effect at once, as far as it can while the daemon runs.",
      "Reload it",
    ))
  )
    return;
  try {
    const { applied, needs_restart: waiting } = await askJson("/reload", { method: "POST" });
    const nothing = applied.length + waiting.length === 0;
    place.replaceChildren(
      ...[
        make("p", { className: "note good" }, nothing ? "It is read. Nothing has changed." : "It is read."),
        ...(applied.length > 0 ? list("In effect", applied) : []),
        ...(waiting.length > 0 ? list("From the next start on", waiting) : []),
      ],
    );
  } catch (error) {
    const said = make("p", { className: "note" });
    note(said, error.message, true);
    place.replaceChildren(said);
  }
}

at("reload").addEventListener("click", () => isDisabled(at("reload")) || whileDisabled(at("reload"), reload));

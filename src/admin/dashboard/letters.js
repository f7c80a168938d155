// Dead letters: which there are, one with its bytes, and what is done with them.

import { ask, askJson, withQuery } from "./api.js";
import { bytes, count, moment, plural } from "./format.js";
import { at, isDisabled, isSure, make, note, table, whileDisabled } from "./page.js";

/** Ids of one request: a head has 32 KiB. */
const AT_ONCE = 100;

let listed = [];
let isTruncated = false;
const chosen = new Set();
let wasListed = false;

export function enter() {
  if (!wasListed) list();
}

const filter = () => ({
  reason: at("reason").value.trim(),
  from: at("found-from").value.trim(),
  to: at("found-to").value.trim(),
  partition: at("partition").value.trim(),
  id: at("letter-id").value.trim(),
  limit: at("limit").value.trim(),
  all: at("closed").checked ? "true" : "",
});

/** Asks for them, and says what came of an operation before. */
async function list(said = "") {
  wasListed = true;
  try {
    const { dead_letters: letters, truncated } = await askJson(withQuery("/v1/dead-letters", filter()));
    [listed, isTruncated] = [letters, truncated === true];
    const here = new Set(letters.map(({ id }) => id));
    for (const id of chosen) if (!here.has(id)) chosen.delete(id);
    const found =
      letters.length === 0
        ? "There are none."
        : `${plural(letters.length, "letter")}${isTruncated ? ", and there are more" : ""}.`;
    note(at("letters-note"), `${said} ${found}`.trim());
    at("reasons").replaceChildren(...[...new Set(letters.map(({ reason }) => reason))].map((value) => make("option", { value })));
    draw();
  } catch (error) {
    wasListed = error.status !== 401;
    note(at("letters-note"), `${said} ${error.message}`.trim(), true);
  }
}

function draw() {
  const boxes = listed.map(({ id }) => {
    const box = make("input", { type: "checkbox", checked: chosen.has(id), "aria-label": `Choose ${id}` });
    box.addEventListener("change", () => choose([id], box.checked));
    return box;
  });
  const every = make("input", { type: "checkbox", id: "every", "aria-label": "Choose all that are listed" });
  every.addEventListener("change", () => {
    for (const box of boxes) box.checked = every.checked;
    choose(
      listed.map(({ id }) => id),
      every.checked,
    );
  });
  const rows = listed.map(({ id, state, reason, message, time, size }, row) => {
    const button = make("button", { type: "button", className: "plain" }, id);
    button.addEventListener("click", () => open(id));
    return [button, boxes[row], moment(time), reason, message, state, bytes(size)];
  });
  const replay = make("button", { type: "button", id: "replay-chosen" });
  const purge = make("button", { type: "button", id: "purge-chosen", className: "danger" });
  replay.addEventListener("click", () => isDisabled(replay) || whileDisabled(replay, () => replayThese([...chosen])));
  purge.addEventListener("click", () => isDisabled(purge) || whileDisabled(purge, () => purgeThese([...chosen])));
  const made = table(
    "Dead letters, the oldest first",
    ["Letter", { text: every }, "Found", "Reason", "What is wrong", "State", { text: "Size", number: true }],
    rows,
  );
  at("letters-list").replaceChildren(...(listed.length > 0 ? [make("div", { className: "actions" }, replay, purge), made] : []));
  choose([], true);
}

function choose(ids, isChosen) {
  for (const id of ids)
    if (isChosen) chosen.add(id);
    else chosen.delete(id);
  for (const [button, does] of [
    ["replay-chosen", "Replay"],
    ["purge-chosen", "Purge"],
  ]) {
    if (!at(button)) continue;
    at(button).textContent = `${does} the chosen (${count(chosen.size)})`;
    if (chosen.size === 0) at(button).setAttribute("aria-disabled", "true");
    else at(button).removeAttribute("aria-disabled");
  }
  if (at("every")) at("every").checked = listed.length > 0 && listed.every(({ id }) => chosen.has(id));
}

/** One letter with its bytes. */
async function open(id) {
  const place = at("letter");
  let letter;
  try {
    letter = await askJson(`/v1/dead-letters/${id.split("/").map(encodeURIComponent).join("/")}`);
  } catch (error) {
    return note(at("letters-note"), error.message, true);
  }
  const value = letter.value ?? letter.value_base64 ?? "";
  const text = make("textarea", { id: "value", rows: 10, spellcheck: false, value });
  const fields = [
    ["State", letter.state],
    ["Reason", letter.reason],
    ["What is wrong", letter.message],
    ["Found", letter.time],
    ["Received", letter.received],
    ["Topic", letter.topic],
    ["Partition", String(letter.partition)],
    ["Offset", letter.offset ?? "none"],
    ["Size", `${count(letter.size)} bytes`],
    ["Key", letter.key ?? letter.key_base64 ?? "none"],
  ];
  const headers = letter.headers.map(({ name, value, base64 }) => [
    name,
    base64 === undefined ? (value ?? "null") : `base64: ${base64}`,
  ]);
  const kept = letter.value_omitted
    ? "The value was too large to be kept: the archive has it."
    : letter.value === undefined && letter.value_base64 !== undefined
      ? "The value is no text: this is its base64, and a correction takes its place as text."
      : "What stands here is sent when you replay it with this value.";
  const button = (label, className, work) => {
    const made = make("button", { type: "button", className }, label);
    made.addEventListener("click", () => isDisabled(made) || whileDisabled(made, work));
    return made;
  };
  const close = button("Close", "", () => place.close());
  place.replaceChildren(
    make("h2", { id: "letter-title", tabIndex: -1, autofocus: true }, `Letter ${id}`),
    table("The letter", ["What", "Is"], fields),
    ...(headers.length > 0 ? [table("Its headers", ["Header", "Value"], headers, { seen: true })] : []),
    make("label", { htmlFor: "value" }, "Value"),
    text,
    make("p", { className: "hint" }, kept),
    make(
      "div",
      { className: "actions" },
      button("Replay as it is", "primary", () => replayThese([id])),
      button("Replay with this value", "", () => replayThese([id], text.value)),
      button("Purge", "danger", () => purgeThese([id])),
      close,
    ),
  );
  place.showModal();
}

function* portions(ids) {
  for (let from = 0; from < ids.length; from += AT_ONCE) yield ids.slice(from, from + AT_ONCE);
}

async function replayThese(ids, correction) {
  const what = `${plural(ids.length, "letter")}${correction === undefined ? "" : " with the value that stands there"}`;
  if (
    ids.length === 0 ||
    !(await isSure(
      `Replay ${what}?`,
      "Each is checked as a new event is, and appended to the log once. It cannot be taken back.",
      "Replay",
    ))
  )
    return;
  const sums = { replayed: 0, already: 0, refused: [] };
  const body = correction === undefined ? {} : { body: correction, headers: { "Content-Type": "application/octet-stream" } };
  await changed(
    async () => {
      for (const id of portions(ids)) {
        const { replayed, already, refused } = await askJson(withQuery("/v1/dead-letters/replay", { id }), {
          method: "POST",
          ...body,
        });
        sums.replayed += replayed.length;
        sums.already += already.length;
        sums.refused.push(...refused);
      }
    },
    () => {
      const [first] = sums.refused;
      return (
        [
          `${count(sums.replayed)} replayed`,
          sums.already > 0 ? `${count(sums.already)} were closed before` : "",
          first ? `${count(sums.refused.length)} refused, the first for ${first.reason}: ${first.message}` : "",
        ]
          .filter(Boolean)
          .join(", ") + "."
      );
    },
  );
}

async function purgeThese(ids) {
  if (
    ids.length === 0 ||
    !(await isSure(
      `Purge ${plural(ids.length, "letter")}?`,
      "Their bytes are removed. What was a record stays in the archive.",
      "Purge",
    ))
  )
    return;
  let purged = 0;
  await changed(
    async () => {
      for (const id of portions(ids)) {
        purged += (await (await ask(withQuery("/v1/dead-letters", { id }), { method: "DELETE" })).json()).purged.length;
      }
    },
    () => `${count(purged)} purged.`,
  );
}

/** Does it, says what came of it, also where it broke off, and lists anew. */
async function changed(work, outcome) {
  let said;
  try {
    await work();
    said = outcome();
  } catch (error) {
    said = error.message;
  }
  at("letter").close();
  await list(said);
  scrollTo(0, 0);
  at("main").focus({ preventScroll: true });
}

at("letters-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  list();
});

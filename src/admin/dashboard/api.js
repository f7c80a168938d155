// Asks this listener. A key is kept for this tab, and sent with each request.

const KEY = "ingestd-key";
// A form of another page cannot send it; and what is asked with it is not answered by a browser's own dialog for a password.
const OURS = { "X-Requested-With": "ingestd" };
// Longer than the daemon takes to answer anything: an operation on dead letters has a minute.
const PATIENCE = 90_000;
// A stream that says nothing for so long has broken.
const SILENCE = 10_000;

let onRefused = () => {};

/** Calls this where a key is missing, or is not taken. */
export function whenRefused(call) {
  onRefused = call;
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** What went wrong, as the daemon said it (RFC 9457). */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function head(more) {
  const key = sessionStorage.getItem(KEY);
  return { ...OURS, ...(key === null ? {} : { Authorization: `Bearer ${key}` }), ...more };
}

async function request(path, { method = "GET", headers = {}, body, signal }) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: head(headers), body, signal, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, "The daemon does not answer: is it running?");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let detail = text;
  try {
    detail = JSON.parse(text).detail ?? text;
  } catch {
    // Something else than the daemon answered.
  }
  const problem = new Problem(answer.status, sentence(detail || `the answer is ${answer.status}`));
  if (answer.status === 401) onRefused(problem);
  throw problem;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** The answer, for what is no JSON. */
export const ask = (path, options = {}) => request(path, { signal: AbortSignal.timeout(PATIENCE), ...options });

export async function askJson(path, options = {}) {
  return (await ask(path, options)).json();
}

/** The same, where numbers may have more digits than one of JavaScript's: those are their texts. */
export async function askExactly(path, options = {}) {
  const exact = (_, value, context) =>
    typeof value === "number" && context?.source !== undefined && String(value) !== context.source
      ? kept(value, context.source)
      : value;
  return JSON.parse(await (await ask(path, options)).text(), exact);
}

/** `1.50` and `1e3` are what they say; of `0.1` and so many more digits the number is not. */
function kept(value, source) {
  const digits = source.replace(/^-|[eE].*$|\./g, "").replace(/^0+/, "");
  return digits.length <= 15 ? value : source;
}

/** A path with these parameters, without those that are empty; a list stands once for each of its values. */
export function withQuery(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") query.append(name, each);
    }
  }
  return query.size > 0 ? `${path}?${query}` : path;
}

/** Reads the live stream once, to its end: EventSource can send no key. */
export async function follow(onEvent) {
  const abort = new AbortController();
  let silence = setTimeout(() => abort.abort(), SILENCE);
  try {
    const answer = await request("/v1/live", { signal: abort.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE);
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5));
        if (data.length > 0) onEvent(JSON.parse(data.join("\n")));
      }
    }
  } finally {
    clearTimeout(silence);
  }
}

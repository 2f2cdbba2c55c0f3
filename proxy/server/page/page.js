"use strict";
// Whatever comes from outside is a text: it goes into text nodes and nothing else (the policy forbids more).
const $ = (id) => document.getElementById(id);
const REDIS = { off: "answers are not stored", yours: "an external server", embedded: "started by the gateway, for it alone" };
const VERDICTS = ["miss", "attached", "hit", "merged", "bypass"];
const whole = new Intl.NumberFormat("en");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let key = ""; // in memory only

const put = (id, text) => { const el = $(id); if (el.textContent !== text) el.textContent = text; };
const make = (tag, cls, text) => {
  const el = document.createElement(tag);
  if (cls) el.className = cls;
  if (text !== undefined) el.textContent = text;
  return el;
};
const ms = (n) => n == null ? "–" : n >= 10000 ? (n / 1000).toFixed(1) + " s" : n >= 100 ? whole.format(Math.round(n)) + " ms" : n.toFixed(1) + " ms";
const many = (n, one, more) => whole.format(n) + " " + (n === 1 ? one : more || one + "s");

// -- requests ----------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

// An event stream by fetch: an EventSource can show no key. `each` is given every event, decoded.
async function events(url, options, each) {
  const headers = { ...options.headers, accept: "text/event-stream" };
  if (key) headers.authorization = "Bearer " + key;
  // No `cache: "no-store"` here: it would send a Cache-Control, and with one an answer is not shared.
  const answer = await fetch(url, { ...options, headers });
  if (!answer.ok) {
    let message = "";
    try { message = (await answer.json()).error.message; } catch { message = answer.statusText; }
    throw new Refused(answer.status, message);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) each(JSON.parse(part.slice(6)));
  }
}

// To a key that is no operator's the paths of this page do not exist.
function refusesKey(error) { return error.status === 401 || (error.status === 404 && key !== ""); }

function askForKey(wrong) {
  $("keyform").hidden = false;
  put("keyhint", wrong ? "That key is not an operator's." : "The key stays in this page's memory only: a reload deletes it.");
  if (!wrong) $("key").focus();
}
$("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  watch();
});

// -- the state -----------------------------------------------------------------------------------

let watching = null, waits = 0, again = 0;
const past = { ttft: [], ttft95: [], made: [], given: [] };

function pill(text, cls) { put("health", text); $("health").className = "pill " + cls; }

async function watch() {
  clearTimeout(again);
  if (watching) watching.abort();
  const mine = watching = new AbortController();
  try {
    await events("/-/state", { signal: mine.signal }, (state) => { if (state.error) return; waits = 0; $("keyform").hidden = true; show(state); });
    throw new Error("the stream ended");
  } catch (error) {
    if (mine !== watching || mine.signal.aborted) return;
    if (refusesKey(error)) { pill("needs a key", ""); askForKey(key !== ""); return; }
    pill(error.status ? error.status + ": " + error.message : "no answer; trying again", "bad");
    waits = Math.min(waits + 1, 5);
    again = setTimeout(watch, 500 * 2 ** waits);
  }
}
// Nobody looks: nothing is asked.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { clearTimeout(again); if (watching) watching.abort(); } else watch();
});

function keep(list, value) { list.push(value); if (list.length > 60) list.shift(); }

function spark(id, ...lines) {
  const svg = $(id), top = Math.max(1e-9, ...lines.flat().filter((n) => n != null));
  svg.setAttribute("viewBox", "0 0 59 24");
  svg.setAttribute("preserveAspectRatio", "none");
  while (svg.childNodes.length < lines.length) svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  lines.forEach((line, n) => {
    let d = "", pen = "M";
    line.forEach((value, i) => {
      if (value == null) { pen = "M"; return; }
      d += pen + (60 - line.length + i) + " " + (23 - 22 * value / top).toFixed(1);
      pen = "L";
    });
    svg.childNodes[n].setAttribute("d", d);
  });
}

function show(state) {
  const recent = state.recent, total = state.total;
  pill(state.ready ? "ready" : "no engine answers", state.ready ? "good" : "bad");
  const up = Math.round(state.uptime_s), hours = Math.floor(up / 3600), minutes = Math.floor(up / 60) % 60;
  put("about", `${state.version}, up ${hours ? hours + " h " : ""}${up >= 60 ? minutes + " min" : up + " s"}, sharing ${state.share}`);
  put("flights", many(state.flights, "answer"));
  put("queue", `${many(state.readers, "reader")}, ${whole.format(state.queued)} queued` + (state.resumable ? `, ${many(state.resumable, "resumable stream")}` : ""));
  put("ttft", ms(recent.ttft_ms.p50));
  put("ttft2", recent.ttft_ms.p95 == null ? "no answer in the last 10 s" : `median; 95 % within ${ms(recent.ttft_ms.p95)}`);
  put("rate", whole.format(Math.round(recent.delivered_per_s)));
  put("rate2", `delivered; ${whole.format(Math.round(recent.generated_per_s))} generated`);
  keep(past.ttft, recent.ttft_ms.p50); keep(past.ttft95, recent.ttft_ms.p95);
  keep(past.given, recent.delivered_per_s); keep(past.made, recent.generated_per_s);
  spark("sparkttft", past.ttft, past.ttft95);
  spark("sparkrate", past.given, past.made);
  const v = total.verdicts, shared = v.hit + v.attached + v.merged;
  put("shared", total.answered ? Math.round(100 * shared / total.answered) + " %" : "–");
  put("counts", `of ${many(total.answered, "answer")}` + (total.refused ? `, ${whole.format(total.refused)} refused` : "") + (total.failed ? `, ${whole.format(total.failed)} failed` : ""));
  const mix = $("mix");
  if (!mix.childNodes.length) mix.append(...VERDICTS.map((name) => make("span", name)));
  VERDICTS.forEach((name, i) => {
    mix.childNodes[i].style.width = total.answered ? 100 * v[name] / total.answered + "%" : "0";
    mix.childNodes[i].hidden = !v[name];
  });
  const redis = state.redis;
  put("redis", redis.state === "away" ? "not reachable" : redis.state);
  const limits = state.state_redis, masters = (redis.servers || []).length;
  const known = masters > 1 ? `a cluster of ${masters} masters` : REDIS[redis.is];
  const other = limits ? `; limits have their own: ${limits.detail || limits.state}` : "";
  put("redis2", (redis.detail ? redis.detail + ". Requests are served without it." : known) + other);
  $("redis").className = redis.detail || (limits && limits.detail) ? "bad" : "";
  const {generations, engine_limits, gateways} = state.fleet, alone = generations === false || engine_limits === false;
  $("fleetbox").hidden = generations == null && engine_limits == null;
  put("fleet", alone ? "alone" : gateways == null ? "shared" : gateways > 1 ? many(gateways - 1, "other") : "no other");
  put("fleet2", [generations == null ? "" : generations ? "generations are shared" : "this one generates for itself: Redis is away",
    engine_limits == null ? "" : engine_limits ? "engine limits are shared" : "this one has its share of the engine limits: Redis is away"].filter(Boolean).join("; "));
  $("fleet").className = alone ? "bad" : "";
  engines(state.backends);
  models(state.models);
}

function engines(list) {
  const ul = $("engines");
  while (ul.childNodes.length > list.length) ul.lastChild.remove();
  while (ul.childNodes.length < list.length) {
    const li = make("li"), load = make("div", "load");
    load.append(make("i"));
    li.append(make("span"), make("span", "dim"), load, make("span", "dim"));
    ul.append(li);
  }
  list.forEach((engine, n) => {
    const [name, served, load, word] = ul.childNodes[n].childNodes;
    name.textContent = engine.name;
    served.textContent = engine.models.join(", ") || engine.detail || "no models yet";
    load.firstChild.style.width = 100 * engine.inflight / engine.max_inflight + "%";
    const state = engine.breaker === "open" ? `paused after failures, next attempt in ${engine.retry_s} s`
      : engine.breaker === "half_open" ? "paused after failures, trying one request" : engine.up ? "up" : engine.up == null ? "not checked yet" : "down";
    word.textContent = `${engine.inflight} of ${many(engine.max_inflight, "request")}` + (engine.waiting ? `, ${engine.waiting} queued there` : "")
      + (engine.unshared.length ? ", some streams and JSON bodies are not shared" : "") + `, ${state}`;
    word.title = engine.unshared.join("\n");
    word.className = "pill " + (engine.up && engine.breaker === "closed" ? "good" : engine.up == null ? "" : "bad");
  });
}

function models(list) {
  const select = $("model");
  if (list.join("\n") === [...select.options].map((o) => o.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...list.map((id) => new Option(id, id)));
  if (list.includes(chosen)) select.value = chosen;
}

// -- the playground ------------------------------------------------------------------------------

let run = null; // what is being shown: {lanes, asked, generations…}

function lane(number, delay) {
  const li = make("li"), line = make("p"), badge = make("span", "badge", "waiting"), when = make("span"), times = make("span", "times");
  const box = make("div"), span = make("span"), text = document.createTextNode("");
  line.append(make("b", "", String(number + 1)), badge, when, times);
  span.append(text);
  box.append(span);
  li.append(line, box);
  li.addEventListener("pointerenter", () => { hot = number; draw(); });
  li.addEventListener("pointerleave", () => { hot = -1; draw(); });
  return { number, delay, li, badge, when, times, text, more: "", verdict: "", flight: null, ask: null, tokens: 0,
    points: [], joined: null, first: null, over: false, stopped: false, touched: true, order: 0, behind: 0 };
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); play(); });
$("stop").addEventListener("click", () => { if (run) run.control.abort(); });
$("readers").addEventListener("input", () => { $("late").max = Math.max(0, $("readers").value - 1); });

async function play() {
  if (run) run.control.abort();
  const n = Number($("readers").value), late = Math.min(Number($("late").value), n - 1), by = Number($("by").value);
  const delays = Array.from({ length: n }, (_, i) => i < n - late ? 0 : Math.round(by * (i - (n - late) + 1) / late));
  const mine = run = { control: new AbortController(), lanes: delays.map((d, i) => lane(i, d)), began: performance.now(), joins: 0, open: true };
  const temperature = Number($("temperature").value), most = Number($("most").value);
  put("problem", "");
  put("said", `Sent by ${many(n, "reader")}.`);
  $("lanes").replaceChildren(...mine.lanes.map((one) => one.li));
  $("start").disabled = true;
  $("stop").disabled = false;
  soon();
  try {
    await events("/-/readers", {
      method: "POST",
      signal: mine.control.signal,
      headers: { "content-type": "application/json", "x-gateway-share": $("share").value },
      body: JSON.stringify({
        request: { model: $("model").value, messages: [{ role: "user", content: $("prompt").value }], temperature,
          max_tokens: most, stream: true, stream_options: { include_usage: true } },
        delays_ms: delays,
      }),
    }, (event) => take(mine, event));
    const bad = mine.lanes.filter((one) => one.failed).length;
    put("said", `${many(n - bad, "reader")} of ${n} have the complete answer. ${$("tally").textContent}`);
  } catch (error) {
    if (mine.control.signal.aborted) put("said", "Stopped.");
    else {
      if (refusesKey(error)) askForKey(key !== "");
      put("problem", error.status ? `${error.status}: ${error.message}` : "The gateway does not answer: " + error.message);
    }
  }
  mine.open = false;
  for (const one of mine.lanes) if (!one.over) one.over = one.stopped = one.touched = true;
  if (mine === run) {
    frame(performance.now()); // all of it is shown before the run is said to be over
    $("start").disabled = false;
    $("stop").disabled = true;
  }
}

// Twins get the same frames one after the other: each is parsed once.
let lastFrame = "", lastSaid = null;
function parse(frame) {
  if (frame === lastFrame) return lastSaid;
  let text = "", usage = null, error = null;
  for (const line of frame.split(/\r\n|\n|\r/)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") continue;
    try {
      const told = JSON.parse(data), delta = told.choices?.[0]?.delta;
      text += (delta?.reasoning_content ?? delta?.reasoning ?? "") + (delta?.content ?? "");
      usage = told.usage?.completion_tokens ?? usage;
      error = told.error ?? error;
    } catch { /* not JSON: nothing to show */ }
  }
  lastFrame = frame;
  return lastSaid = { text, usage, error };
}

function take(mine, event) {
  if (event.done) return;
  const one = mine.lanes[event.reader];
  if (!one) return;
  one.touched = true;
  if (event.behind !== undefined) {
    one.joined = event.ms;
    one.behind = event.behind;
    one.order = mine.joins++;
    one.points.push(event.ms, 0);
    one.flight = event.flight;
  }
  if (event.verdict) { one.verdict = event.verdict; one.flight = event.flight; one.ask = event.ask; }
  for (const frame of event.frames ?? []) {
    const { text, usage, error } = parse(frame);
    if (text) { one.tokens++; one.more += text; one.first ??= event.ms - one.joined; }
    if (usage != null) one.usage = usage;
    if (error) fail(one, error);
  }
  if (event.frames) one.points.push(event.ms, one.tokens);
  if (event.body !== undefined) {
    let error = null;
    try { error = JSON.parse(event.body).error; } catch { /* no JSON: shown as it is */ }
    fail(one, error ?? { message: event.body.slice(0, 500) });
  }
  if (event.end) {
    one.over = true;
    one.first ??= event.end.ttft_ms;
    one.usage = event.end.tokens ?? one.usage;
    one.verdict ||= event.end.verdict;
    if (event.end.error && !one.failed) fail(one, event.end.error, event.end.status);
    if (one.failed && event.end.status >= 400) one.status = event.end.status;
  }
  soon();
}

function fail(one, error, status) {
  one.failed = true;
  one.status = status;
  one.more += (one.tokens ? "\n" : "") + (error.message ?? String(error));
}

let due = false, drawn = 0;
function soon() { if (!due) { due = true; requestAnimationFrame(frame); } }

// All that came since the last frame goes into the DOM at once.
function frame(now) {
  due = false;
  if (!run) return;
  for (const one of run.lanes) {
    if (!one.touched) continue;
    one.touched = false;
    if (one.more) { one.text.appendData(one.more); one.more = ""; }
    const cls = one.failed ? "failed" : one.verdict;
    if (one.li.className !== cls) one.li.className = cls;
    const word = one.failed ? String(one.status ?? "failed") : one.verdict || (one.over ? "stopped" : "waiting");
    if (one.badge.textContent !== word) one.badge.textContent = word;
    one.when.textContent = one.delay ? `+${((one.joined ?? one.delay) / 1000).toFixed(2)} s` : "";
    one.times.textContent = one.first == null ? "" : "TTFT " + ms(one.first);
  }
  tally();
  if (!run.open || now - drawn > (still.matches ? 500 : 30)) { drawn = now; draw(); } else soon();
}

function tally() {
  const made = new Map(), asks = new Set(), asked = new Set();
  let delivered = 0, hits = 0, failed = 0, stopped = 0;
  for (const one of run.lanes) {
    if (one.failed) failed++;
    else if (one.stopped) stopped++;
    const tokens = one.usage ?? one.tokens;
    delivered += tokens;
    if (one.flight == null) continue;
    if (one.verdict && one.ask == null) { hits += !one.failed; continue; }
    if (one.ask != null) { asks.add(one.ask); asked.add(one.flight); }
    made.set(one.flight, Math.max(made.get(one.flight) ?? 0, tokens));
  }
  const generated = [...made.values()].reduce((sum, n) => sum + n, 0);
  const bold = (text) => make("b", "", text), n = made.size;
  const merged = asks.size < asked.size ? ` in ${many(asks.size, "request")} to the engine` : "";
  $("tally").replaceChildren(
    bold(whole.format(n)), (n === 1 ? " generation" : " generations") + merged + ", ",
    bold(whole.format(run.lanes.length)), (run.lanes.length === 1 ? " reader" : " readers") + (hits ? `, ${hits} from Redis` : "") + (failed ? `, ${failed} without an answer` : "") + (stopped ? `, ${stopped} stopped` : "") + ". Tokens: ",
    bold(whole.format(generated)), " generated, ", bold(whole.format(delivered)), " delivered.");
}

// -- the river -----------------------------------------------------------------------------------
// Tokens over time. Each reader is a thin line, the generation a wide one. A reader that starts later gets all earlier
// tokens at once, so its line rises straight up first. Lines are shifted by `gap` each: only a length has a scale.

let hot = -1;
function draw() {
  const canvas = $("river"), scale = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
    canvas.width = Math.round(w * scale);
    canvas.height = Math.round(h * scale);
  }
  const pen = canvas.getContext("2d"), css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue("--" + name).trim();
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, w, h);
  pen.font = "12px system-ui, sans-serif";
  const lanes = run ? run.lanes : [], left = 40, bottom = h - 22, right = w - 12;
  const end = Math.max(1000, ...lanes.map((one) => one.points.at(-2) ?? 0), ...lanes.map((one) => run.open ? one.delay : 0)) * 1.02;
  const most = Math.max(16, ...lanes.map((one) => one.tokens));
  const gap = Math.min(4, (h * .3) / Math.max(1, lanes.length));
  const room = bottom - 28 - gap * lanes.length;
  const X = (t) => left + (right - left) * t / end;
  const Y = (tokens, order) => bottom - room * tokens / most - gap * (lanes.length - order);

  pen.strokeStyle = colour("line");
  pen.fillStyle = colour("dim");
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(left, bottom + .5);
  pen.lineTo(right, bottom + .5);
  pen.stroke();
  const step = [250, 500, 1000, 2000, 5000, 10000, 30000, 60000].find((s) => end / s <= w / 80) ?? 120000;
  pen.textAlign = "center";
  for (let t = 0; X(t) < right - 12; t += step) {
    pen.fillText(t ? t / 1000 + " s" : "0", X(t), h - 5);
    pen.fillRect(Math.round(X(t)), bottom, 1, 4);
  }
  if (!lanes.length) return;
  const unit = [1, 2, 5].flatMap((n) => [10, 100, 1000].map((ten) => n * ten)).filter((n) => n <= most / 2).reduce((a, b) => Math.max(a, b), 8);
  const high = Math.round(room * unit / most), foot = bottom - 8;
  for (const [x, y, width, height] of [[left - 8, foot - high, 1, high], [left - 11, foot - high, 7, 1], [left - 11, foot, 7, 1]]) pen.fillRect(x, y, width, height);
  pen.save();
  pen.translate(left - 16, foot - high / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(whole.format(unit) + " tokens", 0, 0);
  pen.restore();

  const path = (one) => {
    pen.beginPath();
    pen.moveTo(X(one.points[0]), Y(0, one.order));
    let x = -9, y = 0;
    for (let i = 0; i < one.points.length; i += 2) {
      const nx = X(one.points[i]), ny = Y(one.points[i + 1], one.order);
      // A leap of many tokens at one time is a replay: straight up, then along.
      if (nx - x > .8 || i >= one.points.length - 2 || ny - y > 6 || y - ny > 6) { pen.lineTo(nx, ny); x = nx; y = ny; }
    }
    pen.stroke();
  };
  pen.lineJoin = pen.lineCap = "round";
  const seen = new Set();
  for (const one of [...lanes].sort((a, b) => a.order - b.order)) {
    if (!one.points.length || one.flight == null || one.ask == null || seen.has(one.flight)) continue;
    seen.add(one.flight); // the generation
    pen.globalAlpha = .16;
    pen.strokeStyle = colour(one.verdict || "miss");
    pen.lineWidth = Math.max(7, gap * 2.5);
    path(one);
  }
  for (const one of lanes) {
    if (!one.points.length) continue;
    const name = one.failed ? "bad" : one.verdict || "bypass";
    pen.globalAlpha = hot < 0 || hot === one.number ? 1 : .18;
    pen.strokeStyle = pen.fillStyle = colour(name);
    pen.lineWidth = hot === one.number ? 3 : Math.max(1, Math.min(2, gap * .55));
    path(one);
    const t = one.points.at(-2), tokens = one.points.at(-1);
    pen.beginPath();
    pen.arc(X(t), Y(tokens, one.order), hot === one.number ? 4 : Math.min(2.6, gap * .7 + .6), 0, 7);
    pen.fill();
    if (one.delay) { // when it started
      pen.beginPath();
      pen.moveTo(X(one.points[0]), bottom - 1);
      pen.lineTo(X(one.points[0]) - 3.5, bottom + 5);
      pen.lineTo(X(one.points[0]) + 3.5, bottom + 5);
      pen.fill();
    }
  }
  pen.globalAlpha = 1;
}
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

draw();
watch();

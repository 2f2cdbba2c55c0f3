// A client that comes back to its stream after its connection was lost: no event is missing, none comes twice.
//
//     node ops/examples/resume.mjs http://127.0.0.1:8080 MODEL "Tell me a story" [KEY]
//
// In a browser `events` works as it is, for an origin in the gateway's `cors_origins`.

const GRACE = 30; // seconds that the gateway keeps the stream after this client has left
const TRIES = 8; // attempts in succession that bring nothing, in 6 s

// The data of the events of a streamed chat, which ends where the caller leaves the loop. Throws where the gateway
// refuses.
export async function* events(base, body, headers = {}) {
  let url = `${base}/v1/chat/completions`;
  let options = {
    method: "POST",
    headers: { ...headers, "content-type": "application/json", "x-gateway-resume": `${GRACE}; ids` },
    body: JSON.stringify({ ...body, stream: true }),
  };
  let name = null;
  let last = "0";
  let tries = 0;
  let ended = false;
  try {
    for (;;) {
      let refusal = null;
      try {
        const answer = await fetch(url, options);
        if (answer.ok) {
          name = answer.headers.get("x-gateway-stream");
          for await (const { id, data } of wholeEvents(answer.body)) {
            last = id;
            tries = 0;
            ended = data === "[DONE]" || data.startsWith('{"error"');
            yield data;
            if (ended) return;
          }
        } else if (answer.status < 500 || name === null) {
          refusal = new Error(`${answer.status}: ${await answer.text()}`);
        }
      } catch {
        // the connection is lost
      }
      if (refusal) throw refusal;
      tries += 1;
      if (name === null || tries > TRIES) throw new Error(`the stream was lost after event ${last}`);
      await new Promise((resolve) => setTimeout(resolve, Math.min(1000, 50 * 2 ** tries)));
      url = `${base}/v1/streams/${name}`;
      options = { headers: { ...headers, "last-event-id": last } };
    }
  } finally {
    // The caller has left the loop: without this it would be generated for GRACE.
    if (!ended && name !== null) {
      const options = { method: "DELETE", headers, signal: AbortSignal.timeout(5000) };
      await fetch(`${base}/v1/streams/${name}`, options).catch(() => {});
    }
  }
}

// The ids and the data of server-sent events. One that is cut is none, and neither is a comment.
async function* wholeEvents(body) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of body) {
    text += decoder.decode(bytes, { stream: true });
    for (let end; (end = /\r?\n\r?\n/.exec(text)); ) {
      const lines = text.slice(0, end.index).split(/\r?\n/);
      text = text.slice(end.index + end[0].length);
      const of = (field) => lines.filter((line) => line.startsWith(field)).map((line) => line.slice(field.length));
      const data = of("data:").map((value) => value.replace(/^ /, ""));
      if (data.length) yield { id: of("id:").join("").trim(), data: data.join("\n") };
    }
  }
}

if (process.argv[1]?.endsWith("resume.mjs")) {
  if (process.argv.length < 5 || process.argv.length > 6) {
    console.error("usage: node ops/examples/resume.mjs URL MODEL PROMPT [KEY]");
    process.exit(1);
  }
  const [base, model, prompt, key] = process.argv.slice(2);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  for await (const data of events(base, { model, messages: [{ role: "user", content: prompt }] }, headers)) {
    if (data === "[DONE]") continue;
    if (data.startsWith('{"error"')) {
      console.error(`\n${JSON.parse(data).error.message}`);
      process.exit(1);
    }
    for (const choice of JSON.parse(data).choices ?? []) process.stdout.write(choice.delta.content ?? "");
  }
  console.log();
}

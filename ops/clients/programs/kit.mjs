// What the programs of clients in JavaScript share; kit.py has the same for Python, and says what each part means.

export const COLOUR = 'Name a colour.';
export const COUNT = 'Count from 1 to 1000, one number a line.';
export const WEATHER = 'What is the weather in Paris?';
export const [LONG, SHORT, TYPED] = [2000, 8, 100];
export const CITY = {
  type: 'object',
  properties: {city: {type: 'string', enum: ['Paris', 'Rome']}},
  required: ['city'],
  additionalProperties: false,
};
export const COLOURS = {
  type: 'object',
  properties: {colour: {type: 'string', enum: ['red', 'blue']}},
  required: ['colour'],
  additionalProperties: false,
};
export const PIXEL = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const [TRIAL_SECONDS, LOOK] = [150, 0.05];

const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

export function check(fact, words) {
  if (!fact) throw new Error(words);
}

export async function main(trials) {
  for (const [name, target] of Object.entries(JSON.parse(process.argv.at(-1))))
    for (const [feature, trial] of Object.entries(trials))
      console.log(JSON.stringify({target: name, feature, words: await tried(trial, target)}));
  process.exit(0);
}

async function tried(trial, target) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`it took more than ${TRIAL_SECONDS} s`)), 1000 * TRIAL_SECONDS);
  });
  try {
    await Promise.race([trial(target), late]);
    return '';
  } catch (error) {
    return `${error?.name === 'Error' ? error.constructor.name : error?.name}: ${error?.message}`.slice(0, 400);
  } finally {
    clearTimeout(timer);
  }
}

export async function refused(status, call) {
  try {
    await call();
  } catch (error) {
    check((error.status ?? error.statusCode) === status, `${error.status ?? error.statusCode}: ${error.message}`);
    return error;
  }
  throw new Error(`no error of status ${status}`);
}

async function until(fact, words, seconds = 30) {
  const end = performance.now() + 1000 * seconds;
  while (!await fact()) {
    check(performance.now() < end, words);
    await pause(LOOK);
  }
}

export async function running(target) {
  const text = await (await fetch(`${target.engine}/metrics`)).text();
  const lines = [...text.matchAll(/^vllm:num_requests_running(?:\{[^}]*\})? (\S+)/gm)];
  return lines.reduce((sum, line) => sum + Number(line[1]), 0);
}

export async function stops(target, leave) {
  await until(async () => await running(target) >= 1, 'the answer ended before the client could leave');
  await leave();
  await until(async () => await running(target) === 0, 'the engine goes on generating');
}

export async function busy(target, block) {
  const abort = new AbortController();
  const body = JSON.stringify({
    model: target.model, messages: [{role: 'user', content: COUNT}], max_tokens: LONG,
    stream: true, ignore_eos: true, temperature: 0.5,
  });
  const headers = {'content-type': 'application/json'};
  const answer = await fetch(`${target.url}/v1/chat/completions`, {method: 'POST', headers, body, signal: abort.signal});
  const reader = answer.body.getReader();
  await reader.read();
  const over = pause(target.silence).then(() => abort.abort());
  await block();
  await over;
  await reader.read().catch(() => {});
}

// A tenth of a second of silence: WAV, 16 kHz, mono.
export function wav() {
  const head = Buffer.from('52494646a40c000057415645666d74201000000001000100803e0000007d00000200100064617461800c0000', 'hex');
  return Buffer.concat([head, Buffer.alloc(3200)]);
}

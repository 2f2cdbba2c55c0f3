// fetch of Node.js with eventsource-parser, which most libraries in JavaScript read events with.
import {EventSourceParserStream} from 'eventsource-parser/stream';
import {busy, check, COLOUR, COUNT, LONG, main, SHORT, stops} from './kit.mjs';

async function asked(target, more = {}, signal = undefined) {
  const body = JSON.stringify({
    model: target.model, messages: [{role: 'user', content: COLOUR}], max_tokens: SHORT, temperature: 0,
    stream: true, ...more,
  });
  const headers = {'content-type': 'application/json'};
  const answer = await fetch(`${target.url}/v1/chat/completions`, {method: 'POST', headers, body, signal});
  check(answer.status === 200, `${answer.status} ${answer.status === 200 ? '' : await answer.text()}`);
  return answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream({onError: 'terminate'}));
}

async function events(target, more) {
  const found = [];
  for await (const event of await asked(target, more)) found.push(event.data);
  check(found.at(-1) === '[DONE]', `last: ${found.at(-1)}`);
  return found.slice(0, -1).map(JSON.parse);
}

async function stream(target) {
  const choices = (await events(target)).flatMap(part => part.choices);
  check(choices.map(choice => choice.delta.content ?? '').join(''), 'no text');
}

await main({
  stream,
  usage: async target => {
    const found = await events(target, {stream_options: {include_usage: true}});
    check(found.at(-1).usage.completion_tokens > 0, 'no usage');
  },
  abort: async target => {
    const control = new AbortController();
    const more = {messages: [{role: 'user', content: COUNT}], max_tokens: LONG, ignore_eos: true};
    const reader = (await asked(target, more, control.signal)).getReader();
    await reader.read();
    await stops(target, () => control.abort());
  },
  silence: target => busy(target, () => stream(target)),
});

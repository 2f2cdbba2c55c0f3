// The OpenAI client for JavaScript.
import OpenAI, {toFile} from 'openai';
import {zodResponseFormat} from 'openai/helpers/zod';
import {z} from 'zod';
import {busy, check, CITY, COLOUR, COUNT, LONG, main, PIXEL, refused, SHORT, stops, TYPED, wav, WEATHER} from './kit.mjs';

const client = url => new OpenAI({baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 120_000});
const says = content => [{role: 'user', content}];
const TOOL = {type: 'function', function: {name: 'weather', description: WEATHER, parameters: CITY}};
const FORCED = {tools: [TOOL], tool_choice: {type: 'function', function: {name: 'weather'}}, max_tokens: TYPED};
const Colour = z.object({colour: z.enum(['red', 'blue'])});

const ask = (target, more = {}) => ({
  model: target.model, messages: says(COLOUR), max_tokens: SHORT, temperature: 0, ...more,
});
const chat = (target, more) => client(target.url).chat.completions.create(ask(target, more));
const respond = (target, more = {}) => client(target.url).responses.create({
  model: target.model, input: COLOUR, max_output_tokens: SHORT, temperature: 0, store: false, ...more,
});

async function stream(target) {
  const parts = [];
  for await (const part of await chat(target, {stream: true})) parts.push(...part.choices);
  check(parts.map(part => part.delta.content ?? '').join(''), 'no text');
  check(['stop', 'length'].includes(parts.at(-1).finish_reason), 'no end');
}

await main({
  whole: async target => {
    const answer = await chat(target);
    check(answer.choices[0].message.content && answer.usage.completion_tokens, 'no text or usage');
  },
  stream,
  usage: async target => {
    let last;
    for await (const part of await chat(target, {stream: true, stream_options: {include_usage: true}})) last = part;
    check(last.usage.completion_tokens > 0 && last.choices.length === 0, 'no usage');
  },
  tools: async target => {
    const answer = await chat(target, {messages: says(WEATHER), ...FORCED});
    const {city} = JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
    check(['Paris', 'Rome'].includes(city), `city: ${city}`);
  },
  'tools, streamed': async target => {
    const answer = client(target.url).chat.completions.stream(ask(target, {messages: says(WEATHER), ...FORCED}));
    const {choices} = await answer.finalChatCompletion();
    const {city} = JSON.parse(choices[0].message.tool_calls[0].function.arguments);
    check(['Paris', 'Rome'].includes(city), `city: ${city}`);
  },
  structured: async target => {
    const format = zodResponseFormat(Colour, 'colour');
    const answer = await client(target.url).chat.completions.parse(
      ask(target, {response_format: format, max_tokens: TYPED}));
    check(Colour.safeParse(answer.choices[0].message.parsed).success, 'not of the schema');
  },
  Responses: async target => check((await respond(target)).output_text, 'no text'),
  'Responses, streamed': async target => {
    const kinds = [];
    for await (const event of await respond(target, {stream: true})) kinds.push(event.type);
    check(kinds[0] === 'response.created' && kinds.includes('response.output_text.delta'), kinds.join(' '));
    check(['response.completed', 'response.incomplete'].includes(kinds.at(-1)), kinds.at(-1));
  },
  'Responses, chained': async target => {
    const first = await respond(target, {store: true});
    check((await client(target.url).responses.retrieve(first.id)).id === first.id, 'not kept');
    const second = await respond(target, {previous_response_id: first.id, store: true});
    check(second.previous_response_id === first.id && second.output_text, 'not chained');
  },
  upload: async target => {
    const file = await toFile(wav(), 'a.wav');
    const answer = await client(target.url).audio.transcriptions.create({model: target.model, file});
    check(typeof answer.text === 'string', 'no text');
  },
  image: async target => {
    const parts = [{type: 'text', text: COLOUR}, {type: 'image_url', image_url: {url: PIXEL}}];
    check((await chat(target, {messages: says(parts)})).choices[0].message.content, 'no text');
  },
  embeddings: async target => {
    const answer = await client(target.embeds).embeddings.create({model: target.embed_model, input: ['a', 'b']});
    check(answer.data.length === 2 && answer.data[0].embedding.length > 1, 'no vectors');
  },
  abort: async target => {
    const answer = await chat(target, {messages: says(COUNT), max_tokens: LONG, stream: true, ignore_eos: true});
    await answer[Symbol.asyncIterator]().next();
    await stops(target, () => answer.controller.abort());
  },
  silence: target => busy(target, () => stream(target)),
  404: target => refused(404, () => chat(target, {model: 'no-such-model'})),
  400: target => refused(400, () => chat(target, {temperature: -1})),
});

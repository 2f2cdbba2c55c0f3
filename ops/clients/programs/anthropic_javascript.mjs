// Anthropic's client for JavaScript.
import Anthropic from '@anthropic-ai/sdk';
import {busy, check, CITY, COLOUR, COLOURS, COUNT, LONG, main, PIXEL, refused, SHORT, stops, TYPED, WEATHER} from './kit.mjs';

const client = target => new Anthropic({baseURL: target.url, apiKey: 'none', maxRetries: 0, timeout: 120_000});
const says = content => [{role: 'user', content}];
const TOOLS = {
  messages: says(WEATHER), max_tokens: TYPED, tool_choice: {type: 'tool', name: 'weather'},
  tools: [{name: 'weather', description: WEATHER, input_schema: CITY}],
};
const ask = (target, more = {}) => ({model: target.model, messages: says(COLOUR), max_tokens: SHORT, ...more});
const create = (target, more) => client(target).messages.create(ask(target, more));
const final = (target, more) => client(target).messages.stream(ask(target, more)).finalMessage();

function called(message) {
  const [call, ...others] = message.content.filter(block => block.type === 'tool_use');
  check(['Paris', 'Rome'].includes(call?.input.city) && !others.length, JSON.stringify(message.content));
}

async function stream(target) {
  let text = '';
  const answer = client(target).messages.stream(ask(target)).on('text', part => { text += part; });
  const message = await answer.finalMessage();
  check(text && ['end_turn', 'max_tokens'].includes(message.stop_reason), 'no text or no end');
}

await main({
  whole: async target => check((await create(target)).content[0].text, 'no text'),
  stream,
  usage: async target => {
    const {usage} = await final(target);
    const counted = await client(target).messages.countTokens({model: target.model, messages: says(COLOUR)});
    check(usage.output_tokens > 0 && usage.input_tokens === counted.input_tokens, JSON.stringify(usage));
  },
  tools: async target => called(await create(target, TOOLS)),
  'tools, streamed': async target => called(await final(target, TOOLS)),
  structured: async target => {
    const format = {type: 'json_schema', schema: COLOURS};
    const answer = await create(target, {max_tokens: TYPED, output_config: {format}});
    check(['red', 'blue'].includes(JSON.parse(answer.content[0].text).colour), 'not of the schema');
  },
  image: async target => {
    const source = {type: 'base64', media_type: 'image/png', data: PIXEL.split(',')[1]};
    const answer = await create(target, {messages: says([{type: 'text', text: COLOUR}, {type: 'image', source}])});
    check(answer.content.length, 'no content');
  },
  abort: async target => {
    const answer = await create(target, {messages: says(COUNT), max_tokens: LONG, stream: true});
    await answer[Symbol.asyncIterator]().next();
    await stops(target, () => answer.controller.abort());
  },
  silence: target => busy(target, () => stream(target)),
  404: target => refused(404, () => create(target, {model: 'no-such-model'})),
  400: target => refused(400, () => create(target, {max_tokens: -1})),
});

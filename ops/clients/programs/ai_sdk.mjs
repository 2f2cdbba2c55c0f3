// The AI SDK with the provider that the first argument names: `openai-compatible`, `anthropic` or `openai` (Responses).
import {createAnthropic} from '@ai-sdk/anthropic';
import {createOpenAI} from '@ai-sdk/openai';
import {createOpenAICompatible} from '@ai-sdk/openai-compatible';
import {embedMany, generateText, jsonSchema, Output, streamText, tool} from 'ai';
import {busy, check, CITY, COLOUR, COLOURS, COUNT, LONG, main, PIXEL, refused, SHORT, stops, TYPED, WEATHER} from './kit.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;
const name = process.argv[2];
const MAKERS = {
  'openai-compatible': url => createOpenAICompatible({name: 'ours', baseURL: `${url}/v1`, apiKey: 'none', includeUsage: true, supportsStructuredOutputs: true}),
  anthropic: url => createAnthropic({baseURL: `${url}/v1`, apiKey: 'none'}),
  openai: url => createOpenAI({baseURL: `${url}/v1`, apiKey: 'none'}),
};
const provider = target => MAKERS[name](target.url);
const ask = (target, more = {}) => ({
  model: provider(target)(target.model), prompt: COLOUR, maxOutputTokens: SHORT, maxRetries: 0, ...more,
});
const TOOLS = {
  prompt: WEATHER, maxOutputTokens: TYPED, toolChoice: {type: 'tool', toolName: 'weather'},
  tools: {weather: tool({description: WEATHER, inputSchema: jsonSchema(CITY)})},
};

function called(calls) {
  check(calls.length === 1 && ['Paris', 'Rome'].includes(calls[0].input.city), JSON.stringify(calls));
}

// streamText reports errors as parts of the stream.
async function parts(answer) {
  const found = [];
  for await (const part of answer.fullStream) {
    if (part.type === 'error') throw part.error;
    found.push(part);
  }
  return found;
}

async function stream(target) {
  const found = await parts(streamText(ask(target, {onError: () => {}})));
  check(found.some(part => part.type === 'text-delta'), 'no text');
  check(found.at(-1).type === 'finish', 'no end');
  return found.at(-1);
}

const trials = {
  whole: async target => check((await generateText(ask(target))).text, 'no text'),
  stream,
  usage: async target => check((await stream(target)).totalUsage.outputTokens > 0, 'no usage'),
  tools: async target => called((await generateText(ask(target, TOOLS))).toolCalls),
  'tools, streamed': async target =>
    called((await parts(streamText(ask(target, TOOLS)))).filter(part => part.type === 'tool-call')),
  structured: async target => {
    const output = Output.object({schema: jsonSchema(COLOURS)});
    const answer = await generateText(ask(target, {output, maxOutputTokens: TYPED}));
    check(['red', 'blue'].includes(answer.output.colour), 'not of the schema');
  },
  image: async target => {
    const content = [{type: 'text', text: COLOUR}, {type: 'image', image: PIXEL}];
    check((await generateText(ask(target, {prompt: undefined, messages: [{role: 'user', content}]}))).text, 'no text');
  },
  abort: async target => {
    const control = new AbortController();
    const answer = streamText(ask(target, {
      prompt: COUNT, maxOutputTokens: LONG, abortSignal: control.signal, onError: () => {},
    }));
    const reader = answer.fullStream.getReader();
    for (let part = await reader.read(); part.value?.type !== 'text-delta'; part = await reader.read())
      if (part.done || part.value.type === 'error') throw part.value?.error ?? new Error('no text');
    await stops(target, () => control.abort());
  },
  silence: target => busy(target, () => stream(target)),
  404: target => refused(404, () => generateText({...ask(target), model: provider(target)('no-such-model')})),
  400: target => refused(400, () => generateText(ask(target, {temperature: -1}))),
};
if (name === 'openai-compatible')
  trials.embeddings = async target => {
    const model = MAKERS[name](target.embeds).embeddingModel(target.embed_model);
    check((await embedMany({model, values: ['a', 'b'], maxRetries: 0})).embeddings.length === 2, 'no vectors');
  };
if (name === 'openai') {
  const all = {...trials};
  for (const each of Object.keys(trials)) delete trials[each];
  trials.Responses = all.whole;
  trials['Responses, streamed'] = all.stream;
  trials['Responses, chained'] = async target => {
    const first = await generateText(ask(target, {providerOptions: {openai: {store: true}}}));
    const previousResponseId = first.providerMetadata.openai.responseId;
    const second = await generateText(ask(target, {providerOptions: {openai: {previousResponseId}}}));
    check(second.text, 'no text');
  };
  for (const each of ['usage', 'structured', 'image', 'abort', 'silence', '404', '400']) trials[each] = all[each];
}
await main(trials);

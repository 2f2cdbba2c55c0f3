'use strict';
const $ = id => document.getElementById(id);
const make = (tag, text = '', kind = '') => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
};
const nameOf = ref => ref.split('/').pop();
const typeOf = schema => {
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(' | ');
  if (schema.anyOf && !schema.properties) return schema.anyOf.map(typeOf).join(' | ');
  if (schema.type === 'array') return `array of ${typeOf(schema.items || {})}`;
  return schema.type || 'any';
};
const table = (caption, rows) => {
  const shown = make('table');
  shown.append(make('caption', caption));
  for (const cells of rows) {
    const row = make('tr');
    row.append(...cells.map((cell, at) => make('td', cell, at ? '' : 'path')));
    shown.append(row);
  }
  return shown;
};
const section = (id, head, parts) => {
  const details = make('details');
  details.id = id;
  const summary = make('summary');
  summary.append(...head);
  details.append(summary, ...parts);
  return details;
};
const contents = content => Object.entries(content || {}).map(([kind, {schema}]) => `${kind}: ${typeOf(schema || {})}`);
function operation(path, method, spec) {
  const head = [make('span', method.toUpperCase(), 'method'), make('span', path, 'path'), make('span', ` ${spec.summary}`, 'dim')];
  const parts = [];
  const parameters = spec.parameters || [];
  if (parameters.length) parts.push(table('Parameters', parameters.map(p => [p.name, p.in, p.description])));
  if (spec.requestBody) parts.push(table('Body', contents(spec.requestBody.content).map(text => [text])));
  parts.push(table('Answers', Object.entries(spec.responses).map(([status, answer]) =>
    [status, answer.description, contents(answer.content).join(', '), Object.keys(answer.headers || {}).join(', ')])));
  parts.push(make('p', spec.security && spec.security.length ? 'Needs a key: authorization: Bearer KEY.' : 'Needs no key.', 'dim'));
  return section(spec.operationId, head, parts);
}
function show(api) {
  $('title').textContent = `${api.info.title} ${api.info.version}`;
  $('about').textContent = api.info.description;
  const tags = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, spec] of Object.entries(item)) {
      if (method === 'parameters') continue;
      const tag = spec.tags[0];
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(operation(path, method, {...spec, parameters: [...(item.parameters || []), ...spec.parameters]}));
    }
  }
  for (const [tag, operations] of tags) $('paths').append(make('h2', tag), ...operations);
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    const required = new Set(schema.required || []);
    const rows = Object.entries(schema.properties || {}).map(([member, of]) =>
      [member, typeOf(of), required.has(member) ? 'required' : '']);
    $('schemas').append(section(`schema ${name}`, [make('span', name, 'path')],
      [make('p', schema.description || '', 'dim'), table('Members', rows)]));
  }
  $('schemas').hidden = false;
}
async function load(key) {
  $('problem').textContent = '';
  try {
    const answer = await fetch('openapi.json', {headers: key ? {authorization: `Bearer ${key}`} : {}});
    const body = await answer.json();
    $('keyform').hidden = answer.status !== 401;
    if (answer.ok) show(body);
    else $('problem').textContent = answer.status === 401 && !key ? '' : body.error.message;
  } catch (error) {
    $('problem').textContent = `The description cannot be read: ${error.message}`;
  }
}
$('keyform').addEventListener('submit', event => { event.preventDefault(); load($('key').value) });
load('');

// Node's http2: http2.mjs ORIGIN SERVER_KEY CLIENT_KEY. Many streams on one connection, an event stream among them.
// Prints "change" when the document must change.
import assert from 'node:assert/strict';
import { connect } from 'node:http2';

const [origin, serverKey, clientKey] = process.argv.slice(2);
const session = connect(origin, { rejectUnauthorized: false });
session.on('error', (error) => { throw error; });

const ask = (path, body) => new Promise((resolve, reject) => {
  const headers = { ':path': path, ':method': body === undefined ? 'GET' : 'POST', 'x-environment-key': serverKey };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const stream = session.request(headers, { endStream: body === undefined });
  let status;
  let text = '';
  stream.setEncoding('utf8');
  stream.on('response', (fields) => { status = fields[':status']; });
  stream.on('data', (piece) => { text += piece; });
  stream.on('end', () => resolve({ status, text }));
  stream.on('error', reject);
  if (body !== undefined) stream.end(body);
});

// An event stream stays open while the others come and go.
const events = session.request({ ':path': `/sse/environments/${clientKey}/stream` });
let received = '';
const listeners = new Set();
events.setEncoding('utf8');
events.on('data', (piece) => {
  received += piece;
  listeners.forEach((listener) => listener());
});
const receives = (count) => new Promise((resolve) => {
  const check = () => {
    if (received.split('updated_at').length - 1 < count) return;
    listeners.delete(check);
    resolve();
  };
  listeners.add(check);
  check();
});
await receives(1);

// More than the server allows: Node sends the rest later. The bodies of those that are open stay below the window for
// bodies of one connection, 1 MiB (docs/limits.md).
const asked = Array.from({ length: 300 }, (_, number) => (number % 2 === 0
  ? ask('/api/v1/flags/')
  : ask('/api/v1/identities/', JSON.stringify({ identifier: `user-${number}`, traits: [], padding: 'x'.repeat(number * 50) }))));
const answers = await Promise.all(asked);
answers.forEach(({ status, text }, number) => {
  assert.equal(status, 200, text);
  const answer = JSON.parse(text);
  const flags = number % 2 === 0 ? answer : answer.flags;
  assert.equal(flags.find((flag) => flag.feature.name === 'banner').feature_state_value, 'hello');
  if (number % 2 === 1) assert.equal(answer.identifier, `user-${number}`);
});
console.log('300 streams');

console.log('change');
await receives(2);
const { text } = await ask('/api/v1/flags/');
assert.equal(JSON.parse(text).find((flag) => flag.feature.name === 'count').feature_state_value, 2);
console.log('realtime');
events.close();
await new Promise((resolve) => session.close(resolve));

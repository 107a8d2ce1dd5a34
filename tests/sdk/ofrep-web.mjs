// OpenFeature's web provider in a browser: ofrep-web.mjs CLIENT_KEY.
// Prints "change" when the document must change; the event stream named by the bulk response must report it,
// because the provider does not poll here.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { build } from 'esbuild';
import { launch, PATIENCE_MS, servePage } from './chromium.mjs';

const [key] = process.argv.slice(2);
const entry = `
  import { OpenFeature } from '@openfeature/web-sdk';
  import { OFREPWebProvider } from '@openfeature/ofrep-web-provider';
  globalThis.OpenFeature = OpenFeature;
  globalThis.OFREPWebProvider = OFREPWebProvider;`;
const bundle = await build({ stdin: { contents: entry, resolveDir: import.meta.dirname }, bundle: true, write: false, format: 'iife' });
const script = bundle.outputFiles[0].text;
const server = createServer((request, response) => {
  response.setHeader('content-type', request.url === '/bundle.js' ? 'text/javascript' : 'text/html');
  response.end(request.url === '/bundle.js' ? script : '<!doctype html><script src="/bundle.js"></script>');
});
const { port, proxy } = await servePage(server);
const browser = await launch();
const page = await browser.newPage();
page.on('console', (message) => console.log(`console: ${message.text()}`));
await page.goto(`http://127.0.0.1:${port}/`);
const values = await page.evaluate(async ([baseUrl, key]) => {
  await OpenFeature.setContext({ targetingKey: 'u', plan: 'gold' });
  const provider = new OFREPWebProvider({ baseUrl, headers: [['X-Environment-Key', key]], pollInterval: 0, changeDetection: 'sse' });
  await OpenFeature.setProviderAndWait(provider);
  globalThis.client = OpenFeature.getClient();
  return [client.getStringValue('banner', 'default'), client.getBooleanValue('on', false), client.getNumberValue('count', -1)];
}, [proxy, key]);
assert.deepEqual(values, ['golden', true, 1]);
console.log('web provider');
console.log('change');
await page.waitForFunction(() => client.getNumberValue('count', -1) === 2, undefined, { timeout: PATIENCE_MS });
console.log('realtime');
await browser.close();
server.close();

// Scenarios of OpenFeature with the web provider in a browser: scenarios-web.mjs ORIGIN_OF_PROXY CLIENT_KEY. Prints a line of
// JSON for each scenario of scenarios.json, and for the states of the provider.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { build } from 'esbuild';
import { launch } from './chromium.mjs';

const [baseUrl, key] = process.argv.slice(2);
const entry = `
  import { OpenFeature, ProviderStatus } from '@openfeature/web-sdk';
  import { OFREPWebProvider } from '@openfeature/ofrep-web-provider';
  import { judge } from './scenario.mjs';
  Object.assign(globalThis, { OpenFeature, ProviderStatus, OFREPWebProvider, judge });`;
const bundle = await build({ stdin: { contents: entry, resolveDir: import.meta.dirname }, bundle: true, write: false, format: 'iife' });
const script = bundle.outputFiles[0].text;
const server = createServer((request, response) => {
  response.setHeader('content-type', request.url === '/bundle.js' ? 'text/javascript' : 'text/html');
  response.end(request.url === '/bundle.js' ? script : '<!doctype html><script src="/bundle.js"></script>');
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const browser = await launch();
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${server.address().port}/`);
const scenarios = JSON.parse(readFileSync(new URL('scenarios.json', import.meta.url)));
const results = await page.evaluate(async ([baseUrl, key, scenarios]) => {
  const provide = (key) => new OFREPWebProvider({ baseUrl, headers: [['X-Environment-Key', key]], pollInterval: 0, cacheMode: 'disabled' });
  await OpenFeature.setContext({ targetingKey: 'u' });
  await OpenFeature.setProviderAndWait(provide(key));
  const client = OpenFeature.getClient();
  const results = [{ name: 'the provider becomes ready', ok: client.providerStatus === ProviderStatus.READY, found: client.providerStatus }];
  for (const scenario of scenarios) {
    await OpenFeature.setContext({ targetingKey: 'u', ...scenario.context });
    const method = { boolean: 'getBooleanDetails', string: 'getStringDetails', object: 'getObjectDetails' }[scenario.type] ?? 'getNumberDetails';
    results.push(judge(scenario, client[method](scenario.flag, scenario.default)));
  }
  const failed = await OpenFeature.setProviderAndWait('wrong', provide('unknown-key')).then(() => null, (error) => error.code ?? String(error));
  const refused = OpenFeature.getClient('wrong').getStringDetails('string-flag', 'code');
  results.push({ name: 'an unknown key gives the default', ok: failed !== null && refused.value === 'code', found: { failed, refused } });
  return results;
}, [baseUrl, key, scenarios]);
results.forEach((result) => console.log(JSON.stringify(result)));
await browser.close();
server.close();

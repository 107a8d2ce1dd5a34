// The JavaScript SDK in a browser: browser.mjs CLIENT_KEY PACKAGE.
// The page has another origin than the proxy, which allows only that origin. Prints "change" when the
// document must change, and waits for the event of the change.
import assert from 'node:assert/strict';
import { launch, PATIENCE_MS, servePage, serverOf } from './chromium.mjs';

const [environmentID, sdkName] = process.argv.slice(2);
const server = serverOf(sdkName);
const { port, proxy } = await servePage(server);

const browser = await launch();
const open = async (host) => {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on('pageerror', (error) => console.log(`page error: ${error}`));
  await page.goto(`http://${host}:${port}/`);
  return page;
};

const page = await open('127.0.0.1');
// The SDK sends its counts every ten seconds, so the first upload may happen at any time from here on.
const counted = page.waitForResponse((response) => response.url().includes('/analytics/flags/') && response.status() === 200, { timeout: 4 * PATIENCE_MS });
const options = {
  environmentID, api: `${proxy}/api/v1/`, realtime: true, eventSourceUrl: `${proxy}/`, enableAnalytics: true, cacheFlags: false,
};
const first = await page.evaluate(async (options) => {
  globalThis.flagsmith = index.default;
  globalThis.changes = 0;
  await flagsmith.init({ ...options, onChange: () => { globalThis.changes += 1; } });
  return { banner: flagsmith.getValue('banner'), on: flagsmith.hasFeature('on'), off: flagsmith.hasFeature('off'), count: flagsmith.getValue('count') };
}, options);
assert.deepEqual(first, { banner: 'hello', on: true, off: false, count: 1 });
console.log('flags');

const identified = await page.evaluate(async () => {
  await flagsmith.identify('user-1', { plan: 'gold', age: 42 });
  const state = flagsmith.getState();
  return { banner: flagsmith.getValue('banner'), plan: flagsmith.getTrait('plan'), age: flagsmith.getTrait('age'), identity: state.evaluationContext.identity.identifier };
});
assert.deepEqual(identified, { banner: 'golden', plan: 'gold', age: 42, identity: 'user-1' });
console.log('identify');

const traits = await page.evaluate(async () => {
  await flagsmith.setTrait('plan', 'silver');
  return { banner: flagsmith.getValue('banner'), plan: flagsmith.getTrait('plan') };
});
assert.deepEqual(traits, { banner: 'hello', plan: 'silver' });
console.log('traits');

if (sdkName === '@flagsmith/flagsmith') {
  // An exposure is recorded only for a flag with an experiment. The proxy is of another origin than the page.
  const exposed = page.waitForResponse((response) => response.url() === `${proxy}/v1/events` && response.request().method() === 'POST', { timeout: PATIENCE_MS });
  const experiment = await page.evaluate(async ([options, proxy]) => {
    const events = { enableEvents: true, eventProcessorConfig: { eventsApiUrl: `${proxy}/` } };
    const instance = index.createFlagsmithInstance();
    await instance.init({ ...options, ...events, realtime: false, enableAnalytics: false, identity: 'user-2' });
    instance.getExperimentFlag('banner');
    const flag = instance.getExperimentFlag('split');
    instance.trackEvent('purchase', { value: '9.99' });
    await instance.flushEvents();
    return { ...flag.experiment, variant: flag.variant };
  }, [options, proxy]);
  assert.deepEqual(experiment, { id: 7, name: 'Split', inExperiment: true, variant: 'b' });
  const response = await exposed;
  assert.deepEqual([response.status(), await response.json()], [202, { accepted: 2, rejected: [] }]);
  const { events } = response.request().postDataJSON();
  assert.deepEqual(events.map(({ event, feature_name, identifier, value }) => [event, feature_name, identifier, value]), [['$flag_exposure', 'split', 'user-2', 'b'], ['purchase', null, 'user-2', '9.99']]);
  assert.equal(events[0].metadata.experiment_id, 7);
  console.log('experiment');
}

console.log('change');
await page.waitForFunction(() => flagsmith.getValue('count') === 2, undefined, { timeout: PATIENCE_MS });
console.log('realtime');

await counted;
console.log('analytics');

// The same page under a name that is not in the allow list: the browser rejects the response.
const foreign = await open('localhost');
const refused = await foreign.evaluate(async (options) => {
  try {
    await fetch(`${options.api}flags/`, { headers: { 'X-Environment-Key': options.environmentID } });
    return 'answered';
  } catch (error) {
    return String(error);
  }
}, options);
assert.match(refused, /TypeError/);
console.log('refused');
await browser.close();
server.close();

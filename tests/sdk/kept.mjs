// The JavaScript SDK in a browser whose page is loaded again: kept.mjs CLIENT_KEY PACKAGE (kept|forgotten).
// It sends traits once and later asks by the identifier only. With a store of the proxy the flags stay as they
// were, without one they are those of an identity without traits.
import assert from 'node:assert/strict';
import { launch, PATIENCE_MS, servePage, serverOf } from './chromium.mjs';

const [environmentID, sdkName, expected] = process.argv.slice(2);
const server = serverOf(sdkName);
const { port, proxy } = await servePage(server);
const browser = await launch();
const page = await browser.newPage();
page.setDefaultTimeout(PATIENCE_MS);
page.on('pageerror', (error) => console.log(`page error: ${error}`));
const options = { environmentID, api: `${proxy}/api/v1/`, cacheFlags: false, realtime: false };

// A page without memory of its own: no storage of the browser has the traits.
const load = async (more) => {
  await page.goto(`http://127.0.0.1:${port}/`);
  return page.evaluate(async (options) => {
    globalThis.flagsmith = index.default;
    await flagsmith.init(options);
    return { banner: flagsmith.getValue('banner'), plan: flagsmith.getTrait('plan') ?? null };
  }, { ...options, ...more });
};
const change = (plan) => page.evaluate(async (plan) => {
  await flagsmith.setTrait('plan', plan);
  return { banner: flagsmith.getValue('banner'), plan: flagsmith.getTrait('plan') ?? null };
}, plan);
const none = { banner: 'hello', plan: null };
const gold = { banner: 'golden', plan: 'gold' };
const silver = { banner: 'hello', plan: 'silver' };

assert.deepEqual(await load({}), none);
const identified = await page.evaluate(async () => {
  await flagsmith.identify('user-1', { plan: 'gold', age: 42 });
  return { banner: flagsmith.getValue('banner'), plan: flagsmith.getTrait('plan') };
});
assert.deepEqual(identified, gold);
console.log('identified');

const known = page.waitForRequest((request) => request.method() !== 'OPTIONS' && request.url().includes('/identities/'));
const reloaded = await load({ identity: 'user-1' });
const request = await known;
assert.ok(!(request.postData() ?? '').includes('gold'), 'the SDK sends no traits');
assert.deepEqual(reloaded, expected === 'kept' ? gold : none);
assert.deepEqual(await load({ identity: 'user-2' }), none);
console.log(`reloaded: ${expected}`);

if (expected === 'kept') {
  assert.equal(await load({ identity: 'user-1' }).then(() => page.evaluate(() => flagsmith.getTrait('age'))), 42);
  assert.deepEqual(await change('silver'), silver);
  assert.deepEqual(await load({ identity: 'user-1' }), silver);
  assert.deepEqual(await change(null), none);
  assert.deepEqual(await load({ identity: 'user-1' }), none);
  console.log('changed');
}
await browser.close();
server.close();

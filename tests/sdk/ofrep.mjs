// OpenFeature's providers: ofrep.mjs ORIGIN_OF_PROXY CLIENT_KEY. Prints "change" when the
// document must change, and waits until the web provider receives the event.
import assert from 'node:assert/strict';
import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';

const [baseUrl, key] = process.argv.slice(2);
const headers = [['X-Environment-Key', key]];
await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl, headers }));
const client = OpenFeature.getClient();
const plain = { targetingKey: 'u' };
const gold = { targetingKey: 'u', plan: 'gold' };

const banner = await client.getStringDetails('banner', 'default', plain);
assert.equal(banner.value, 'hello');
const golden = await client.getStringDetails('banner', 'default', gold);
assert.deepEqual([golden.value, golden.reason], ['golden', 'TARGETING_MATCH']);
const split = await client.getStringDetails('split', 'default', plain);
assert.deepEqual([split.value, split.reason, split.variant], ['variant-value', 'SPLIT', 'b']);
assert.equal(await client.getBooleanValue('on', false, plain), true);
assert.equal(await client.getBooleanValue('off', true, plain), false);
assert.equal(await client.getNumberValue('count', -1, plain), 1);
const missing = await client.getStringDetails('unknown', 'default', plain);
assert.deepEqual([missing.value, missing.errorCode], ['default', 'FLAG_NOT_FOUND']);
const dark = await client.getStringDetails('dark', 'default', plain);
assert.equal(dark.value, 'default', 'a disabled flag gives the default');
console.log('server provider');
process.exit(0);

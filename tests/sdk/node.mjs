// The npm SDK for servers: node.mjs API_URL SERVER_KEY. Remote and local evaluation agree.
import assert from 'node:assert/strict';
import { Flagsmith } from 'flagsmith-nodejs';

const [apiUrl, environmentKey] = process.argv.slice(2);
const remote = new Flagsmith({ environmentKey, apiUrl, enableAnalytics: true });
const local = new Flagsmith({ environmentKey, apiUrl, enableLocalEvaluation: true });

const plain = (flags) =>
  Object.fromEntries(flags.allFlags().map((flag) => [flag.featureName, [flag.enabled, flag.value ?? null]]).sort());

const environment = plain(await remote.getEnvironmentFlags());
assert.ok(Object.keys(environment).length >= 7, 'the environment has flags');
assert.deepEqual(environment, plain(await local.getEnvironmentFlags()));
console.log(`environment: ${Object.keys(environment).length} flags agree`);

const banners = new Set();
for (let number = 0; number < 50; number += 1) {
  const traits = { age: number, beta: number % 2 === 0 };
  if (number % 3 === 0) traits.plan = 'gold';
  if (number % 5 === 0) traits.plan = { value: 'gold', transient: true };
  const left = plain(await remote.getIdentityFlags(`user-${number}`, traits, number % 7 === 0));
  assert.deepEqual(left, plain(await local.getIdentityFlags(`user-${number}`, traits)), `user-${number}`);
  banners.add(left.banner[1]);
}
assert.deepEqual([...banners].sort(), ['golden', 'hello']);
console.log('50 identities agree');

const flags = await remote.getEnvironmentFlags();
for (let number = 0; number < 3; number += 1) flags.isFeatureEnabled('banner');
await remote.analyticsProcessor.flush();
console.log('counted');
process.exit(0);

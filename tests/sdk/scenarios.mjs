// Scenarios of OpenFeature with the provider for servers: scenarios.mjs ORIGIN_OF_PROXY CLIENT_KEY. Prints a line of JSON
// for each scenario of scenarios.json, and for the states of the provider.
import { readFileSync } from 'node:fs';
import { OpenFeature, ProviderStatus } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';
import { judge } from './scenario.mjs';

const [baseUrl, key] = process.argv.slice(2);
const report = (result) => console.log(JSON.stringify(result));
const provide = (key) => new OFREPProvider({ baseUrl, headers: [['X-Environment-Key', key]] });
await OpenFeature.setProviderAndWait(provide(key));
const client = OpenFeature.getClient();
report({ name: 'the provider becomes ready', ok: client.providerStatus === ProviderStatus.READY, found: client.providerStatus });
for (const scenario of JSON.parse(readFileSync(new URL('scenarios.json', import.meta.url)))) {
  const method = { boolean: 'getBooleanDetails', string: 'getStringDetails', object: 'getObjectDetails' }[scenario.type] ?? 'getNumberDetails';
  const context = { targetingKey: 'u', ...scenario.context };
  report(judge(scenario, await client[method](scenario.flag, scenario.default, context)));
}
const anonymous = await client.getStringDetails('string-flag', 'code', {});
report({ name: 'a context without a targeting key is an error', ok: anonymous.errorCode === 'TARGETING_KEY_MISSING' && anonymous.value === 'code', found: anonymous });
await OpenFeature.setProviderAndWait('wrong', provide('unknown-key'));
const refused = await OpenFeature.getClient('wrong').getStringDetails('string-flag', 'code', { targetingKey: 'u' });
report({ name: 'an unknown key gives the default', ok: refused.value === 'code' && refused.errorCode !== undefined, found: refused });
process.exit(0);

// The demo's page in a browser: demo.mjs ORIGIN_OF_PROXY [SCREENSHOT]. Prints "change" when the
// demo's document must be edited, and waits until the page shows it.
import assert from 'node:assert/strict';
import { launch, PATIENCE_MS } from './chromium.mjs';

const [proxy, screenshot] = process.argv.slice(2);
const browser = await launch();
const page = await browser.newPage({ viewport: { width: 900, height: 900 } });
const errors = [];
page.on('pageerror', (error) => { errors.push(String(error)); console.log(`page error: ${error}`); });
page.on('console', (message) => console.log(`console: ${message.text()}`));
await page.goto(`${proxy}/demo/`);
const value = (name) => page.locator('tr', { has: page.locator('td', { hasText: new RegExp(`^${name}$`) }) }).locator('td').last();
const shows = (name, text) => page.waitForFunction(
  ([name, text]) => [...document.querySelectorAll('tr')].some((row) => row.firstChild.textContent === name && row.lastChild.textContent === text),
  [name, text], { timeout: PATIENCE_MS });
// ada has an identity override.
await page.waitForFunction(() => document.querySelectorAll('tbody tr').length > 0, undefined, { timeout: PATIENCE_MS });
assert.notEqual(await value('welcome_message').innerText(), 'Hello from the edge');
await page.fill('input[name=identifier]', 'visitor');
await page.click('button[type=submit]');
await shows('welcome_message', 'Hello from the edge');
assert.equal(await page.locator('tbody tr').count(), 12, 'all but the server-only feature');
console.log('flags');

const before = await page.locator('tbody').innerText();
await page.fill('input[name=spend]', '2000');
await page.fill('input[name=country]', 'GB');
await page.click('button[type=submit]');
await page.waitForFunction((before) => document.querySelector('tbody').innerText !== before, before, { timeout: PATIENCE_MS });
assert.equal(await value('welcome_message').innerText(), 'Welcome back, dear customer');
console.log('premium');
await page.click('text=ada, who has');
await shows('welcome_message', 'Good morning, Ada');
await page.click('text=anyone');
await shows('welcome_message', 'Hello from the edge');

console.log('change');
await shows('welcome_message', 'Edited while you watch');
assert.equal(await value('welcome_message').innerText(), 'Edited while you watch');
console.log('live');
if (screenshot) await page.screenshot({ path: screenshot });
assert.deepEqual(errors, []);
await browser.close();

// Starts Chromium with the flags for containers: as root, and without /dev/shm.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

// The deadline of every wait. Long, because a CI machine may be busy.
export const PATIENCE_MS = 60_000;

// Serves a page on a free port, prints its address, and reads the address of the proxy.
export const servePage = async (server) => {
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  console.log(`page http://127.0.0.1:${port}`);
  const proxy = await new Promise((resolve) => process.stdin.once('data', (bytes) => resolve(String(bytes).trim())));
  process.stdin.destroy();
  return { port, proxy };
};

// A server with a page that has a package of the SDK, which defines `index`.
export const serverOf = (sdkName) => {
  const sdk = readFileSync(createRequire(import.meta.url).resolve(sdkName), 'utf8');
  return createServer((request, response) => {
    const isScript = request.url === '/sdk.js';
    response.setHeader('content-type', isScript ? 'text/javascript' : 'text/html');
    response.end(isScript ? sdk : '<!doctype html><title>SDK</title><script src="/sdk.js"></script>');
  });
};

export const launch = () => chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
    // A proxy with a certificate of the test's own.
    ...(process.env.ANY_CERTIFICATE ? ['--ignore-certificate-errors'] : []),
  ],
  timeout: 2 * PATIENCE_MS,
});

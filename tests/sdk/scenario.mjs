// Compares the details of an evaluation with a scenario; runs in Node and in a browser.
export function judge(scenario, details) {
  const found = { value: details.value, variant: details.variant, reason: details.reason, error: details.errorCode };
  const isSame = (name) => !(name in scenario) || JSON.stringify(found[name]) === JSON.stringify(scenario[name]);
  const isErrorExpected = scenario.any_error || found.error === scenario.error;
  const ok = ['value', 'variant', 'reason'].every(isSame) && isErrorExpected;
  return { name: scenario.name, ok, found, waived: scenario.waived };
}

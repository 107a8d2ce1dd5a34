"""The status page and the demo's page in Chromium: rendering, accessibility tree, and keyboard.

Screenshots go to target/operate. Checked are contrast in both colour schemes, axe's rules, landmarks and
headings, that Tab reaches every control with a visible focus and leaves it, that a phone does not scroll
horizontally, and that problems are shown first, as text.
"""
import contextlib, http.client, json, pathlib, tempfile, threading

import axe_core_python

from browser import Page, browser
from common import KEY, ROOT, demo, fetch, free_port, need, process, until
from upstream import upstream

OUT = ROOT / "target/operate"
AXE = (pathlib.Path(axe_core_python.__file__).parent / "axe.min.js").read_text()

# The lowest contrast of any text on the page with its background (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const channels = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255]; };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !e.getClientRects().length || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const a = light(channels(e instanceof SVGElement ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, text.slice(0, 40)];
  }
  return worst;
})()"""

# The focused control: its name, and whether its focus is visible.
FOCUS = """(() => { const e = document.activeElement; if (e === document.body) return null;
  const s = getComputedStyle(e), name = e.id || e.getAttribute("aria-labelledby") || e.name || e.textContent.trim();
  return [name, s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1]; })()"""


def page(executable):
    OUT.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        with demo(executable) as (port, admin, _), load(port):
            well(chromium, port, admin)
            demo_page(chromium, f"http://127.0.0.1:{port}/demo/")
            docs_page(chromium, f"http://127.0.0.1:{port}/docs")
        kept_traits(chromium, executable)
        troubled(chromium, executable)


@contextlib.contextmanager
def load(port):
    stop = threading.Event()

    def work():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not stop.wait(0.002):
            connection.request("GET", "/api/v1/flags/", headers=KEY)
            connection.getresponse().read()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def well(chromium, port, admin):
    fetch(port, "/api/v1/nothing/")
    url = f"http://127.0.0.1:{admin}/"
    for name, how in {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800}}.items():
        shown = Page(chromium, url, **how)
        until("the page shows plots", lambda: shown.run("document.querySelectorAll('polyline').length >= 3"))
        look_at(shown, f"status-{name}")
    need(shown.run("$('fresh').textContent") == "1 of 1", "the page shows 1 of 1 environments fresh")
    need(shown.run("$('verdict-title').textContent") == "No problems", "and reports no problems")
    need(shown.run("[...document.querySelectorAll('#routes tr')].some((r) => r.textContent.startsWith('flags') && !/flags0/.test(r.textContent))"),
         "the page counts requests by route")
    read_aloud(shown)
    still = Page(chromium, url, reduced_motion=True)
    until("the page is there", lambda: still.run("document.getAnimations().length === 0 && $('fresh').textContent === '1 of 1'"))
    paused = Page(chromium, url)
    until("the page is alive", lambda: paused.run("last !== null"))
    by_keyboard(paused, ["pause", "window", "environments-title", "routes-scroll", "sdks-scroll", "status.json", "history.json", "metrics"])
    focus(paused, "pause")
    paused.key(" ")
    need(paused.run("$('pause').textContent") == "Resume", "the space bar pauses the page")
    paused.key("Enter")
    need(paused.run("$('pause').textContent") == "Pause", "and Enter lets it go on")


def look_at(shown, name):
    """A screenshot, contrast, axe's rules, and no horizontal scrolling."""
    shown.picture(OUT / f"{name}.png")
    ratio, text = shown.run(CONTRAST)
    need(ratio >= 4.5, f"{name}: text has a contrast of {ratio:.1f} at least ({text!r})")
    shown.run(AXE + ";0")
    found = shown.run("axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html).slice(0, 3)))")
    need(not found, f"{name}: axe finds nothing to object to {found or ''}".rstrip())
    need(shown.run("document.documentElement.scrollWidth <= innerWidth"), f"{name}: nothing sticks out sideways")


def read_aloud(shown):
    nodes = shown.tree()
    roles = {role for role, _ in nodes}
    need({"banner", "main", "region", "table", "columnheader", "rowheader", "status"} <= roles, "a screen reader finds landmarks, tables and the verdict")
    headings = shown.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => h.textContent)")
    shown_headings = [name for role, name in nodes if role == "heading"]
    need(headings[:2] == ["edge-proxy", "No problems"] and sorted(headings) == sorted(shown_headings), f"and headings in order: {', '.join(headings)}")
    plots = [name for role, name in nodes if role in ("image", "img")]
    need(len(plots) == 3 and all("now" in name for name in plots), f"plots say their numbers: {plots[0]}")
    live = shown.run("document.querySelectorAll('[aria-live], [role=status], [role=alert]').length")
    need(live == 2, "only the verdict and a lost process are read aloud by themselves")


def focus(shown, expected):
    for _ in range(40):
        shown.key("Tab")
        at = shown.run(FOCUS)
        if at and at[0] == expected:
            return
    need(False, f"Tab reaches {expected}")


def by_keyboard(shown, expected):
    """Tab visits every control in the order of the page, each with a visible focus, and leaves the page."""
    seen = []
    for _ in range(len(expected) + 3):
        shown.key("Tab")
        at = shown.run(FOCUS)
        if at is None and not seen:
            continue  # The browser's controls come between two rounds.
        if at is None or (seen and at[0] == seen[0][0]):
            break
        seen.append(at)
    need([name for name, _ in seen] == expected, f"Tab goes through {', '.join(name for name, _ in seen)} and out again")
    need(all(visible for _, visible in seen), "and its focus is visible")


def demo_page(chromium, url):
    for name, how in {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800, "dark": True}}.items():
        shown = Page(chromium, url, **how)
        until("the demo's page shows flags", lambda: shown.run("document.querySelectorAll('#flags tr').length > 5"))
        look_at(shown, f"demo-{name}")
    people = shown.run("[...document.querySelectorAll('#presets button')].map((b) => b.textContent)")
    by_keyboard(shown, ["identifier", "email", "beta", "spend", "country", "app_version", "Ask", *people])
    focus(shown, "identifier")
    shown.run("document.querySelector('[name=identifier]').value = 'unknown'")
    shown.key("Enter")
    until("the demo evaluates another identity", lambda: "Ada" not in shown.run("document.querySelector('#flags').textContent"))


def docs_page(chromium, url):
    for name, how in {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800, "dark": True}}.items():
        shown = Page(chromium, url, **how)
        until("the page shows the routes", lambda: shown.run("document.querySelectorAll('section').length > 10"))
        look_at(shown, f"docs-{name}")
    need(shown.run("!document.body.innerText.includes('`') && document.querySelectorAll('li code').length > 3"), "code is shown as code, without backticks")
    need(shown.run("document.querySelector('link[rel=icon]').href.startsWith('data:image/svg+xml,')"), "and the page has an icon")


def kept_traits(chromium, executable):
    """Identities kept, bytes, lag and evictions; a full store is a problem that is named."""
    with tempfile.TemporaryDirectory() as scratch:
        port, admin, traits = free_port(), free_port(), pathlib.Path(scratch) / "traits"
        config = pathlib.Path(scratch) / "config.json"
        pair = {"client_side_key": "client-side-key", "server_side_key": "ser.server-side-key",
                "document_path": str(ROOT / "src/demo/environment.json")}
        config.write_text(json.dumps({
            "environment_key_pairs": [pair], "server": {"host": "127.0.0.1", "port": port}, "admin": {"port": admin},
            "traits": {"store": "disk", "path": str(traits), "identities_max": 100},
        }))
        with process(executable, "serve", "--config", config):
            until("it is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for user in range(150):
                body = json.dumps({"identifier": f"user-{user}", "traits": [{"trait_key": "plan", "trait_value": "gold"}]})
                connection.request("POST", "/api/v1/identities/", body, {"X-Environment-Key": "client-side-key", "Content-Type": "application/json"})
                connection.getresponse().read()
            figures = "Object.fromEntries([...document.querySelectorAll('#traits dl > div')].map((d) => [...d.children].map((c) => c.textContent)))"
            for name, how in {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800}}.items():
                shown = Page(chromium, f"http://127.0.0.1:{admin}/", **how)
                until("the store is shown", lambda: shown.run(figures).get("Identities") == "100")
                look_at(shown, f"status-traits-{name}")
            found = shown.run(figures)
            need(found["Evicted"] == "50", f"it counts evictions: {found}")
            need(found["Memory of their traits"].endswith("KiB") and found["Not kept"] == "0", "and bytes, and what was not kept")
            until("everything is on the disk", lambda: shown.run(figures)["Lag of the disk"] == "none")
            need("50 identities with kept traits removed" in shown.run("$('troubles').textContent"), "a full store is named first")


def troubled(chromium, executable):
    """200 environments, some of which cannot be fetched, and a process that ends."""
    with upstream(200) as api, tempfile.TemporaryDirectory() as scratch:
        port, admin = free_port(), free_port()
        api.unknown = {"ser.key-199"}
        config = pathlib.Path(scratch) / "config.json"
        config.write_text(json.dumps({
            "environment_key_pairs": api.pairs, "api_url": api.api_url, "api_poll_frequency_seconds": 2,
            "server": {"host": "127.0.0.1", "port": port}, "admin": {"port": admin},
            # The grace is multiplied by 200 environments: stale after 6 seconds.
            "health_check": {"environment_update_grace_period_seconds": 0.02, "require": "any"},
        }))
        with process(executable, "serve", "--config", config) as proxy:
            shown = Page(chromium, f"http://127.0.0.1:{admin}/", dark=True)
            until("199 of 200 are there", lambda: shown.run("$('fresh').textContent") == "199 of 200", 60)
            api.failing = {f"ser.key-{n:03}" for n in range(7)}
            until("7 are stale", lambda: "7 environments stale" in shown.run("$('troubles').textContent"), 60)
            troubles = shown.run("[...document.querySelectorAll('#troubles li')].map((l) => l.textContent)")
            need(any("1 environment without a document" in text for text in troubles), f"troubles stand first, in words: {troubles}")
            first = shown.run("document.querySelector('#environments tr').textContent")
            need("Environment" not in first.split("no document")[0] and "no document" in first, "the worst environment is first")
            need(shown.run("document.querySelectorAll('#environments tr').length") == 25, "25 of 200 are shown")
            look_at(shown, "status-200")
            focus(shown, "find")
            shown.call("Input.insertText", text="Environment 123")
            until("one is found", lambda: shown.run("document.querySelectorAll('#environments tr').length") == 1)
            shown.run("$('find').value = ''")
            until("all are there again", lambda: shown.run("$('more').hidden") is False)
            focus(shown, "all")
            shown.key("Enter")
            until("all are shown", lambda: shown.run("document.querySelectorAll('#environments tr').length") == 200)
            need(shown.run("document.activeElement.id") == "all", "the focus stays where it was while the page lives")
            phone = Page(chromium, f"http://127.0.0.1:{admin}/", width=390, height=800)
            until("the phone shows them", lambda: phone.run("document.querySelectorAll('#environments tr').length") == 25)
            look_at(phone, "status-200-phone")
            proxy.kill()
            proxy.wait()
            until("the page shows that the process has ended", lambda: not shown.run("$('lost').hidden"))
            look_at(shown, "status-lost")

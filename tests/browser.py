"""A page in a real browser: what it says on the console, asks of the network, and how wide it gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: pages are looked at in none")

_QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-first-run", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nor does chromium itself reach anything
)  # fmt: skip

# Looks at the page in a frame of the given width; its own policy forbids other scripts in the page itself.
_PROBE = """<!doctype html><body><iframe id="f" src="%s" style="border:0;width:%dpx;height:2000px"></iframe><pre id="o"></pre>
<script>
document.getElementById("f").onload = (event) => {
  const frame = event.target, page = frame.contentDocument, overlaps = [];
  const tops = [...page.querySelectorAll("svg")].map((svg) => [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim()));
  for (const texts of tops) {
    const boxes = texts.map((t) => t.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
        overlaps.push([texts[i].textContent, texts[i + 1 + j].textContent]);
    }));
  }
  const first = page.querySelector("details div[id]");
  const before = first && first.parentElement.open;
  if (first) frame.contentWindow.location.hash = first.id;
  const table = page.querySelector("table.results"), filter = page.querySelector("input");
  const lines = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[1].textContent.trim());
  const orders = [];
  if (table) {
    orders.push(lines());
    for (const _ of [1, 2]) { table.tHead.rows[0].cells[1].click(); orders.push(lines()); }
    for (const words of ["model xxx", "model xxx [2]"]) {
      filter.value = words; filter.dispatchEvent(new Event("input")); orders.push(lines());
    }
  }
  document.getElementById("o").textContent = JSON.stringify({
    orders: orders,
    width: frame.clientWidth, content: page.documentElement.scrollWidth, overlaps: overlaps,
    plots: tops.map((texts) => texts.length), details: [before, first && first.parentElement.open],
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
  });
};
</script></body>"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Chromium with a profile of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_QUIET, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def probe(page: Path, folder: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """What the page measures at this width."""
    outer = folder / f"probe-{width}.html"
    outer.write_text(_PROBE % (page.as_uri(), width))
    colours = "--blink-settings=preferredColorScheme=0" if dark else "--blink-settings=preferredColorScheme=1"
    shown = run(
        folder, colours, "--allow-file-access-from-files", "--window-size=1600,1200", "--virtual-time-budget=10000",
        "--dump-dom", outer.as_uri(),
    )  # fmt: skip
    (found,) = re.findall(r'<pre id="o">(.*?)</pre>', shown.stdout, flags=re.DOTALL)
    return json.loads(unescape(found))


def console_and_requests(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Lines of the console, and addresses that the page asks the network for."""
    log = folder / "net.json"
    shown = run(
        folder,
        "--enable-logging=stderr",
        f"--log-net-log={log}",
        "--screenshot=" + str(folder / "shot.png"),
        page.as_uri(),
    )
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    # What chromium asks for on its own account has no page as its initiator.
    found = re.findall(r'"initiator":"([^"]+)".*?"url":"([^"]+)"', log.read_text())
    return console, list(dict.fromkeys(url for initiator, url in found if initiator != "not an origin"))


def num_pdf_pages(page: Path, folder: Path) -> int:
    """Printed."""
    run(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}", page.as_uri())
    return len(re.findall(rb"/Type /Page\b", (folder / "page.pdf").read_bytes()))

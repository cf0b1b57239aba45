"""How our pages look: system fonts, light and dark, on a screen, on a telephone and on paper."""

SERIES_COLOURS = (
    # light, dark: told apart by colour-blind readers, and at least 3:1 against the page
    ("#0067b1", "#5db0f0"),
    ("#c24e00", "#f0934a"),
    ("#00795a", "#3fc39b"),
    ("#a03080", "#e58cc8"),
    ("#6b5b00", "#d3bd3c"),
    ("#5a47b0", "#a99bf2"),
    ("#b3202c", "#f27c83"),
    ("#4d5b66", "#a9b7c2"),
)
"""Colours of the lines of a plot, for light and for dark pages."""

_LIGHT = {"page": "#ffffff", "panel": "#f5f6f8", "ink": "#1b1f24", "muted": "#59636e", "line": "#d5dae0"}
_DARK = {"page": "#14171b", "panel": "#1e2329", "ink": "#e7eaee", "muted": "#a0abb7", "line": "#39414a"}
_ACCENTS = (
    {"link": "#0058a3", "warn": "#8a4b00", "warn-page": "#fff3df"},
    {"link": "#7cbcf5", "warn": "#ffc980", "warn-page": "#3a2a10"},
)


def _variables(index: int) -> str:
    base = (_LIGHT, _DARK)[index] | _ACCENTS[index]
    series = {f"c{i}": pair[index] for i, pair in enumerate(SERIES_COLOURS)}
    return "".join(f"--{name}:{value};" for name, value in (base | series).items())


_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;overflow-wrap:anywhere;background:var(--page);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1560px;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.25rem;line-height:1.3;margin:2.5rem 0 .5rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
h4{font-size:.8125rem;margin:.75rem 0 .25rem}
p,ul,ol{max-width:75ch;margin:.5rem 0}
li{margin:.2rem 0}
a{color:var(--link)}
.muted,figcaption,.small{color:var(--muted)}
.small,figcaption{font-size:.8125rem;line-height:1.4}
.note{border-left:4px solid var(--warn);background:var(--warn-page);padding:.5rem .75rem;max-width:75ch}
.badge{display:inline-block;font-size:.6875rem;font-weight:600;line-height:1;letter-spacing:.03em;padding:.2em .45em;
 border:1px solid var(--warn);border-radius:.25em;color:var(--warn);background:var(--warn-page);white-space:nowrap}
.scroll{overflow-x:auto;max-width:100%;margin:.75rem 0;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;font-size:.8125rem;line-height:1.35;font-variant-numeric:tabular-nums}
.scroll>table{width:100%}
th,td{overflow-wrap:normal;padding:.35rem .4rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{vertical-align:bottom;font-weight:600;background:var(--panel)}
th[scope=row],th.name,table.pairs th,table.pairs td{text-align:left}
th[scope=row]{font-weight:600}
td{white-space:nowrap}
td .small,th .small{display:block;font-size:.6875rem;font-weight:400}
.scroll th[scope=row],.scroll th.name{position:sticky;left:0;background:var(--panel);z-index:1;min-width:10rem;max-width:17rem;
 overflow-wrap:anywhere;border-right:1px solid var(--line)}
tr.reference>*{background:var(--panel);color:var(--muted);font-style:italic}
tr.group>*{border-top:2px solid var(--line)}
table.pairs{width:100%;margin:.25rem 0 .75rem}
table.pairs th{width:17rem;font-weight:400;color:var(--muted)}
table.pairs td{white-space:normal;overflow-wrap:anywhere}
.plots,.grids{display:grid;gap:1.25rem;margin:.75rem 0;align-items:start}
.plots{grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr))}
.curves{grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
.curves h3{margin:.25rem 0}
.grids{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
.pairs-grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
figure{margin:0;min-width:0}
figure svg,figure img{display:block;width:100%;height:auto}
figure img{image-rendering:pixelated;background:#fff;border:1px solid var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;font-size:.8125rem;margin:.5rem 0;padding:0;list-style:none;max-width:none}
details{border:1px solid var(--line);border-radius:6px;margin:.4rem 0;padding:.4rem .75rem}
summary{cursor:pointer}
:target{outline:2px solid var(--link);outline-offset:2px}
pre{overflow-x:auto;font:.75rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:.5rem 0}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.875em}
@media (max-width:600px){
 main{padding:1rem .75rem 3rem}
 h1{font-size:1.375rem}
 .scroll th[scope=row],.scroll th.name{min-width:8.5rem;max-width:9.5rem}
 table.pairs th{width:38%}
}
@page{size:A4 landscape;margin:12mm}
@media print{
 body{font-size:10pt}
 main{max-width:none;padding:0}
 a{color:inherit;text-decoration:none}
 .scroll{overflow:visible;border:0}
 .scroll th[scope=row],.scroll th.name{position:static;width:11em;min-width:11em}
 .scroll .small{font-size:.9em}
 .scroll table{font-size:6.5pt}
 .scroll th,.scroll td{padding:.25em .35em}
 .badge{font-size:.9em}
 .plots{grid-template-columns:1fr 1fr}
 details{border:0;padding:0}
 details>div{columns:3;font-size:6.5pt}
 details>div table.pairs{font-size:inherit;line-height:1.2}
 details>div table.pairs :is(th,td){padding:.1em .3em}
 details>div table.pairs th{width:46%}
 details>div h4{font-size:8pt;margin:.5em 0 0;break-after:avoid}
 .grids{grid-template-columns:repeat(4,1fr)}
 .pairs-grid{grid-template-columns:1fr 1fr}
 h2,h3,summary{break-after:avoid}
 figure,tr{break-inside:avoid}
 summary{list-style:none}
 details::details-content{content-visibility:visible;block-size:auto}
 pre{white-space:pre-wrap}
}
"""

_DARK_RULE = f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
STYLESHEET = f":root{{color-scheme:light dark;{_variables(0)}}}{_DARK_RULE}{_RULES}"
